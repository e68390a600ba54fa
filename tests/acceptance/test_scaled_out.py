"""Several gateway processes on one Redis and one Postgres: budgets hold across all of them, also while processes are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.ledger.redis import RedisLedger
from policies.reservation import Balance
from tests.acceptance.scaled_out import Crowd, Fleet, rows_of, settings_for, spooled_in, until
from tests.acceptance.serving import ProviderThread
from tests.farebox_process import FareboxProcess, Reply, fake_model, running_farebox, tagged
from tests.postgres_server import execute, with_database
from tests.redis_server import RedisServer
from tests.waiting import eventually

pytest_plugins = ["tests.store_fixtures"]

CALLS = 120  # what the run's budget pays for
CLIENTS = 64
# Three in every test run; the others with `make soak`.
SEEDS = [pytest.param(range(3), id="3"), pytest.param(range(3, 20), id="17", marks=pytest.mark.soak)]
BUDGET = {"scope": "run", "match": "crowd", "requests": CALLS, "on_pressure": ["refuse"]}


@pytest.fixture(scope="module")
def store_url(postgres_server_url: str, postgres_template: str) -> Iterator[str]:
    """A migrated database for the whole module."""
    name = f"farebox_test_{uuid.uuid4().hex[:12]}"
    asyncio.run(execute(postgres_server_url, f"CREATE DATABASE {name} TEMPLATE {postgres_template}"))
    yield with_database(postgres_server_url, name)
    asyncio.run(execute(postgres_server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@pytest.fixture(scope="module")
def fleet(redis_server: RedisServer, store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    config = settings_for(redis_server.url, store_url, budgets=[BUDGET])
    started = Fleet(tmp_path_factory.mktemp("fleet"), config, size=4)
    try:
        started.start()
        yield started
    finally:
        started.kill()


@contextlib.asynccontextmanager
async def open_ledger(url: str) -> AsyncIterator[RedisLedger]:
    ledger = RedisLedger(url, deadline_ms=10_000)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def balance_of(url: str, run: str) -> Balance:
    async with open_ledger(url) as ledger:
        return (await ledger.balances("default", [f"run/{run}"]))[0]


async def kill_and_restart(fleet: Fleet, seed: int, kills: int) -> None:
    """kill -9 at moments that the seed chooses; the process comes back on another port."""
    chance = random.Random(seed)
    for _ in range(kills):
        await asyncio.sleep(0.1 + chance.random() * 0.5)
        gateway = chance.choice(fleet.gateways)
        await asyncio.to_thread(gateway.kill)
        await asyncio.to_thread(gateway.start)


async def until_resolved(redis: RedisServer, gateways: list[FareboxProcess], within_s: float = 80) -> None:
    """Outbox entries that a killed process had read are taken over by another one after 30 s."""

    async def is_resolved() -> bool:
        spooled = [await asyncio.to_thread(spooled_in, gateway) for gateway in gateways]
        async with open_ledger(redis.url) as ledger:
            return not any(spooled) and not await ledger.pending("default") and await ledger.outbox_size() == 0

    await until(is_resolved, within_s, "every hold is resolved and every event in the store")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", SEEDS)
async def test_run_budget_holds_across_4_gateways_while_they_are_killed(
    fleet: Fleet, redis_server: RedisServer, store_url: str, seeds: range
) -> None:
    crowds = []
    for seed in seeds:
        crowds.append(Crowd(lambda: [gateway.url for gateway in fleet.gateways], f"kills-{seed}", seed))
        dying = asyncio.create_task(kill_and_restart(fleet, seed, kills=2))
        await crowds[-1].call_until_refused(CLIENTS)
        await dying
    await until_resolved(redis_server, fleet.gateways)
    for crowd in crowds:
        await check_accounts(crowd, redis_server, store_url)


async def check_accounts(crowd: Crowd, redis_server: RedisServer, store_url: str) -> None:
    """Every granted call is settled, or was charged when its process had died, and is in the store once."""
    balance = await balance_of(redis_server.url, crowd.run)
    rows = await rows_of(store_url, crowd.run)
    spent = [row for row in rows if row["requests"]]
    assert balance.reserved.requests == 0
    assert crowd.granted <= balance.settled.requests <= CALLS, crowd.statuses
    assert len({row["id"] for row in rows}) == len(rows)
    assert sum(row["requests"] for row in spent) == balance.settled.requests
    assert sum(row["total_tokens"] for row in spent) == balance.settled.tokens
    assert sum(row["cost_nano_usd"] for row in spent) == balance.settled.nano_usd
    assert sum(row["status"] == "ok" for row in spent) >= crowd.granted, crowd.statuses


async def test_run_is_granted_exactly_its_budget_across_4_gateways(
    fleet: Fleet, redis_server: RedisServer, store_url: str
) -> None:
    crowd = Crowd(lambda: [gateway.url for gateway in fleet.gateways], "whole", 0)
    await crowd.call_until_refused(CLIENTS)
    assert crowd.granted == CALLS, crowd.statuses
    assert crowd.statuses["402 run_budget_exceeded"] == CLIENTS, crowd.statuses
    await until_resolved(redis_server, fleet.gateways)
    assert (await balance_of(redis_server.url, "whole")).settled.requests == CALLS
    rows = await rows_of(store_url, "whole")
    assert sum(row["status"] == "ok" for row in rows) == CALLS


async def test_settled_calls_are_visible_on_every_gateway(fleet: Fleet) -> None:
    for gateway in [*fleet.gateways, *fleet.gateways]:
        reply = await asyncio.to_thread(gateway.chat, "hi", tagged("crowd", "alike"), "mock", max_tokens=20)
        assert reply.status == 200, reply.body
    counts = [await calls_left_after_one_more(gateway, "alike") for gateway in fleet.gateways]
    assert counts == [CALLS - 8 - number - 1 for number in range(4)]


async def test_idempotency_keys_and_cache_are_shared_by_all_gateways(fleet: Fleet) -> None:
    headers = {**tagged("crowd", "idempotent"), "idempotency-key": "all-of-them"}
    calls = [retried_chat(gateway, "hi", headers) for gateway in fleet.gateways * 3]
    replies = await asyncio.gather(*calls)
    assert sum("idempotent-replayed" not in reply.headers for reply in replies) == 1
    assert len({reply.body for reply in replies}) == 1
    with_cache = {**tagged("crowd", "idempotent"), "x-farebox-cache": "600"}
    cached = [await retried_chat(gateway, "cached", with_cache) for gateway in fleet.gateways]
    assert [reply.headers.get("x-farebox-cache") for reply in cached] == [None, "hit", "hit", "hit"]


async def retried_chat(gateway: FareboxProcess, content: str, headers: dict[str, str]) -> Reply:
    """Calls as a client does that retries when told to: for a call in flight, or a Redis that a busy machine slowed down."""
    for _ in range(50):
        reply = await asyncio.to_thread(gateway.chat, content, headers, "mock")
        if reply.status not in (409, 503):
            break
        await asyncio.sleep(0.2)
    assert reply.status == 200, reply.body
    return reply


async def calls_left_after_one_more(gateway: FareboxProcess, run: str) -> int:
    """As this gateway's API shows them."""
    reply = await asyncio.to_thread(gateway.chat, "hi", tagged("crowd", run), "mock", max_tokens=20)
    assert reply.status == 200, reply.body
    run_view = (await asyncio.to_thread(gateway.get, f"/api/runs/{run}")).json()
    return int(run_view["requests"]["remaining"])


