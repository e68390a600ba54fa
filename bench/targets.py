"""The targets of comparison: the upstream itself, the bare passthrough, Farebox in its modes, and other gateways."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from bench import peers
from bench.measure import Cores
from bench.servers import (
    NotStarted,
    Server,
    Servers,
    redis_server,
    start_farebox,
    start_litellm_passthrough,
    start_passthrough,
)

BASELINE: Final = "passthrough"


@dataclass(frozen=True, slots=True)
class Target:
    """`server` names the process that serves it; several targets may share one."""

    name: str
    title: str
    server: str
    is_tagged: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    is_peer: bool = False
    connections_max: int = 512


TARGETS: Final = {
    target.name: target
    for target in (
        Target("mock", "mock upstream alone", "mock"),
        Target(BASELINE, "bare passthrough", "passthrough"),
        Target("untagged", "Farebox, untagged", "farebox"),
        Target("tagged", "Farebox, tagged", "farebox", is_tagged=True),
        Target("orchestrated", "Farebox, tagged, orchestration on", "farebox-orchestrated", is_tagged=True),
        Target("redis", "Farebox, tagged, Redis ledger", "farebox-redis", is_tagged=True),
        Target("litellm-lane", "Farebox, tagged, LiteLLM lane", "farebox-litellm", is_tagged=True),
        Target("litellm-bare", "Starlette + litellm.acompletion", "litellm-bare", connections_max=64),
        Target("vllm-router", "vLLM's router (Rust)", "vllm-router", is_peer=True),
        Target("litellm", "LiteLLM's proxy", "litellm", is_peer=True, connections_max=64),
        Target(
            "litellm-budgets", "LiteLLM's proxy, budgets in Redis", "litellm-budgets", is_peer=True, connections_max=64
        ),
        Target("portkey", "Portkey's gateway", "portkey", headers=peers.PORTKEY_HEADERS, is_peer=True),
    )
}


class Fleet:
    """The servers of the chosen targets, each started once. Servers that cannot be started are skipped, with the reason."""

    def __init__(self, running: Servers, cores: Cores, mock: Server, stack: contextlib.ExitStack) -> None:
        self._running = running
        self._cores = cores
        self._mock = mock
        self._stack = stack
        self.servers: dict[str, Server] = {"mock": mock}
        self.missing: dict[str, str] = {}

    def start(self, name: str) -> None:
        if name in self.servers or name in self.missing:
            return
        upstream = f"{self._mock.url}/v1"
        starters: dict[str, Callable[[], Server]] = {
            "passthrough": lambda: start_passthrough(self._running, upstream),
            "farebox": lambda: start_farebox(self._running, upstream, name=name),
            "farebox-orchestrated": lambda: start_farebox(self._running, upstream, name=name, orchestrated=True),
            "farebox-litellm": lambda: start_farebox(self._running, upstream, name=name, lane="litellm"),
            "farebox-redis": lambda: self._with_redis(upstream, name),
            "litellm-bare": lambda: start_litellm_passthrough(self._running, upstream),
            "vllm-router": lambda: peers.start_vllm_router(self._running, self._mock.url),
            "litellm": lambda: peers.start_litellm(self._running, upstream),
            "litellm-budgets": lambda: self._litellm_with_budgets(upstream, name),
            "portkey": lambda: peers.start_portkey(self._running),
        }
        try:
            self.servers[name] = starters[name]()
        except NotStarted as error:
            self.missing[name] = str(error)

    def _with_redis(self, upstream: str, name: str) -> Server:
        url = self._stack.enter_context(redis_server(self._cores))
        return start_farebox(self._running, upstream, name=name, ledger=url)

    def _litellm_with_budgets(self, upstream: str, name: str) -> Server:
        url = self._stack.enter_context(redis_server(self._cores))
        return peers.start_litellm(self._running, upstream, name=name, budgets_in=url)

    def headers(self, target: Target) -> dict[str, str]:
        """A client key, which the mock does not read, and the headers by which a peer finds the upstream."""
        filled_headers = {name: value.format(upstream=f"{self._mock.url}/v1") for name, value in target.headers.items()}
        return {"authorization": f"Bearer {peers.CLIENT_KEY}", **filled_headers}
