"""Redis is flushed, replaced or restarts with older data: nothing is granted before settled usage is restored."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.bookkeeping.flusher import Flusher
from gateway.bookkeeping.reconcile import RunRows, reconcile
from gateway.ledger.port import CountersMissing, EntryKind, LedgerUnavailable, OutboxEntry, Restore, UnsavedEntries
from gateway.ledger.redis import RedisLedger
from gateway.ledger.redis_scripts import FENCE
from gateway.store.database import Database
from policies.reservation import KEEP_MS, Granted, Refusal, Refused
from tests.faults.redis_ledgers import (
    LONG_DEADLINE_MS,
    ledger_at,
    reserve_request,
    retry_until_available,
    settled_and_reserved,
    tokens,
)
from tests.redis_server import RedisServer, running_server
from tests.store_events import NOW_MS
from tests.waiting import eventually


class Store:
    """The settled tokens of each account in the store, and which projects were rebuilt from it."""

    def __init__(self) -> None:
        self.settled: dict[str, int] = {}
        self.rebuilds: list[str] = []
        self.unsaved: list[str] = []
        self.ready = asyncio.Event()
        self.ready.set()

    async def rebuild(self, project: str, restore: Restore, unsaved: UnsavedEntries) -> None:
        self.rebuilds.append(project)
        self.unsaved = [entry.id async for entries in unsaved for entry in entries]
        await self.ready.wait()
        for account, count in self.settled.items():
            await restore(account, tokens(count), KEEP_MS, None, None)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def ledger(server: RedisServer, store: Store) -> AsyncIterator[RedisLedger]:
    async with ledger_at(server.url, rebuild=store.rebuild) as opened:
        yield opened


async def settle_and_store(ledger: RedisLedger, store: Store, counts: Mapping[str, int]) -> None:
    """Settle calls whose events have reached the store."""
    for name, count in counts.items():
        await ledger.reserve("p", reserve_request(name, count))
        await ledger.settle("p", name, tokens(count), b"{}")
        store.settled["run:r"] = store.settled.get("run:r", 0) + count


async def test_flushed_redis_restores_settled_usage_before_granting(
    server: RedisServer, ledger: RedisLedger, store: Store
) -> None:
    await settle_and_store(ledger, store, {"c1": 60, "c2": 30})
    before = await ledger.epoch()
    server.command("FLUSHALL")
    refusal = await ledger.reserve("p", reserve_request("c3", 20))
    assert isinstance(refusal, Refused)
    assert (refusal.reason, refusal.balance.settled) == (Refusal.EXCEEDED, tokens(90))
    assert isinstance(await ledger.reserve("p", reserve_request("c4", 10)), Granted)
    assert await ledger.epoch() != before
    assert store.rebuilds == ["p", "p"]


@pytest.mark.parametrize("carrier", ["nobody", "another"])
async def test_unsaved_outbox_events_are_given_to_the_rebuild(
    server: RedisServer, ledger: RedisLedger, store: Store, carrier: str
) -> None:
    """Also events that another process has read and not stored yet, and also if only the epoch was lost."""
    for name in ("c1", "c2"):
        await ledger.reserve("p", reserve_request(name, 30))
        await ledger.settle("p", name, tokens(30), b"{}")
    if carrier == "another":
        assert len(await ledger.outbox_read("another")) == 2
    server.command("HDEL", "farebox:{p}:meta", "epoch")
    # What the store sums up once it has those events.
    store.settled["run:r"] = 60
    assert await settled_and_reserved(ledger) == (60, 0)
    # The owner writes its own copies of them again; equal ids make them one.
    assert set(store.unsaved) == {"c1", "c2"}


async def test_new_project_is_rebuilt_from_the_store_once(
    server: RedisServer, ledger: RedisLedger, store: Store
) -> None:
    store.settled["run:r"] = 95
    await asyncio.gather(*(ledger.reserve("p", reserve_request(f"c{number}", 1)) for number in range(20)))
    assert await settled_and_reserved(ledger) == (95, 5)
    assert store.rebuilds == ["p"]
    assert server.command("EXISTS", "farebox:{p}:rebuild") == ":0\r\n", "the lock was not released"


async def test_new_project_does_not_change_the_epoch(ledger: RedisLedger) -> None:
    before = await ledger.epoch()
    await ledger.reserve("p", reserve_request("c1"))
    await ledger.reserve("q", reserve_request("c1"))
    assert await ledger.epoch() == before


async def test_nothing_is_granted_until_the_rebuild_has_finished(server: RedisServer, store: Store) -> None:
    async with ledger_at(server.url, rebuild=store.rebuild, deadline_ms=300) as ledger:
        await retry_until_available(lambda: settle_and_store(ledger, store, {"c1": 90}))
        store.ready.clear()
        server.command("FLUSHALL")
        for _ in range(3):
            with pytest.raises(CountersMissing, match="are being restored"):
                await ledger.reserve("p", reserve_request("c2", 20))
        store.ready.set()
        refusal = await retry_until_available(lambda: ledger.reserve("p", reserve_request("c2", 20)))
        assert isinstance(refusal, Refused)


async def test_failed_rebuild_is_repeated_by_the_next_call(server: RedisServer) -> None:
    rebuilds = 0

    async def rebuild(project: str, restore: Restore, unsaved: UnsavedEntries) -> None:
        nonlocal rebuilds
        rebuilds += 1
        if rebuilds == 1:
            raise LedgerUnavailable("the store is away")
        await restore("run:r", tokens(95), KEEP_MS, None, None)

    async with ledger_at(server.url, rebuild=rebuild) as ledger:
        with pytest.raises(LedgerUnavailable, match="the store is away"):
            await ledger.reserve("p", reserve_request("c1"))
        assert isinstance(await ledger.reserve("p", reserve_request("c1")), Refused)


async def test_only_one_of_two_gateways_rebuilds(server: RedisServer, store: Store) -> None:
    async with (
        ledger_at(server.url, rebuild=store.rebuild) as first,
        ledger_at(server.url, rebuild=store.rebuild) as second,
    ):
        await settle_and_store(first, store, {"c1": 50})
        await second.balances("p", ["run:r"])
        store.rebuilds.clear()
        server.command("FLUSHALL")
        decisions = await asyncio.gather(
            *(first.reserve("p", reserve_request(f"a{number}", 1)) for number in range(50)),
            *(second.reserve("p", reserve_request(f"b{number}", 1)) for number in range(50)),
        )
        assert sum(isinstance(decisionst, Granted) for decisionst in decisions) == 50
        assert store.rebuilds == ["p"]
        assert await settled_and_reserved(second) == (50, 50)


async def test_rebuild_lock_of_a_dead_gateway_expires(server: RedisServer, store: Store) -> None:
    store.settled["run:r"] = 95
    # The lock of a process that died while it held it.
    server.command("SET", "farebox:{p}:rebuild", "dead", "PX", 500)
    async with ledger_at(server.url, rebuild=store.rebuild) as ledger:
        assert isinstance(await ledger.reserve("p", reserve_request("c1")), Refused)


async def test_flushes_under_load_lose_no_more_than_the_open_holds(
    server: RedisServer, ledger: RedisLedger, store: Store
) -> None:
    """Callers continue while Redis is flushed three times."""
    budget = 400

    async def caller(name: int) -> None:
        for number in range(60):
            reservation_id = f"{name}-{number}"
            if isinstance(await ledger.reserve("p", reserve_request(reservation_id, 1, limit=budget)), Granted):
                # The store is updated first, as if every event had been flushed before Redis was lost.
                store.settled["run:r"] = store.settled.get("run:r", 0) + 1
                done = await ledger.settle("p", reservation_id, tokens(1), b"{}")
                assert done.state is None or done.first

    callers = [asyncio.create_task(caller(name)) for name in range(10)]
    for _ in range(3):
        await asyncio.sleep(0.05)
        server.command("FLUSHALL")
    await asyncio.gather(*callers)
    # At each of the three losses, ten callers may hold one token each: only those holds are lost.
    assert store.settled["run:r"] <= budget + 3 * 10


async def test_lost_reservation_is_booked_once_by_its_owner(
    server: RedisServer, ledger: RedisLedger, store: Store
) -> None:
    request = reserve_request("c1", 40)
    await ledger.reserve("p", request)
    server.command("FLUSHALL")
    assert (await ledger.settle("p", "c1", tokens(30), b"{}")).state is None
    done = await ledger.book("p", request, tokens(40), tokens(30), b'{"late":1}')
    assert (done.first, done.booked, done.balances[0].limit.tokens) == (True, tokens(30), 100)
    again = await ledger.book("p", request, tokens(40), tokens(30), b'{"late":1}')
    assert (again.first, again.booked) == (False, tokens(30))
    assert await settled_and_reserved(ledger) == (30, 0)
    (entry,) = await ledger.outbox_read("f")
    assert (entry.id, entry.amount, entry.draft, entry.detail) == ("c1", tokens(30), request.draft, b'{"late":1}')


async def test_older_data_is_detected_and_rebuilt(server: RedisServer, ledger: RedisLedger, store: Store) -> None:
    """As after a failover to a lagging replica, or a restart from an old snapshot."""
    await settle_and_store(ledger, store, {"c1": 60})
    old = {
        key: server.command("HGETALL", key).split("\r\n")[2::2]
        for key in ("farebox:{p}:meta", "farebox:{p}:account:run:r")
    }
    epoch = await ledger.epoch()
    await asyncio.sleep(0.01)
    await settle_and_store(ledger, store, {"c2": 30})
    for key, words in old.items():
        server.command("HSET", key, *words[:-1] if len(words) % 2 else words)
    refusal = await ledger.reserve("p", reserve_request("c3", 20))
    assert isinstance(refusal, Refused)
    assert refusal.balance.settled == tokens(90)
    assert await ledger.epoch() != epoch


async def test_late_fence_does_not_close_a_project_that_was_restored_since(
    server: RedisServer, ledger: RedisLedger, store: Store
) -> None:
    """A process that met the older data, but was suspended until another had restored the project."""
    await settle_and_store(ledger, store, {"c1": 60})
    reply = server.command("EVAL", FENCE.text, 1, "farebox:{p}:meta", "the epoch before")
    assert not reply.startswith("-"), reply
    await settle_and_store(ledger, store, {"c2": 30})
    assert store.rebuilds == ["p"]


async def test_flush_without_a_store_starts_empty_with_a_new_epoch(server: RedisServer) -> None:
    async with ledger_at(server.url) as ledger:
        await ledger.reserve("p", reserve_request("c1", 60))
        before = await ledger.epoch()
        server.command("FLUSHALL")
        assert isinstance(await ledger.reserve("p", reserve_request("c2", 60)), Granted)
        assert await ledger.epoch() != before


async def test_slow_rebuild_keeps_its_lock(server: RedisServer, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.ledger.redis_projects._LOCK_MS", 1_000)
    store.ready.clear()
    store.settled["run:r"] = 95
    async with (
        ledger_at(server.url, rebuild=store.rebuild) as first,
        ledger_at(server.url, rebuild=store.rebuild) as second,
    ):
        reserving = [asyncio.create_task(gateway.reserve("p", reserve_request("c1"))) for gateway in (first, second)]
        await asyncio.sleep(2.5)
        store.ready.set()
        async with asyncio.timeout(LONG_DEADLINE_MS / 1000):
            decisions = await asyncio.gather(*reserving)
        assert all(isinstance(decision, Refused) for decision in decisions)
        assert store.rebuilds == ["p"]


async def test_stalled_rebuild_does_not_overwrite_a_newer_one(server: RedisServer) -> None:
    """The lock of the first process expired, another one rebuilt the project, and calls were settled since."""
    slow, quick = Store(), Store()
    slow.settled["run:r"] = quick.settled["run:r"] = 50
    slow.ready.clear()
    async with (
        ledger_at(server.url, rebuild=slow.rebuild) as first,
        ledger_at(server.url, rebuild=quick.rebuild) as second,
    ):
        reserving = asyncio.create_task(first.reserve("p", reserve_request("c1", 20)))
        await eventually(lambda: bool(slow.rebuilds))
        server.command("DEL", "farebox:{p}:rebuild")
        await settle_and_store(second, quick, {"c2": 40})
        slow.ready.set()
        with pytest.raises(CountersMissing, match="another process"):
            await reserving
        assert await settled_and_reserved(second) == (90, 0)
        assert isinstance(await first.reserve("p", reserve_request("c3", 20)), Refused)


async def test_events_not_yet_stored_are_written_to_the_outbox_again(server: RedisServer, store: Store) -> None:
    """Each gateway writes its own events again: the store recognises those it has by their ids."""
    async with (
        ledger_at(server.url, rebuild=store.rebuild) as first,
        ledger_at(server.url, rebuild=store.rebuild) as second,
    ):
        await settle_and_store(first, store, {"c1": 5, "c2": 6})
        await settle_and_store(second, store, {"c3": 7})
        untagged = OutboxEntry("", "e1", EntryKind.RECORDED, "p", tokens(1), 0, b"{}")
        await second.record("p", [untagged])
        await settle_and_store(first, store, {"other": 1})
        written = {(entry.id, entry.amount, entry.draft, entry.detail) for entry in await first.outbox_read("f")}
        before_ms = await first.now_ms()
        server.command("FLUSHALL")
        assert await settled_and_reserved(first) == (19, 0)
        assert await settled_and_reserved(second) == (19, 0)
        again = {(entry.id, entry.amount, entry.draft, entry.detail) for entry in await first.outbox_read("f")}
        assert again == written
        assert all(0 < entry.at_ms <= before_ms for entry in await first.outbox_read("f"))


class RedisDisk:
    """The disk of a Redis that syncs its log every second: a power cut loses what came after the last sync."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._synced = 0

    @property
    def _log(self) -> Path:
        (log_file,) = (self._server.directory / "appendonlydir").glob("*.incr.aof")
        return log_file

    def sync(self) -> None:
        self._synced = self._log.stat().st_size

    def cut(self, torn_bytes: int = 0) -> None:
        """Lose all that came after the last sync, except some bytes of a torn record."""
        self._server.kill()
        os.truncate(self._log, self._synced + torn_bytes)
        self._server.start()