async def test_run_first_seen_under_two_workflows_at_once_keeps_its_budget(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    """Neither finds it in the store yet."""
    calls = [
        asyncio.to_thread(gateway.chat, "hi", tagged(workflow, "both"), "mock")
        for gateway, workflow in zip(fleet.gateways, ("crowd", "elsewhere"), strict=False)
    ]
    assert [reply.status for reply in await asyncio.gather(*calls)] == [200, 200]
    assert (await balance_of(redis_server.url, "both")).limit.requests == CALLS


def metric_of(gateway: FareboxProcess, name: str, label: str = "") -> float:
    """The sum of a metric's samples with this label."""
    lines = gateway.get("/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and label in line)


async def has_logged(gateway: FareboxProcess, event: str) -> bool:
    return event in gateway.log


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds the workers of a gateway in /proc, which only Linux has"
)


def workers_of(gateway: FareboxProcess) -> list[int]:
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@needs_proc
async def test_workers_share_a_budget_and_a_killed_worker_is_replaced(
    redis_server: RedisServer, store_url: str, tmp_path: Path
) -> None:
    config = settings_for(redis_server.url, store_url, budgets=[BUDGET])
    with running_farebox(tmp_path, config, arguments=("--workers", "4")) as gateway:
        crowd = Crowd(lambda: [gateway.url], "workers", 7)
        calling = asyncio.create_task(crowd.call_until_refused(CLIENTS))
        await asyncio.sleep(0.5)
        os.kill(workers_of(gateway)[0], signal.SIGKILL)
        await calling
        await until_resolved(redis_server, [gateway])
        balance = await balance_of(redis_server.url, "workers")
        assert crowd.granted <= balance.settled.requests <= CALLS, (crowd.statuses, gateway.log)
        await until(lambda: has_logged(gateway, "worker_died"), 10, "the worker is replaced")
        # Each worker reports the metrics of all workers, also of the dead one.
        counted = {metric_of(gateway, "farebox_requests_total{", 'status="ok"') for _ in range(8)}
        assert len(counted) == 1
        assert crowd.granted <= counted.pop() <= CALLS
        assert metric_of(gateway, "farebox_calls_in_flight ") == 0
        started = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - started < 20


@contextlib.asynccontextmanager
async def workers_with_a_call(
    folder: Path, config: dict[str, Any], delay_ms: int
) -> AsyncIterator[tuple[FareboxProcess, asyncio.Task[Reply]]]:
    """A gateway of two workers, one of which waits for the provider's answer."""
    with ProviderThread() as provider:
        provider.script(delay_ms=delay_ms, times=None)
        config["model_list"].append(fake_model(provider.openai_url))
        with running_farebox(folder, config, arguments=("--workers", "2")) as gateway:
            calling = asyncio.create_task(asyncio.to_thread(gateway.chat, "hi", tagged("wf", "in-flight")))
            await eventually(lambda: provider.requests, 10, "the call is in flight")
            yield gateway, calling


@needs_proc
async def test_sigint_to_all_processes_lets_calls_in_flight_end(
    redis_server: RedisServer, store_url: str, tmp_path: Path
) -> None:
    """A terminal signals every process of its group, and the parent signals the workers once more."""
    config = settings_for(redis_server.url, store_url, server={"drain_seconds": 20.0})
    async with workers_with_a_call(tmp_path, config, delay_ms=2_000) as (gateway, calling):
        for pid in (*workers_of(gateway), gateway.pid):
            os.kill(pid, signal.SIGINT)
        assert (await calling).status == 200
        assert gateway.process is not None
        assert await asyncio.to_thread(gateway.process.wait, 30) == 0
        assert "Traceback" not in gateway.log


async def refuses_connections(gateway: FareboxProcess) -> bool:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def have_ended(workers: Sequence[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in workers)


@needs_proc
@pytest.mark.usefixtures("hangups_count")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=["stopped", "hangup", "killed"])
async def test_new_connections_are_refused_while_workers_finish_their_calls(
    redis_server: RedisServer, store_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    """While a process still holds the listening socket, new connections wait in its backlog and are never answered."""
    config = settings_for(redis_server.url, store_url, server={"drain_seconds": 20.0})
    async with workers_with_a_call(tmp_path, config, delay_ms=5_000) as (gateway, calling):
        workers = workers_of(gateway)
        os.kill(gateway.pid, number)
        await until(lambda: refuses_connections(gateway), 4, "new connections are refused")
        assert not calling.done()
        assert (await calling).status == 200
        assert gateway.process is not None
        code = await asyncio.to_thread(gateway.process.wait, 30)
        assert code == (-signal.SIGKILL if number is signal.SIGKILL else 0)
        await until(lambda: have_ended(workers), 10, "every worker has ended")
