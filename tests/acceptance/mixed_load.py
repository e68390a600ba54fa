"""Everything at once: calls of all protocols, tags, options and faults, from many clients, while people pause runs and raise budgets.

A test of a single thing chooses its subject. Here a seed does, so that combinations occur that nobody would write a test for.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from tests.acceptance.serving import model
from tests.fake_provider import FakeProvider

WORKFLOWS: Final = ("tight", "sliced", "poor", "counted", "observed")
RUNS_EACH: Final = 6
RUN_TOKENS: Final = {"tight": 6_000, "sliced": 9_000}
RAISED_TOKENS: Final = 12_000
BUDGETS: Final[list[dict[str, Any]]] = [
    {"scope": "run", "match": "tight", "tokens": RUN_TOKENS["tight"]},
    {"scope": "step", "match": "tight/s1", "tokens": 2_500},
    {"scope": "run", "match": "sliced", "tokens": RUN_TOKENS["sliced"], "hold": "slices"},
    {"scope": "run", "match": "poor", "usd": 0.01, "on_pressure": ["compress", {"route": 0.5}, "clamp", "refuse"]},
    {"scope": "run", "match": "counted", "requests": 25, "tokens": 20_000},
    {"scope": "run", "match": "observed", "tokens": 5_000, "mode": "observe"},
    {"scope": "workflow", "match": "*", "tokens": 400_000, "window": "total"},
    {"scope": "agent", "match": "a1", "usd": 0.2, "window": "hour"},
    {"scope": "project", "match": "*", "tokens": 2_000_000, "window": "day", "mode": "observe"},
]
SETTINGS: Final = {
    "orchestration_enabled": True,
    "orchestration_compression_enabled": True,
    "orchestration_ais_routing_enabled": True,
}
# What a provider does to one call in five. The others answer as they should.
_FAULTS: Final[tuple[dict[str, Any], ...]] = (
    {"status": 400},
    {"status": 429},
    {"status": 503},
    {"cut_after": 2},
    {"garbage_after": 2},
    {"no_done": True},
    {"usage": "zero"},
    {"usage": "absurd"},
    {"ignore_max": True, "tokens": 900},
    {"delay_ms": 1_000},
)
_BREAKING: Final = {"status", "cut_after", "garbage_after", "no_done"}


def models(provider: FakeProvider) -> list[dict[str, Any]]:
    """All use the direct lane in their own protocol: loading LiteLLM would take most of the test's time."""
    claude = model(provider.url, "claude", "anthropic/claude-sonnet-4-5")
    return [
        model(provider.openai_url, "small"),
        model(provider.openai_url, "mid", "openai/gpt-4o", input_cost_per_token=1e-6, output_cost_per_token=4e-6),
        model(provider.openai_url, "big", "openai/gpt-4.1", input_cost_per_token=5e-6, output_cost_per_token=2e-5),
        model(provider.openai_url, "embedder", "openai/text-embedding-3-small"),
        {**claude, "upstream": "direct"},
    ]


