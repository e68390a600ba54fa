"""Redis stalls, loses its memory, or Postgres is away: what a client of a running gateway notices, and what is booked afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.scaled_out import FAST_MS, LoopThread, rows_of, settings_for
from tests.farebox_process import FareboxProcess, Reply, running_farebox, tagged
from tests.faults.chaos_proxy import ChaosProxy
from tests.faults.postgres_proxies import PostgresProxy, postgres_proxy
from tests.redis_server import RedisServer
from tests.waiting import until

pytest_plugins = ["tests.store_fixtures"]

BUDGETS = [
    {"scope": "run", "match": "strict", "requests": 10, "on_pressure": ["refuse"]},
    {"scope": "run", "match": "lenient", "requests": 10, "on_pressure": ["refuse"], "on_outage": "allow"},
]
OUTBOX_CAP = 1_000


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@contextlib.contextmanager
def behind_proxy(loop: LoopThread, redis: RedisServer) -> Iterator[ChaosProxy]:
    async def make() -> ChaosProxy:
        proxy = ChaosProxy(redis.port)
        await proxy.start()
        return proxy

    proxy = loop.run(make())
    try:
        yield proxy
    finally:
        loop.run(proxy.close())


@contextlib.contextmanager
def behind_line(loop: LoopThread, url: str) -> Iterator[PostgresProxy]:
    opened = postgres_proxy(url)
    proxy = loop.run(opened.__aenter__())
    try:
        yield proxy
    finally:
        loop.run(opened.__aexit__(None, None, None))


@pytest.fixture
def empty_redis(redis_server: RedisServer) -> RedisServer:
    redis_server.command("FLUSHALL")
    return redis_server


def call(gateway: FareboxProcess, workflow: str, run: str) -> Reply:
    return gateway.chat("hi", tagged(workflow, run), "mock", max_tokens=20)


def is_ready(gateway: FareboxProcess) -> bool:
    return gateway.get("/readyz").status == 200


def code_of(reply: Reply) -> str:
    return str(reply.json()["error"]["code"]) if reply.status != 200 else ""


def stored_calls(store: str, run: str) -> list[Any]:
    return [row for row in asyncio.run(rows_of(store, run)) if row["status"] == "ok"]


def when_stored(store: str, run: str, count: int) -> list[Any]:
    """The rows of answered calls, once there are this many."""
    until(lambda: len(stored_calls(store, run)) >= count, 20, f"{count} rows of {run}")
    return stored_calls(store, run)


def test_stalled_redis_refuses_at_once_unless_the_budget_says_on_outage_allow(
    empty_redis: RedisServer, postgres_url: str, loop: LoopThread, tmp_path: Path
) -> None:
    with behind_proxy(loop, empty_redis) as proxy:
        config = settings_for(proxy.url, postgres_url, budgets=BUDGETS)
        with running_farebox(tmp_path, config) as gateway:
            assert [call(gateway, name, f"{name}-1").status for name in ("strict", "lenient")] == [200, 200]
            loop.do(proxy.stall)
            took_ms, refused = timed(lambda: call(gateway, "strict", "strict-1"), 40)
            assert {(reply.status, code_of(reply), reply.headers["retry-after"]) for reply in refused} == {
                (503, "ledger_unavailable", "1")
            }
            # The first ones wait for the deadline; once the breaker is open nobody waits.
            assert statistics.median(took_ms) < FAST_MS
            assert gateway.get("/readyz").status == 503
            allowed = [call(gateway, "lenient", "lenient-1") for _ in range(12)]
            assert [reply.status for reply in allowed] == [200] * 9 + [503] * 3
            assert int(gateway.get("/readyz?verbose").json()["ledger"]["spooled"]) >= 9
            loop.do(proxy.resume)
            until(lambda: is_ready(gateway), 20, "the gateway is ready again")
            after = [call(gateway, name, f"{name}-1") for name in ("strict", "lenient")]
            assert [(reply.status, code_of(reply)) for reply in after] == [(200, ""), (402, "run_budget_exceeded")]
            rows = when_stored(postgres_url, "lenient-1", 10)
            assert len({row["id"] for row in rows}) == len(rows) == 10


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_30_s_redis_stall_delays_no_call_beyond_its_deadline(
    empty_redis: RedisServer, postgres_url: str, loop: LoopThread, tmp_path: Path
) -> None:
    """Sixteen clients keep calling: the first calls wait for their deadline, and later ones for nothing."""
    with behind_proxy(loop, empty_redis) as proxy:
        config = settings_for(proxy.url, postgres_url, budgets=BUDGETS)
        with running_farebox(tmp_path, config) as gateway:
            assert call(gateway, "strict", "strict-30").status == 200
            loop.do(proxy.stall)
            ends_s = time.monotonic() + 30

            def ask(_: int) -> list[tuple[float, Reply]]:
                answers = []
                while time.monotonic() < ends_s:
                    took_ms, (reply,) = timed(lambda: call(gateway, "strict", "strict-30"), 1)
                    answers.append((took_ms[0], reply))
                    time.sleep(0.1)
                return answers

            with ThreadPoolExecutor(16) as pool:
                answers = [answer for client in pool.map(ask, range(16)) for answer in client]
            took_ms = sorted(duration_s for duration_s, _ in answers)
            p50, p99 = statistics.median(took_ms), took_ms[int(len(took_ms) * 0.99)]
            print(
                f"{len(answers)} calls in a stall of 30 s: p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {took_ms[-1]:.1f} ms"
            )
            assert {code_of(reply) for _, reply in answers} == {"ledger_unavailable"}
            assert p99 < FAST_MS
            loop.do(proxy.resume)
            until(lambda: is_ready(gateway), 20, "the gateway is ready again")
            assert call(gateway, "strict", "strict-30").status == 200


def test_flushed_redis_is_rebuilt_before_calls_are_granted(
    empty_redis: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    config = settings_for(empty_redis.url, postgres_url, budgets=BUDGETS)
    with running_farebox(tmp_path, config) as gateway:
        assert [call(gateway, "strict", "strict-2").status for _ in range(7)] == [200] * 7
        assert call(gateway, "strict", "cancelled-2").status == 200
        assert gateway.request("POST", "/api/runs/cancelled-2/cancel").status == 200
        # At once: some of the seven are not in the store yet, and are counted all the same.
        empty_redis.command("FLUSHALL")
        answered: list[int] = []
        while 402 not in answered:
            answered.append(call(gateway, "strict", "strict-2").status)
            assert len(answered) < 50, answered
            if answered[-1] == 503:
                time.sleep(0.1)
        assert answered.count(200) == 3
        stopped = call(gateway, "strict", "cancelled-2")
        assert (stopped.status, code_of(stopped)) == (402, "run_cancelled"), "a cancelled run stays cancelled"
        assert len(when_stored(postgres_url, "strict-2", 10)) == 10
        assert "ledger_rebuilt" in gateway.log


def test_calls_during_a_postgres_outage_are_served_until_the_outbox_is_full(
    empty_redis: RedisServer, postgres_url: str, loop: LoopThread, tmp_path: Path
) -> None:
    with behind_line(loop, postgres_url) as proxy:
        config = settings_for(empty_redis.url, proxy.url, budgets=BUDGETS, storage={"outbox_cap": OUTBOX_CAP})
        with running_farebox(tmp_path, config) as gateway:
            assert call(gateway, "strict", "strict-3").status == 200
            loop.do(proxy.cut)
            assert [call(gateway, "strict", "strict-3").status for _ in range(5)] == [200] * 5
            assert is_ready(gateway)
            fill_outbox(gateway)
            until(lambda: not is_ready(gateway), 20, "a gateway whose outbox is full is not ready")
            # A Redis that is slow just now is `ledger_unavailable` at first.
            until(lambda: code_of(call(gateway, "strict", "strict-3")) == "outbox_full", 20, "the call is refused")
            assert gateway.chat("hi", None, "mock", max_tokens=5).status == 200, "nothing is enforced for this call"
            until(lambda: "outbox_nearly_full" in gateway.log, 10, "somebody is told")
            loop.do(proxy.restore)
            until(lambda: is_ready(gateway), 40, "the outbox is empty again")
            assert call(gateway, "strict", "strict-3").status == 200
            rows = when_stored(postgres_url, "strict-3", 7)
            assert len({row["id"] for row in rows}) == len(rows) == 7


def fill_outbox(gateway: FareboxProcess) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = pool.map(lambda _: gateway.chat("hi", None, "mock", max_tokens=5).status, range(OUTBOX_CAP))
        assert set(replies) == {200}


def timed(action: Callable[[], Reply], times: int) -> tuple[list[float], list[Reply]]:
    took_ms, replies = [], []
    for _ in range(times):
        started = time.monotonic()
        replies.append(action())
        took_ms.append((time.monotonic() - started) * 1000)
    return took_ms, replies
