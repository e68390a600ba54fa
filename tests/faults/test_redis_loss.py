"""Redis is flushed, replaced or comes back with older data: nothing is granted before what was settled is restored."""

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
from gateway.ledger.port import CountersMissing, EntryKind, LedgerUnavailable, OutboxEntry
from gateway.ledger.redis import RedisLedger
from gateway.ledger.redis_projects import Restore, Unsaved
from gateway.store.database import Database
from policies.reservation import KEEP_MS, Granted, Refusal, Refused
from tests.faults.redis_fixtures import LONG_DEADLINE_MS, ask, ledger_at, server, shared_server, standing, tokens, until
from tests.redis_server import RedisServer, running_server
from tests.store_events import NOW_MS

__all__ = ["server", "shared_server"]


class Store:
    """What the store knows of each account, and how often it was asked."""

    def __init__(self) -> None:
        self.settled: dict[str, int] = {}
        self.asked: list[str] = []
        self.unsaved: list[str] = []
        self.ready = asyncio.Event()
        self.ready.set()

    async def rebuild(self, project: str, restore: Restore, unsaved: Unsaved) -> None:
        self.asked.append(project)
        self.unsaved = [entry.id async for entries in unsaved for entry in entries]
        await self.ready.wait()
        for account, count in self.settled.items():
            await restore(account, tokens(count), KEEP_MS)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def ledger(server: RedisServer, store: Store) -> AsyncIterator[RedisLedger]:
    async with ledger_at(server.url, rebuild=store.rebuild) as opened:
        yield opened


async def settled_in(ledger: RedisLedger, store: Store, counts: Mapping[str, int]) -> None:
    """Calls that were settled, and have reached the store."""
    for name, count in counts.items():
        await ledger.reserve("p", ask(name, count))
        await ledger.settle("p", name, tokens(count), b"{}")
        store.settled["run:r"] = store.settled.get("run:r", 0) + count


async def test_a_flush_does_not_reset_a_budget(server: RedisServer, ledger: RedisLedger, store: Store) -> None:
    await settled_in(ledger, store, {"c1": 60, "c2": 30})
    before = await ledger.epoch()
    server.command("FLUSHALL")
    no = await ledger.reserve("p", ask("c3", 20))
    assert isinstance(no, Refused)
    assert (no.reason, no.balance.settled) == (Refusal.EXCEEDED, tokens(90))
    assert isinstance(await ledger.reserve("p", ask("c4", 10)), Granted)
    assert await ledger.epoch() != before
    assert store.asked == ["p", "p"]


@pytest.mark.parametrize("carrier", ["nobody", "another"])
async def test_events_on_their_way_are_counted_before_calls_go_on(
    server: RedisServer, ledger: RedisLedger, store: Store, carrier: str
) -> None:
    """Also those that another process has read and not stored yet, and when it is only the epoch that was lost."""
    for name in ("c1", "c2"):
        await ledger.reserve("p", ask(name, 30))
        await ledger.settle("p", name, tokens(30), b"{}")
    if carrier == "another":
        assert len(await ledger.outbox_read("another")) == 2
    server.command("HDEL", "farebox:{p}:meta", "epoch")
    # What the store sums up, once it was given those events.
    store.settled["run:r"] = 60
    assert await standing(ledger) == (60, 0)
    # The owner's memory of them is written again too: their ids make them one.
    assert set(store.unsaved) == {"c1", "c2"}


async def test_a_new_project_is_asked_of_the_store_once(ledger: RedisLedger, store: Store) -> None:
    store.settled["run:r"] = 95
    await asyncio.gather(*(ledger.reserve("p", ask(f"c{number}", 1)) for number in range(20)))
    assert await standing(ledger) == (95, 5)
    assert store.asked == ["p"]


async def test_a_new_project_does_not_change_the_epoch(ledger: RedisLedger) -> None:
    before = await ledger.epoch()
    await ledger.reserve("p", ask("c1"))
    await ledger.reserve("q", ask("c1"))
    assert await ledger.epoch() == before