@dataclass
class MixedLoad:
    """`run` makes calls for the given time. Violations are collected in `wrong`; `answered` are the ids of the calls that got an answer."""

    url: Callable[[], str]
    seed: int
    is_killed: bool = False  # the gateway dies now and then: lost connections are expected
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)

    async def run(self, seconds: float, clients: int) -> None:
        until_s = time.monotonic() + seconds
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            chances = [random.Random(self.seed * 1_000 + number) for number in range(clients + 1)]
            operator = self._repeated(self._operate, session, chances[0], until_s, 0.2)
            callers = [self._repeated(self._call, session, chance, until_s, 0.02) for chance in chances[1:]]
            await asyncio.gather(operator, *callers)

    async def _repeated(
        self, act: Any, session: aiohttp.ClientSession, chance: random.Random, until_s: float, pause_s: float
    ) -> None:
        while time.monotonic() < until_s:
            try:
                await act(session, chance)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.ends[type(error).__name__] += 1
                if not self.is_killed:
                    self.wrong.append(repr(error))
            await asyncio.sleep(chance.uniform(0, pause_s))

    def _run_of(self, workflow: str, chance: random.Random) -> str:
        return f"{workflow}-{self.seed}-{chance.randrange(RUNS_EACH)}"

    async def _call(self, session: aiohttp.ClientSession, chance: random.Random) -> None:
        fault = chance.choice(_FAULTS) if chance.random() < 0.2 else {}
        directive = {"tokens": chance.choice([3, 20, 100, 400]), "chunk_delay_ms": chance.choice([0, 0, 2]), **fault}
        path, body = _request(chance, "time " * chance.choice([5, 50, 300]) + json.dumps({"fake": directive}))
        leaves = chance.random() < 0.06
        async with session.post(self.url() + path, json=body, headers=self._headers(chance)) as answer:
            if leaves:
                if answer.status == 200 and body.get("stream"):
                    await answer.content.readany()
                answer.close()
                self.ends["left"] += 1
                return
            content = await answer.read()
        self._judge(answer, content, path, bool(body.get("stream")), fault)

    def _headers(self, chance: random.Random) -> dict[str, str]:
        headers: dict[str, str] = {}
        if chance.random() < 0.9:
            workflow = chance.choice(WORKFLOWS)
            headers = {"x-workflow-id": workflow, "x-workflow-step": f"s{chance.randrange(4)}"}
            for share, name, value in (
                (0.95, "x-workflow-run-id", self._run_of(workflow, chance)),
                (0.3, "x-workflow-agent", chance.choice(["a1", "a2"])),
                (0.1, "x-workflow-budget-tokens", chance.choice(["3000", "5000"])),
                (0.1, "x-workflow-parent-run-id", f"{workflow}-{self.seed}-0"),
                (0.1, "x-workflow-options", chance.choice(["no-clamp", "no-route", "no-compress"])),
                (0.1, "x-farebox-cache", "20"),
                (0.1, "idempotency-key", f"k{chance.randrange(30)}"),
            ):
                if chance.random() < share:
                    headers[name] = value
        return headers

    def _judge(
        self, answer: aiohttp.ClientResponse, content: bytes, path: str, streamed: bool, fault: dict[str, Any]
    ) -> None:
        description = f"{path} {fault}: {answer.status} {content[-300:]!r}"
        if answer.status == 200:
            self.ends["200"] += 1
            self.answered.append(answer.headers["x-request-id"])
            if streamed and not _is_ended(path, content):
                self.wrong.append(f"ended silently: {description}")
            return
        error = json.loads(content)["error"]
        self.ends[f"{answer.status} {error.get('code') or error['type']}"] += 1
        if answer.status >= 500 and not _BREAKING & fault.keys():
            self.wrong.append(description)

    async def _operate(self, session: aiohttp.ClientSession, chance: random.Random) -> None:
        """A child run's budget is never its parent's, so the parents, number 0, are left alone."""
        run = f"{chance.choice(WORKFLOWS)}-{self.seed}-{chance.randrange(1, RUNS_EACH)}"
        act = chance.choice(["pause", "resume", "resume", "budget", "look", "report", "setting"])
        if act == "setting":
            path = "/api/settings/orchestration_budget_allocation_strategy"
            request = session.put(
                self.url() + path, json={"value": chance.choice(["equal", "proportional", "adaptive", "priority"])}
            )
        elif act in ("look", "report"):
            request = session.get(f"{self.url()}/api/{'runs/' + run if act == 'look' else 'usage?group_by=run'}")
        else:
            change = {"budget_tokens": RAISED_TOKENS} if act == "budget" else None
            request = session.post(f"{self.url()}/api/runs/{run}/{act}", json=change)
        async with request as answer:
            reply_text = await answer.text()
        self.ends[f"{act} {answer.status}"] += 1
        if answer.status >= 500:
            self.wrong.append(f"{act}: {answer.status} {reply_text[:300]}")


def _request(chance: random.Random, text: str) -> tuple[str, dict[str, Any]]:
    """A request in any protocol, sometimes with optional fields that its clients send."""
    kind = chance.choices(["chat", "messages", "responses", "completions", "embeddings"], [60, 12, 12, 8, 8])[0]
    name, cap = chance.choice(["small", "mid", "big"]), chance.choice([None, 50, 500, 4_000])
    if kind == "embeddings":
        return "/v1/embeddings", {"model": "embedder", "input": [text, "x"]}
    body: dict[str, Any] = {"model": name, "stream": chance.random() < 0.5}
    if kind == "messages":
        return "/v1/messages", body | {"model": "claude", "max_tokens": cap or 1_000, "messages": _user(text)}
    if kind == "responses":
        return "/v1/responses", body | {"input": text} | ({"max_output_tokens": cap} if cap else {})
    if cap:
        body["max_tokens"] = cap
    if kind == "completions":
        return "/v1/completions", body | {"prompt": text}
    if chance.random() < 0.1:
        body["n"] = 2
    if body["stream"] and chance.random() < 0.3:
        body["stream_options"] = {"include_usage": True}
    return "/v1/chat/completions", body | {"model": chance.choice([name, name, "auto"]), "messages": _user(text)}


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _is_ended(path: str, content: bytes) -> bool:
    """Properly, or with an error event."""
    last = {"/v1/messages": b"message_stop", "/v1/responses": b"response."}.get(path, b"[DONE]")
    return last in content[-2_000:] or b'"error"' in content
