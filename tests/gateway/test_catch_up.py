"""A reader sees all events from before it asked, waits for a bounded time, and shares the work with other readers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import structlog

from gateway.bookkeeping.catch_up import CatchUp
from gateway.bookkeeping.flusher import BATCH, Flusher
from gateway.ledger.port import LedgerUnavailable
from gateway.store.database import StoreUnavailable


class FakeEngine:
    """Counts waiting events, in place of the recorder and the flusher."""

    batch = BATCH

    def __init__(self) -> None:
        self.recorded = self.outbox = self.stored = self.rounds = 0
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.fault: Exception | None = None

    async def flush_recorded(self) -> None:
        self.outbox += self.recorded
        self.recorded = 0

    async def flush_once(self) -> int:
        taken = min(BATCH, self.outbox)
        await self.is_open.wait()
        if self.fault is not None:
            raise self.fault
        self.rounds += 1
        self.outbox -= taken
        self.stored += taken
        return taken


def catch_up_on(engine: FakeEngine) -> CatchUp:
    return CatchUp(engine.flush_recorded, cast(Flusher, engine))


async def test_catch_up_stores_all_earlier_events() -> None:
    engine = FakeEngine()
    engine.recorded = 2 * BATCH + 5
    await catch_up_on(engine)()
    assert (engine.stored, engine.recorded, engine.outbox, engine.rounds) == (2 * BATCH + 5, 0, 0, 3)


async def test_catch_up_times_out_on_a_slow_store_and_flushing_continues() -> None:
    engine = FakeEngine()
    engine.recorded = 5
    engine.is_open.clear()
    catch_up = catch_up_on(engine)
    await catch_up(timeout_ms=10)
    assert engine.stored == 0
    engine.is_open.set()
    await catch_up()
    assert engine.stored == 5


async def test_concurrent_readers_share_one_later_round() -> None:
    engine = FakeEngine()
    engine.recorded = 1
    engine.is_open.clear()
    catch_up = catch_up_on(engine)
    first = asyncio.create_task(catch_up())
    while not engine.outbox:
        await asyncio.sleep(0)
    engine.recorded = 1  # an event that the first reader's round does not include
    others = [asyncio.create_task(catch_up()) for _ in range(5)]
    await asyncio.sleep(0)
    engine.is_open.set()
    await asyncio.gather(first, *others)
    assert engine.stored == 2
    assert engine.rounds == 2  # the other five shared one round


async def test_unreachable_ledger_or_store_is_no_error_for_a_reader() -> None:
    """Nor is a bug, which asyncio would report some time later, as an exception that nobody retrieved."""
    faults: tuple[Any, ...] = (StoreUnavailable("away"), LedgerUnavailable("away"), ValueError("a bug"))
    for fault in faults:
        engine = FakeEngine()
        engine.fault = fault
        with structlog.testing.capture_logs() as log:
            await catch_up_on(engine)()
        assert engine.stored == 0
        assert [line["event"] for line in log] == ["catch_up_failed"]