async def test_while_the_store_is_away_nothing_is_granted(server: RedisServer, store: Store) -> None:
    async with ledger_at(server.url, rebuild=store.rebuild, deadline_ms=300) as ledger:
        async with asyncio.timeout(20):
            while True:
                try:
                    await settled_in(ledger, store, {"c1": 90})
                    break
                except LedgerUnavailable:
                    continue
        store.ready.clear()
        server.command("FLUSHALL")
        for _ in range(3):
            with pytest.raises(CountersMissing, match="are being restored"):
                await ledger.reserve("p", ask("c2", 20))
        store.ready.set()
        async with asyncio.timeout(20):
            while True:
                try:
                    no = await ledger.reserve("p", ask("c2", 20))
                    break
                except LedgerUnavailable:
                    continue
        assert isinstance(no, Refused)


async def test_a_store_that_fails_is_asked_again(server: RedisServer) -> None:
    asked = 0

    async def rebuild(project: str, restore: Restore, unsaved: Unsaved) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise LedgerUnavailable("the store is away")
        await restore("run:r", tokens(95), KEEP_MS)

    async with ledger_at(server.url, rebuild=rebuild) as ledger:
        with pytest.raises(LedgerUnavailable, match="the store is away"):
            await ledger.reserve("p", ask("c1"))
        assert isinstance(await ledger.reserve("p", ask("c1")), Refused)


async def test_one_of_many_gateways_restores(server: RedisServer, store: Store) -> None:
    async with ledger_at(server.url, rebuild=store.rebuild) as one, ledger_at(server.url, rebuild=store.rebuild) as two:
        await settled_in(one, store, {"c1": 50})
        await two.balances("p", ["run:r"])
        store.asked.clear()
        server.command("FLUSHALL")
        decisions = await asyncio.gather(
            *(one.reserve("p", ask(f"a{number}", 1)) for number in range(50)),
            *(two.reserve("p", ask(f"b{number}", 1)) for number in range(50)),
        )
        assert sum(isinstance(one, Granted) for one in decisions) == 50
        assert store.asked == ["p"]
        assert await standing(two) == (50, 50)


async def test_a_gateway_that_dies_while_it_restores_is_replaced(server: RedisServer, store: Store) -> None:
    store.settled["run:r"] = 95
    # The lock of a process that took it and died.
    server.command("SET", "farebox:{p}:rebuild", "dead", "PX", 500)
    async with ledger_at(server.url, rebuild=store.rebuild) as ledger:
        assert isinstance(await ledger.reserve("p", ask("c1")), Refused)


async def test_under_load_a_flush_grants_nothing_twice(server: RedisServer, ledger: RedisLedger, store: Store) -> None:
    """Callers go on while Redis is flushed three times: what was settled never passes the budget."""
    budget = 400

    async def caller(name: int) -> None:
        for number in range(60):
            reservation_id = f"{name}-{number}"
            if isinstance(await ledger.reserve("p", ask(reservation_id, 1, limit=budget)), Granted):
                # The store hears of it first, as when every event was flushed before Redis was lost.
                store.settled["run:r"] = store.settled.get("run:r", 0) + 1
                done = await ledger.settle("p", reservation_id, tokens(1), b"{}")
                assert done.state is None or done.first

    callers = [asyncio.create_task(caller(name)) for name in range(10)]
    for _ in range(3):
        await asyncio.sleep(0.05)
        server.command("FLUSHALL")
    await asyncio.gather(*callers)
    # Ten callers may hold one token each at the moment of each loss: those holds are what is lost with it.
    assert store.settled["run:r"] <= budget + 3 * 10


async def test_a_reservation_that_was_lost_is_booked_by_its_owner(
    server: RedisServer, ledger: RedisLedger, store: Store
) -> None:
    request = ask("c1", 40)
    await ledger.reserve("p", request)
    server.command("FLUSHALL")
    assert (await ledger.settle("p", "c1", tokens(30), b"{}")).state is None
    done = await ledger.book("p", request, tokens(40), tokens(30), b'{"late":1}')
    assert (done.first, done.booked, done.balances[0].limit.tokens) == (True, tokens(30), 100)
    again = await ledger.book("p", request, tokens(40), tokens(30), b'{"late":1}')
    assert (again.first, again.booked) == (False, tokens(30))
    assert await standing(ledger) == (30, 0)
    (entry,) = await ledger.outbox_read("f")
    assert (entry.id, entry.amount, entry.draft, entry.detail) == ("c1", tokens(30), request.draft, b'{"late":1}')