@pytest.mark.parametrize("torn_bytes", [0, 7])
async def test_power_cut_of_redis_under_load_exceeds_the_budget_only_by_open_holds(
    store: Store, torn_bytes: int
) -> None:
    """The store has every event; Redis loses half of them with the tail of its log."""
    budget = 400
    with running_server() as own:
        disk = RedisDisk(own)
        async with ledger_at(own.url, rebuild=store.rebuild) as ledger:

            async def caller(name: int) -> None:
                for number in itertools.count():
                    await asyncio.sleep(0)
                    with contextlib.suppress(LedgerUnavailable):
                        request = reserve_request(f"{name}-{number}", 1, limit=budget)
                        if isinstance(await ledger.reserve("p", request), Refused):
                            return
                        store.settled["run:r"] = store.settled.get("run:r", 0) + 1
                        await ledger.settle("p", request.id, tokens(1), b"{}")

            callers = [asyncio.create_task(caller(name)) for name in range(10)]
            await eventually(lambda: store.settled.get("run:r", 0) >= 100)
            disk.sync()
            await eventually(lambda: store.settled["run:r"] >= 200)
            before = await ledger.epoch()
            await asyncio.to_thread(disk.cut, torn_bytes)
            async with asyncio.timeout(30):
                await asyncio.gather(*callers)
            settled, reserved = await settled_and_reserved(ledger)
            assert await ledger.epoch() != before
    # Ten callers may hold one token each at the power cut: those holds are lost, or remain until they expire.
    assert budget - 10 <= store.settled["run:r"] <= budget + 10
    assert budget <= settled + reserved <= budget + 10


