"""Events without a reservation: written in batches, kept when the ledger does not take them, and not lost by a stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

import gateway.bookkeeping.recorder
from gateway.bookkeeping.recorder import BatchRecorder
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import EntryKind, LedgerError, LedgerUnavailable, OutboxEntry
from policies.amounts import ZERO


def entry(name: str, project: str = "p") -> OutboxEntry:
    return OutboxEntry("", name, EntryKind.RECORDED, project, ZERO, 0, b"{}", b"")


class Stubborn(MemoryLedger):
    """Takes nothing of the projects in `closed`, and takes its time while `slow` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: dict[str, Exception] = {}
        self.slow: asyncio.Event | None = None
        self.taken: list[str] = []

    async def record(self, project: str, entries: Sequence[OutboxEntry]) -> None:
        if project in self.closed:
            raise self.closed[project]
        if self.slow is not None:
            await self.slow.wait()
        self.taken += [one.id for one in entries]


async def test_events_are_written_together_in_their_order() -> None:
    ledger = Stubborn()
    recorder = BatchRecorder(ledger)
    for name in ("a", "b", "c"):
        recorder.record("p", entry(name))
    assert await recorder.flush()
    assert ledger.taken == ["a", "b", "c"]
    assert await recorder.flush()
    assert ledger.taken == ["a", "b", "c"], "once"


@pytest.mark.parametrize("error", [LedgerUnavailable("away"), LedgerError("damaged"), ValueError("a bug of ours")])
async def test_what_one_project_cannot_write_waits_and_holds_up_nobody(error: Exception) -> None:
    ledger = Stubborn()
    ledger.closed["p"] = error
    recorder = BatchRecorder(ledger)
    recorder.record("p", entry("a"))
    recorder.record("q", entry("b", "q"))
    assert not await recorder.flush()
    assert ledger.taken == ["b"]
    recorder.record("p", entry("c"))
    ledger.closed.clear()
    assert await recorder.flush()
    assert ledger.taken == ["b", "a", "c"]


async def test_a_stop_in_the_middle_of_a_batch_loses_nothing() -> None:
    ledger = Stubborn()
    ledger.slow = asyncio.Event()
    recorder = BatchRecorder(ledger)
    recorder.start()
    recorder.record("p", entry("a"))
    recorder.record("q", entry("b", "q"))
    await asyncio.sleep(0.05)
    stopping = asyncio.create_task(recorder.stop())
    await asyncio.sleep(0)
    ledger.slow.set()
    await stopping
    assert sorted(set(ledger.taken)) == ["a", "b"]


async def test_events_that_wait_are_written_when_the_ledger_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.bookkeeping.recorder, "_PAUSE_MS", 10)
    ledger = Stubborn()
    ledger.closed["p"] = LedgerUnavailable("away")
    recorder = BatchRecorder(ledger)
    recorder.start()
    recorder.record("p", entry("a"))
    await asyncio.sleep(0.08)
    assert ledger.taken == []
    ledger.closed.clear()
    async with asyncio.timeout(2):
        while not ledger.taken:
            await asyncio.sleep(0.01)
    await recorder.stop()
    assert ledger.taken == ["a"], "without another event to wake it"


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.bookkeeping.recorder, "_WAITING_MAX", 3)
    recorder = BatchRecorder(Stubborn())
    for name in "abcde":
        recorder.record("p", entry(name))
    assert recorder.dropped == 2
