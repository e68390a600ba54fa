"""A whole gateway in this process, calls that together reach every `await` of the pipeline, and a check of the accounts.

Run as a program (`python -m tests.faults.await_scenarios FOLDER LEDGER`, or `kill:1` for LEDGER) it strikes at every point in
every way, and prints what it found as JSON; `tests/faults/test_every_await.py` reads it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.await_points import Faults, install

if TYPE_CHECKING:
    from gateway.app import Application
    from policies.reservation import Balance
    from tests.fake_provider import FakeProvider

LIMIT = 1_000_000
TTL_S = 1.0
CALL_TIMEOUT_S = 20.0


def configuration(provider: FakeProvider, ledger: str, folder: Path) -> dict[str, Any]:
    def model(name: str, usd: float | None) -> dict[str, Any]:
        prices = {} if usd is None else {"input_cost_per_token": usd, "output_cost_per_token": 4 * usd}
        return {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_base": provider.openai_url, "api_key": "k"},
            "model_info": {**prices, "max_output_tokens": 4096},
        }

    def run(match: str, **fields: Any) -> dict[str, Any]:
        return {"scope": "run", "match": match, "tokens": LIMIT, "usd": 100, **fields}

    return {
        "model_list": [model("fake", 1e-7), model("other", 1e-6), model("unpriced", None)],
        "router_settings": {"num_retries": 1, "cooldown_time": 0, "fallbacks": [{"fake": ["other"]}]},
        "budgets": [
            run("wf"),
            run("sliced", hold="slices"),
            run("small", tokens=60),
            run("waiting", tokens=60, on_pressure=["wait", "refuse"], wait_seconds=0.3),
            run(
                "early",
                on_pressure=[{"wait": 1.0}, {"compress": 1.0}, {"route": 1.0}, {"clamp": 1.0}, "refuse"],
                wait_seconds=0.2,
            ),
            run("kept-back", on_pressure=[{"refuse": 1.0}]),
            run("ladder", tokens=150, on_pressure=["compress", "route", "clamp", "refuse"]),
            {"scope": "run", "match": "free", "tokens": LIMIT},
        ],
        "tiers": {"fast": ["fake"], "balanced": ["other"], "powerful": ["other"]},
        "settings": {
            "orchestration_enabled": True,
            "orchestration_compression_enabled": True,
            "orchestration_ais_routing_enabled": True,
            "orchestration_max_tokens_per_step": 200_000,
            "orchestration_max_tokens_per_workflow": 900_000,
        },
        "storage": {"ledger": ledger, "store": f"sqlite:///{folder}/store.db", "spool": f"{folder}/spool"},
        "reservations": {"ttl_seconds": TTL_S, "sweep_seconds": 0.2, "slice_tokens": 32},
        "loops": {"repeats": 2},
    }


@dataclass
class Client:
    """Plays the server's side of ASGI for one call."""

    body: bytes
    sent: list[dict[str, Any]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    _read: bool = False

    async def receive(self) -> dict[str, Any]:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"]) if self.sent else 0

    @property
    def call_id(self) -> str:
        headers = dict(self.sent[0]["headers"]) if self.sent else {}
        return str(headers.get(b"x-request-id", b"").decode())


@dataclass(frozen=True)
class Scenario:
    name: str
    workflow: str = ""  # none: untagged
    fake: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1  # the fault strikes in the last of them
    prepare: Callable[[FakeProvider], None] = lambda provider: None
    unique: bool = False  # its key, if it has one, is a new one each time


def _failing(times: int, **directive: Any) -> Callable[[FakeProvider], None]:
    return lambda provider: provider.script(times=times, **directive)


LONG = [{"role": "user", "content": "The order was late. The order was late. Please summarize it. " * 40}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
SCENARIOS = (
    Scenario("buffered", "wf"),
    Scenario("streamed", "wf", fields={"stream": True}, fake={"tokens": 40}),
    Scenario("sliced", "sliced", fields={"stream": True}, fake={"tokens": 90}),
    Scenario("sliced and buffered", "sliced", fake={"tokens": 90}),
    Scenario("untagged", fields={"stream": True}),
    Scenario("no usage", fake={"usage": "missing"}, fields={"stream": True}),
    Scenario("implicit run", "wf", headers={"x-workflow-run-id": ""}),
    Scenario("refused", "small", fields={"max_tokens": 100}, headers={"x-workflow-options": "no-clamp"}),
    Scenario("refused after waiting", "waiting", fields={"max_tokens": 30}, headers={"x-workflow-run-id": "crowded"}),
    Scenario("provider error", "wf", fake={"status": 400}),
    Scenario("retried", "wf", prepare=_failing(1, status=503)),
    Scenario("fallback model", "wf", prepare=_failing(2, status=503)),
    Scenario("no provider left", "wf", prepare=_failing(8, status=503)),
    Scenario("stream broken in the middle", "wf", fields={"stream": True}, fake={"tokens": 30, "cut_after": 3, "chunk_delay_ms": 2}),
    Scenario("buffered answer broken in the middle", "sliced", fake={"tokens": 60, "cut_after": 3, "chunk_delay_ms": 2}),
    Scenario("stream retried", "wf", fields={"stream": True}, prepare=_failing(2, status=503)),
    Scenario("limited in money by an operator", "free", fields={"model": "unpriced"}),
    Scenario("under pressure early", "early", fields={"messages": LONG}),
    Scenario("refused early", "kept-back", headers={"x-workflow-budget-tokens": "500"}),
    Scenario("whole ladder", "ladder", fields={"messages": LONG}),
    Scenario("provider ignores max_tokens", "wf", fields={"stream": True, "max_tokens": 20}, fake={"tokens": 200, "ignore_max": True}),
    Scenario("cut by the budget", "small", fields={"stream": True}, fake={"tokens": 200, "ignore_max": True}),
    Scenario("idempotency key", "wf", headers={"idempotency-key": "k"}, unique=True),
    Scenario("idempotency key repeated", "wf", headers={"idempotency-key": "k"}, unique=True, times=2),
    Scenario("stream with an idempotency key", "wf", headers={"idempotency-key": "k"}, fields={"stream": True}, unique=True),
    Scenario("stored in the cache", "wf", headers={"x-farebox-cache": "60"}),
    Scenario("from the cache", "wf", headers={"x-farebox-cache": "60"}, times=2),
    Scenario("loop of tool calls", "wf", fields={"tools": TOOLS}, times=3),
)  # fmt: skip


@dataclass
class Findings:
    points: int = 0
    unreached: list[str] = field(default_factory=list)
    strikes: int = 0
    hung: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    held_after_call: list[str] = field(default_factory=list)  # left to the sweeper, with the function of the point
    held_at_end: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)  # calls with another number of events than one
    books: list[str] = field(default_factory=list)


class Gateway:
    """`run` tells calls apart: each has a run of its own, so that its books can be looked at alone."""

    def __init__(self, application: Application, provider: FakeProvider, faults: Faults) -> None:
        self.application = application
        self.provider = provider
        self.faults = faults
        self.ended: dict[str, tuple[str, Client]] = {}  # run → what it was, its call
        self._number = 0

    def number_from(self, number: int) -> None:
        """So that several processes on the same files have runs of their own."""
        self._number = number

    async def perform(self, scenario: Scenario, point: str = "", kind: str = "") -> str | None:
        """None: it ended. Otherwise what hung. The fault strikes at the first arrival in the last call."""
        self._number += 1
        run = f"r-{self._number}"
        self.provider.clear()
        scenario.prepare(self.provider)
        if scenario.workflow == "free":
            from policies.amounts import Limit

            await self.application.parts.ledger.set_override("default", f"run/{run}", Limit(nano_usd=10**9))
        crowd = await self._crowd() if scenario.name == "refused after waiting" else None
        for at in range(scenario.times):
            client = Client(json.dumps(self._body(scenario)).encode())
            is_last = at == scenario.times - 1
            if is_last and point:
                self.faults.arm(point, kind, client.left.set)
            task = asyncio.create_task(self.application(self._scope(scenario, run), client.receive, client.send))
            done, _ = await asyncio.wait([task], timeout=CALL_TIMEOUT_S)
            self.faults.disarm()
            if not done:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                return f"{scenario.name}: {point} {kind}"
            if not task.cancelled() and task.exception() is not None:
                return f"{scenario.name}: {point} {kind}: {task.exception()!r}"
            if is_last:
                self.ended[run] = (f"{scenario.name}: {kind} at {point}", client)
        if crowd is not None:
            crowd.left.set()
        return None

    async def _crowd(self) -> Client:
        """A call that holds what the next one needs."""
        client = Client(
            json.dumps(self._body(Scenario("", fake={"delay_ms": 600}, fields={"max_tokens": 30}))).encode()
        )
        scope = self._scope(Scenario("", "waiting", headers={"x-workflow-run-id": "crowded"}), "crowded")
        self._crowding = asyncio.create_task(self.application(scope, client.receive, client.send))
        await asyncio.sleep(0.05)
        return client

    def _body(self, scenario: Scenario) -> dict[str, Any]:
        content = "hi " + (json.dumps({"fake": scenario.fake}) if scenario.fake else "")
        return {
            "model": "fake",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 300,
            **scenario.fields,
        }

    def _scope(self, scenario: Scenario, run: str) -> dict[str, Any]:
        headers = {"host": "127.0.0.1", "content-type": "application/json"}
        if scenario.workflow:
            headers |= {"x-workflow-id": scenario.workflow, "x-workflow-run-id": run, "x-workflow-step": "s"}
        headers |= scenario.headers
        if scenario.unique:
            headers["idempotency-key"] = run
        path = "/v1/chat/completions"
        header_pairs = [(name.encode(), value.encode()) for name, value in headers.items() if value]
        return {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": header_pairs, "client": ("127.0.0.1", 1), "http_version": "1.1",
        }  # fmt: skip

    async def held(self) -> list[str]:
        return [row[0] for row in await self.application.parts.ledger.pending("default")]

    async def settled(self) -> None:
        """All background work of the calls has ended, and every event is in the store."""
        await self.application._ending.drain()
        await self.application.parts.recorder.flush()
        await self.application.parts.flusher.drain(timeout_ms=5_000)


async def check_books(gateway: Gateway, findings: Findings) -> None:
    from sqlalchemy import text

    parts = gateway.application.parts
    await gateway.settled()
    findings.held_at_end = await gateway.held()
    async with parts.store.read() as connection:
        rows = [dict(row._mapping) for row in await connection.execute(text("SELECT * FROM token_usage"))]
    by_call: dict[str, int] = {}
    by_run: dict[str, int] = {}
    for row in rows:
        by_call[row["request_id"]] = by_call.get(row["request_id"], 0) + 1
        by_run[row["run"]] = by_run.get(row["run"], 0) + row["total_tokens"]
    for place, client in gateway.ended.values():
        count = by_call.get(client.call_id, 0)
        if client.call_id and count != 1:
            findings.events.append(f"{place}: {count} events, answered {client.status}")
    accounts = [f"run/{run}" for run in gateway.ended]
    for start in range(0, len(accounts), 100):
        for balance in await parts.ledger.balances("default", accounts[start : start + 100]):
            run = balance.account.removeprefix("run/")
            place = gateway.ended[run][0]
            if balance.reserved.tokens or balance.reserved.requests or balance.reserved.nano_usd:
                findings.books.append(f"{place}: {balance.reserved} still held")
            if balance.settled.tokens != by_run.get(run, 0):
                findings.books.append(f"{place}: booked {balance.settled.tokens}, events say {by_run.get(run, 0)}")
            if balance.settled.tokens > LIMIT:
                findings.books.append(f"{place}: above its limit")


async def inject_everywhere(folder: Path, ledger: str, faults: Faults) -> Findings:
    from tests.fake_provider import FakeProvider

    findings = Findings()
    async with FakeProvider() as provider:
        gateway = await _open(folder, faults, provider, ledger)
        application = gateway.application
        reached: dict[str, dict[str, tuple[str, ...]]] = {}
        for scenario in SCENARIOS:
            faults.reached = {}
            findings.hung += filter(None, [await gateway.perform(scenario)])
            await gateway.settled()
            reached[scenario.name] = dict(faults.reached)
        findings.points = len(faults.points)
        tried: set[tuple[str, str]] = set()
        everywhere = set().union(*reached.values())
        for scenario in SCENARIOS:
            for point in sorted(reached[scenario.name]):
                for kind in reached[scenario.name][point]:
                    if (point, kind) in tried:
                        continue
                    held_before = set(await gateway.held())
                    faults.reached = {}
                    hung = await gateway.perform(scenario, point, kind)
                    everywhere |= faults.reached.keys()
                    tried.add((point, kind))
                    findings.strikes += bool(faults.struck)
                    if hung:
                        findings.hung.append(hung)
                    await application._ending.drain()
                    if set(await gateway.held()) - held_before - {"crowded"}:
                        findings.held_after_call.append(f"{faults.points[point]} {kind} {point} ({scenario.name})")
        findings.unreached = sorted(set(faults.points.values()) - {faults.points[point] for point in everywhere})
        await asyncio.sleep(TTL_S + 1.0)
        await check_books(gateway, findings)
        await application.stop()
    return findings


async def _open(folder: Path, faults: Faults, provider: FakeProvider, ledger: str) -> Gateway:
    from gateway.app import Application
    from gateway.config.schema import Config

    config = Config.model_validate(configuration(provider, ledger, folder))
    application = Application(config, environment={})
    await application.start()
    return Gateway(application, provider, faults)


async def reached_points(folder: Path, faults: Faults) -> dict[str, list[str]]:
    """Every scenario once, without a fault: where each of them waits."""
    from tests.fake_provider import FakeProvider

    reached = {}
    async with FakeProvider() as provider:
        gateway = await _open(folder, faults, provider, "memory://")
        for scenario in SCENARIOS:
            faults.reached = {}
            await gateway.perform(scenario)
            reached[scenario.name] = sorted(faults.reached)
        await gateway.application.stop()
    return reached


async def run_until_killed(folder: Path, faults: Faults, scenario: Scenario, point: str) -> None:
    """kill -9 at the point. Returning means that the point was not reached this time."""
    from tests.fake_provider import FakeProvider

    async with FakeProvider() as provider:
        gateway = await _open(folder, faults, provider, f"sqlite:///{folder}/ledger.db")
        gateway.number_from(os.getpid() * 1000)
        await gateway.perform(scenario, point, "kill")
        await gateway.application.stop()


async def inspect_after_kills(folder: Path, faults: Faults) -> dict[str, Any]:
    """Start a gateway on what the killed ones left, and wait until every hold has expired."""
    from sqlalchemy import text

    from tests.fake_provider import FakeProvider

    async with FakeProvider() as provider:
        gateway = await _open(folder, faults, provider, f"sqlite:///{folder}/ledger.db")
        await asyncio.sleep(TTL_S + 1.0)
        await gateway.settled()
        parts = gateway.application.parts
        async with parts.store.read() as connection:
            rows = [dict(row._mapping) for row in await connection.execute(text("SELECT * FROM token_usage"))]
        runs = sorted({row["run"] for row in rows if row["run"]})
        balances: list[Balance] = []
        for start in range(0, len(runs), 100):
            balances += await parts.ledger.balances("default", [f"run/{run}" for run in runs[start : start + 100]])
        sums = {run: sum(row["total_tokens"] for row in rows if row["run"] == run) for run in runs}
        held = await gateway.held()
        await gateway.application.stop()
    ids = [row["request_id"] for row in rows]
    return {
        "held": held,
        "duplicates": len(ids) - len(set(ids)),
        "rows": len(rows),
        "lost": sum(row["status"] == "lost" for row in rows),
        "mismatches": [
            f"{balance.account}: booked {balance.settled.tokens}, events say {sums[balance.account[4:]]}, held {balance.reserved}"
            for balance in balances
            if balance.settled.tokens != sums[balance.account[4:]]
            or balance.reserved.tokens
            or balance.reserved.requests
        ],
    }


def run_forked(work: Callable[[], Coroutine[Any, Any, object]], result: Path | None = None) -> int:
    """In a child of its own, before any loop or thread: what it returns goes to `result`. Returns how it ended, below 0 a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            findings = asyncio.run(work())
            if result is not None:
                result.write_text(json.dumps(findings))
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(folder: Path, faults: Faults, every: int) -> dict[str, Any]:
    """kill -9 at every point, or at one of `every`; the next gateway starts on what the last one left."""
    import gateway.app  # noqa: F401 - so that each child has it already

    known, apart = folder / "reached.json", folder / "without-a-fault"
    apart.mkdir()
    assert run_forked(partial(reached_points, apart, faults), known) == 0
    reached = json.loads(known.read_text())
    tried: dict[str, Scenario] = {}
    for scenario in SCENARIOS:
        for point in reached[scenario.name]:
            tried.setdefault(point, scenario)
    chosen = list(tried.items())[::every]
    endings: dict[int, int] = {}
    for point, scenario in chosen:
        code = run_forked(partial(run_until_killed, folder, faults, scenario, point))
        endings[code] = endings.get(code, 0) + 1
    findings_file = folder / "found.json"
    assert run_forked(partial(inspect_after_kills, folder, faults), findings_file) == 0
    return {"points": len(chosen), "endings": endings, **json.loads(findings_file.read_text())}


def main() -> None:
    faults = install()
    logging.disable(logging.CRITICAL)
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    if mode.startswith("kill:"):
        print(json.dumps(kill_everywhere(folder, faults, int(mode.removeprefix("kill:")))))
    else:
        print(json.dumps(vars(asyncio.run(inject_everywhere(folder, mode, faults)))))


if __name__ == "__main__":
    main()
