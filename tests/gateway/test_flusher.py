"""The flusher against the in-memory ledger: what is committed is acknowledged, and nothing else is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.bookkeeping.flusher import BACKOFF_MS_MAX, Flusher
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import LedgerUnavailable, OutboxEntry
from gateway.store import usage, usage_event
from gateway.store.database import Database, StoreUnavailable
from gateway.store.usage import InsertCounts
from tests.store_events import NOW_MS, entry, rows_of
from tests.waiting import eventually


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    await database.open()
    await database.migrate(NOW_MS)
    yield database
    await database.close()


@pytest.fixture
async def ledger() -> MemoryLedger:
    return MemoryLedger()


class Sink:
    """Takes batches instead of the store, and fails when told to."""

    def __init__(self) -> None:
        self.stored: dict[str, OutboxEntry] = {}
        self.faults: list[Exception] = []
        self.calls = 0

    async def __call__(self, _db: Database, entries: Sequence[OutboxEntry], _now_ms: int) -> InsertCounts:
        self.calls += 1
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop(0)
        fresh = {entry.id: entry for entry in entries if entry.id not in self.stored}
        self.stored |= fresh
        return InsertCounts(len(fresh), len(entries) - len(fresh), 0)


def flusher_of(ledger: Any, db: Database, sink: Any = usage.insert_entries, **options: Any) -> Flusher:
    return Flusher(ledger, db, consumer="one", idle_ms=5, random_share=lambda: 0.0, insert=sink, **options)


async def test_entries_are_stored_once_and_leave_the_outbox(ledger: MemoryLedger, db: Database) -> None:
    await ledger.record("default", [entry(f"e{number}") for number in range(25)])
    flusher = flusher_of(ledger, db, batch=10)
    assert [await flusher.flush_once() for _ in range(4)] == [10, 10, 5, 0]
    assert await ledger.outbox_size() == 0
    assert len(await rows_of(db)) == 25
    assert (flusher.inserted_total, flusher.dead_lettered_total, flusher.lag_ms) == (25, 0, 0)


async def test_crash_between_commit_and_acknowledge_stores_no_duplicates(ledger: MemoryLedger, db: Database) -> None:
    class Forgetful(MemoryLedger):
        async def outbox_acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
            raise LedgerUnavailable("gone")

    broken = Forgetful()
    await broken.record("default", [entry("a"), entry("b")])
    with pytest.raises(LedgerUnavailable):
        await flusher_of(broken, db).flush_once()
    assert len(await rows_of(db)) == 2
    done = await usage.insert_entries(db, await broken.outbox_read("one"), NOW_MS)
    assert (done.inserted, done.known) == (0, 2)


async def test_large_backlog_is_parsed_in_chunks_of_at_most_200(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = 0
    read_in: Counter[int] = Counter()

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def row_of(entry: OutboxEntry) -> Any:
        read_in[turn] += 1
        return usage_event.row_of(entry)

    monkeypatch.setattr(usage, "row_of", row_of)
    counting = asyncio.create_task(count_turns())
    done = await usage.insert_entries(db, [entry(f"e{number}") for number in range(1_000)], NOW_MS)
    counting.cancel()
    assert done.inserted == 1_000
    assert max(read_in.values()) <= 200


async def test_uncommitted_entries_stay_in_the_outbox(ledger: MemoryLedger, db: Database) -> None:
    sink = Sink()
    sink.faults = [StoreUnavailable("away")]
    await ledger.record("default", [entry("a", at_ms=NOW_MS - 5_000), entry("b", at_ms=NOW_MS - 1_000)])
    flusher = flusher_of(ledger, db, sink, clock_ms=lambda: NOW_MS)
    with pytest.raises(StoreUnavailable):
        await flusher.flush_once()
    assert await ledger.outbox_size() == 2
    assert flusher.lag_ms == 5_000
    assert await flusher.flush_once() == 2
    assert (list(sink.stored), flusher.lag_ms) == (["a", "b"], 0)


async def test_backlog_is_moved_without_pauses(ledger: MemoryLedger, db: Database) -> None:
    sink = Sink()
    await ledger.record("default", [entry(f"e{number}") for number in range(5)])
    flusher = Flusher(ledger, db, consumer="one", batch=2, idle_ms=60_000, insert=sink)
    task = asyncio.create_task(flusher.run())
    await eventually(lambda: len(sink.stored) == 5)
    await flusher.stop()
    await task


@pytest.mark.parametrize(
    ("fault", "level"),
    [
        pytest.param(StoreUnavailable("away"), "warning", id="store-unavailable"),
        pytest.param(LedgerUnavailable("slow"), "warning", id="ledger-unavailable"),
        pytest.param(ValueError("a bug of ours"), "error", id="bug"),
    ],
)
async def test_loop_logs_every_kind_of_error_and_retries(
    ledger: MemoryLedger, db: Database, fault: Exception, level: str
) -> None:
    sink = Sink()
    sink.faults = [fault]
    flusher = flusher_of(ledger, db, sink)
    await ledger.record("default", [entry("a")])
    with capture_logs() as logs:
        task = asyncio.create_task(flusher.run())
        await eventually(lambda: flusher.inserted_total)
    assert [log["log_level"] for log in logs if log["event"] == "flush_failed"] == [level]
    assert (sink.faults, flusher.failures_in_a_row, flusher.is_store_available) == ([], 0, True)
    assert await flusher.stop()
    await task


async def test_backoff_doubles_with_jitter_up_to_a_maximum(ledger: MemoryLedger, db: Database) -> None:
    shortest, longest = flusher_of(ledger, db), Flusher(ledger, db, consumer="x", random_share=lambda: 0.999)
    error = StoreUnavailable("away")
    low = [shortest._note_failure(error) for _ in range(12)]
    high = [longest._note_failure(error) for _ in range(12)]
    assert low[:4] == [100, 200, 400, 800]
    assert low[-1] == BACKOFF_MS_MAX // 2
    assert all(2 * a >= b > a for a, b in zip(low, high, strict=True))


async def test_outbox_reports_nearly_full_and_full(ledger: MemoryLedger, db: Database) -> None:
    flusher = flusher_of(ledger, db, outbox_cap=10, clock_ms=iter(range(0, 100_000, 1_000)).__next__)
    sizes = []
    for number in range(10):
        await ledger.record("default", [entry(f"e{number}")])
        await flusher.measure()
        sizes.append((flusher.is_nearly_full, flusher.is_full))
    assert sizes == [(False, False)] * 7 + [(True, False)] * 2 + [(True, True)]


async def test_outbox_is_measured_at_most_once_a_second(ledger: MemoryLedger, db: Database) -> None:
    now_ms = 5_000
    flusher = flusher_of(ledger, db, clock_ms=lambda: now_ms)
    sizes = []
    for now_ms in (5_000, 5_999, 6_000):
        await ledger.record("default", [entry(f"e{now_ms}")])
        await flusher.measure()
        sizes.append(flusher.outbox_size)
    assert sizes == [1, 1, 3]


async def test_outbox_is_measured_during_a_long_pause(
    ledger: MemoryLedger, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.bookkeeping.flusher.SIZE_EVERY_MS", 20)
    sink = Sink()
    flusher = Flusher(ledger, db, consumer="one", idle_ms=60_000, insert=sink)
    task = asyncio.create_task(flusher.run())
    await ledger.record("default", [entry("a")])
    await eventually(lambda: sink.calls)
    await ledger.record("default", [entry("b")])
    await eventually(lambda: flusher.outbox_size == 1)
    await flusher.stop()
    await task


async def test_unreachable_ledger_keeps_the_last_size(db: Database) -> None:
    class Away(MemoryLedger):
        async def outbox_size(self) -> int:
            raise LedgerUnavailable("away")

    flusher = flusher_of(Away(), db)
    flusher.outbox_size = 7
    await flusher.measure()
    assert (flusher.outbox_size, flusher.last_error) == (7, "away")


async def test_concurrent_flushes_move_each_entry_once(ledger: MemoryLedger, db: Database) -> None:
    sink = Sink()
    await ledger.record("default", [entry("a"), entry("b")])
    flusher = flusher_of(ledger, db, sink)
    assert sorted(await asyncio.gather(flusher.flush_once(), flusher.flush_once())) == [0, 2]
    assert sink.calls == 1


async def test_stop_does_not_wait_for_the_idle_pause(ledger: MemoryLedger, db: Database) -> None:
    sink = Sink()
    flusher = Flusher(ledger, db, consumer="one", idle_ms=60_000, insert=sink)
    task = asyncio.create_task(flusher.run())
    await ledger.record("default", [entry("a")])
    await eventually(lambda: sink.calls)  # from here on it pauses
    await ledger.record("default", [entry("b")])
    assert await flusher.stop()
    await asyncio.wait_for(task, 5)
    assert list(sink.stored) == ["a", "b"]


async def test_stop_flushes_the_remaining_entries(ledger: MemoryLedger, db: Database) -> None:
    flusher = flusher_of(ledger, db, batch=2)
    await ledger.record("default", [entry(f"e{number}") for number in range(9)])
    assert await flusher.stop() is True
    assert len(await rows_of(db)) == 9
    await asyncio.wait_for(flusher.run(), 1)  # a stopped flusher does not start again


async def test_stop_gives_up_after_drain_ms_when_the_store_hangs(ledger: MemoryLedger, db: Database) -> None:
    async def hang(*_given: object) -> InsertCounts:
        await asyncio.sleep(60)
        raise AssertionError

    await ledger.record("default", [entry("a")])
    flusher = flusher_of(ledger, db, hang)
    assert await flusher.stop(drain_ms=50) is False
    assert await ledger.outbox_size() == 1


async def test_drain_stores_every_event_recorded_before_it(ledger: MemoryLedger, db: Database) -> None:
    flusher = flusher_of(ledger, db)
    task = asyncio.create_task(flusher.run())
    for number in range(5):
        await ledger.record("default", [entry(f"e{number}")])
        assert await flusher.drain(5_000)
        assert len(await rows_of(db)) == number + 1
    await flusher.stop()
    await task


async def test_invalid_entry_is_dead_lettered_once(ledger: MemoryLedger, db: Database) -> None:
    await ledger.record("default", [entry("good"), entry("bad", run="x" * 600)])
    flusher = flusher_of(ledger, db)
    assert await flusher.flush_once() == 2
    assert await flusher.flush_once() == 0
    assert (flusher.inserted_total, flusher.dead_lettered_total) == (1, 1)