async def test_data_that_went_back_in_time_is_noticed(server: RedisServer, ledger: RedisLedger, store: Store) -> None:
    """What a failover to a replica behind, or a restart from an old snapshot, does."""
    await settled_in(ledger, store, {"c1": 60})
    old = {
        key: server.command("HGETALL", key).split("\r\n")[2::2]
        for key in ("farebox:{p}:meta", "farebox:{p}:account:run:r")
    }
    epoch = await ledger.epoch()
    await asyncio.sleep(0.01)
    await settled_in(ledger, store, {"c2": 30})
    for key, words in old.items():
        server.command("HSET", key, *words[:-1] if len(words) % 2 else words)
    no = await ledger.reserve("p", ask("c3", 20))
    assert isinstance(no, Refused)
    assert no.balance.settled == tokens(90)
    assert await ledger.epoch() != epoch


async def test_without_a_store_the_ledger_begins_anew_and_says_so(server: RedisServer) -> None:
    async with ledger_at(server.url) as ledger:
        await ledger.reserve("p", ask("c1", 60))
        before = await ledger.epoch()
        server.command("FLUSHALL")
        assert isinstance(await ledger.reserve("p", ask("c2", 60)), Granted)
        assert await ledger.epoch() != before


async def test_a_restore_that_takes_longer_than_its_lock_keeps_it(
    server: RedisServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.redis_projects._LOCK_MS", 300)
    store.ready.clear()
    store.settled["run:r"] = 95
    async with ledger_at(server.url, rebuild=store.rebuild) as one, ledger_at(server.url, rebuild=store.rebuild) as two:
        asking = [asyncio.create_task(gateway.reserve("p", ask("c1"))) for gateway in (one, two)]
        await asyncio.sleep(1.0)
        store.ready.set()
        async with asyncio.timeout(LONG_DEADLINE_MS / 1000):
            decisions = await asyncio.gather(*asking)
        assert all(isinstance(decision, Refused) for decision in decisions)
        assert store.asked == ["p"]


async def test_a_process_that_stood_still_while_it_restored_takes_nothing_back(server: RedisServer) -> None:
    """Its lock ran out, another one restored the project and opened it, and calls were settled since."""
    slow, quick = Store(), Store()
    slow.settled["run:r"] = quick.settled["run:r"] = 50
    slow.ready.clear()
    async with ledger_at(server.url, rebuild=slow.rebuild) as one, ledger_at(server.url, rebuild=quick.rebuild) as two:
        asking = asyncio.create_task(one.reserve("p", ask("c1", 20)))
        await until(lambda: bool(slow.asked))
        server.command("DEL", "farebox:{p}:rebuild")
        await settled_in(two, quick, {"c2": 40})
        slow.ready.set()
        with pytest.raises(CountersMissing, match="another process"):
            await asking
        assert await standing(two) == (90, 0)
        assert isinstance(await one.reserve("p", ask("c3", 20)), Refused)


async def test_events_that_the_store_had_not_yet_are_written_again(server: RedisServer, store: Store) -> None:
    """By every gateway its own: the store knows what it has by the ids."""
    async with ledger_at(server.url, rebuild=store.rebuild) as one, ledger_at(server.url, rebuild=store.rebuild) as two:
        await settled_in(one, store, {"c1": 5, "c2": 6})
        await settled_in(two, store, {"c3": 7})
        untagged = OutboxEntry("", "e1", EntryKind.RECORDED, "p", tokens(1), 0, b"{}")
        await two.record("p", [untagged])
        await settled_in(one, store, {"other": 1})
        written = {(entry.id, entry.amount, entry.draft, entry.detail) for entry in await one.outbox_read("f")}
        before_ms = await one.now_ms()
        server.command("FLUSHALL")
        assert await standing(one) == (19, 0)
        assert await standing(two) == (19, 0)
        again = {(entry.id, entry.amount, entry.draft, entry.detail) for entry in await one.outbox_read("f")}
        assert again == written
        assert all(0 < entry.at_ms <= before_ms for entry in await one.outbox_read("f"))


class Power:
    """A Redis that syncs its log every second, and what its disk has of it when the power goes."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._synced = 0

    @property
    def _log(self) -> Path:
        (found,) = (self._server.directory / "appendonlydir").glob("*.incr.aof")
        return found

    def sync(self) -> None:
        self._synced = self._log.stat().st_size

    def cut(self, torn_bytes: int = 0) -> None:
        """All that came after the last sync is gone, but for some bytes of a record that is torn."""
        self._server.kill()
        os.truncate(self._log, self._synced + torn_bytes)
        self._server.start()


@pytest.mark.parametrize("torn_bytes", [0, 7])
async def test_a_gateway_that_outlives_a_power_cut_grants_nothing_twice(store: Store, torn_bytes: int) -> None:
    """The store has every event; Redis has lost half of the load with the tail of its log."""
    budget = 400
    with running_server("--appendfsync", "everysec") as own:
        power = Power(own)
        async with ledger_at(own.url, rebuild=store.rebuild) as ledger:

            async def caller(name: int) -> None:
                for number in itertools.count():
                    await asyncio.sleep(0)
                    with contextlib.suppress(LedgerUnavailable):
                        request = ask(f"{name}-{number}", 1, limit=budget)
                        if isinstance(await ledger.reserve("p", request), Refused):
                            return
                        store.settled["run:r"] = store.settled.get("run:r", 0) + 1
                        await ledger.settle("p", request.id, tokens(1), b"{}")

            callers = [asyncio.create_task(caller(name)) for name in range(10)]
            await until(lambda: store.settled.get("run:r", 0) >= 100)
            power.sync()
            await until(lambda: store.settled["run:r"] >= 200)
            before = await ledger.epoch()
            await asyncio.to_thread(power.cut, torn_bytes)
            async with asyncio.timeout(30):
                await asyncio.gather(*callers)
            settled, reserved = await standing(ledger)
            assert await ledger.epoch() != before
    # Ten callers may hold one token each when the power goes: those holds are lost, or come back and stay until they expire.
    assert budget - 10 <= store.settled["run:r"] <= budget + 10
    assert budget <= settled + reserved <= budget + 10


async def test_when_the_gateways_lose_their_power_too_no_more_is_granted_than_was_lost(tmp_path: Path) -> None:
    """Nobody remembers the lost second but the rows, and comparing finds exactly it."""
    db = Database(f"sqlite:///{tmp_path}/store.db")
    await db.open()
    await db.migrate(NOW_MS)

    async def calls(ledger: RedisLedger, name: str, count: int) -> int:
        granted = 0
        for number in range(count):
            request = replace(
                ask(f"{name}{number}", 1, account="run/r"), draft=b'{"workflow":"w","run":"r","step":"s"}'
            )
            if isinstance(await ledger.reserve("p", request), Granted):
                granted += 1
                await ledger.settle("p", request.id, tokens(1), b"{}")
        await Flusher(ledger, db, consumer="one").drain(LONG_DEADLINE_MS)
        return granted

    with running_server("--appendfsync", "everysec") as own:
        power = Power(own)
        async with ledger_at(own.url) as ledger:
            assert await calls(ledger, "a", 40) == 40
            power.sync()
            assert await calls(ledger, "b", 20) == 20
        await asyncio.to_thread(power.cut)
        async with ledger_at(own.url) as ledger:
            assert await calls(ledger, "c", 100) == 60  # of a budget of 100: the 20 that were lost a second time
            flusher = Flusher(ledger, db, consumer="one")
            accounts = {"run/r": RunRows("r")}
            found = await reconcile(ledger, db, "p", accounts, lambda: flusher.drain(LONG_DEADLINE_MS))
    await db.close()
    (drift,) = found.drifts
    assert (drift.booked.tokens, drift.stored.tokens) == (100, 120)