async def test_power_cut_of_redis_and_gateways_grants_only_the_lost_usage_again(tmp_path: Path) -> None:
    """Only the rows of the store still have the lost second, and reconciling finds exactly that difference."""
    db = Database(f"sqlite:///{tmp_path}/store.db")
    await db.open()
    await db.migrate(NOW_MS)

    async def calls(ledger: RedisLedger, name: str, count: int) -> int:
        granted = 0
        for number in range(count):
            request = replace(
                reserve_request(f"{name}{number}", 1, account="run/r"), draft=b'{"workflow":"w","run":"r","step":"s"}'
            )
            if isinstance(await ledger.reserve("p", request), Granted):
                granted += 1
                await ledger.settle("p", request.id, tokens(1), b"{}")
        await Flusher(ledger, db, consumer="one").drain(LONG_DEADLINE_MS)
        return granted

    with running_server() as own:
        disk = RedisDisk(own)
        async with ledger_at(own.url) as ledger:
            assert await calls(ledger, "a", 40) == 40
            disk.sync()
            assert await calls(ledger, "b", 20) == 20
        await asyncio.to_thread(disk.cut)
        async with ledger_at(own.url) as ledger:
            assert await calls(ledger, "c", 100) == 60  # of a budget of 100: the 20 that were lost are granted again
            flusher = Flusher(ledger, db, consumer="one")
            accounts = {"run/r": RunRows("r")}
            reconciliation = await reconcile(ledger, db, "p", accounts, lambda: flusher.drain(LONG_DEADLINE_MS))
    await db.close()
    (drift,) = reconciliation.drifts
    assert (drift.booked.tokens, drift.stored.tokens) == (100, 120)
