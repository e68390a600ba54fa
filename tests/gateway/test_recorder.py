"""Events without a reservation: written in batches, retried when the ledger fails, and not lost at shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

import gateway.bookkeeping.recorder
from gateway.bookkeeping.recorder import BatchRecorder
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import EntryKind, LedgerError, LedgerUnavailable, OutboxEntry
from policies.amounts import ZERO
from tests.waiting import eventually


def entry(name: str, project: str = "p") -> OutboxEntry:
    return OutboxEntry("", name, EntryKind.RECORDED, project, ZERO, 0, b"{}", b"")


class UnreliableLedger(MemoryLedger):
    """Fails for the projects in `closed`, and blocks until `slow`, if given, is set."""

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
        self.taken += [entry.id for entry in entries]


async def test_events_are_written_once_and_in_order() -> None:
    ledger = UnreliableLedger()
    recorder = BatchRecorder(ledger)
    for name in ("a", "b", "c"):
        recorder.record("p", entry(name))
    assert await recorder.flush()
    assert ledger.taken == ["a", "b", "c"]
    assert await recorder.flush()
    assert ledger.taken == ["a", "b", "c"], "once"


@pytest.mark.parametrize("error", [LedgerUnavailable("away"), LedgerError("damaged"), ValueError("a bug of ours")])
async def test_failed_events_of_a_project_are_retried_without_delaying_others(error: Exception) -> None:
    ledger = UnreliableLedger()
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


async def test_stop_during_a_batch_loses_nothing() -> None:
    ledger = UnreliableLedger()
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


async def test_waiting_events_are_written_once_the_ledger_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.bookkeeping.recorder, "_PAUSE_MS", 10)
    ledger = UnreliableLedger()
    ledger.closed["p"] = LedgerUnavailable("away")
    recorder = BatchRecorder(ledger)
    recorder.start()
    recorder.record("p", entry("a"))
    await asyncio.sleep(0.08)
    assert ledger.taken == []
    ledger.closed.clear()
    await eventually(lambda: ledger.taken, 2, "the event is written")
    await recorder.stop()
    assert ledger.taken == ["a"], "without another event to wake it"


async def test_events_above_the_queue_limit_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.bookkeeping.recorder, "_WAITING_MAX", 3)
    recorder = BatchRecorder(UnreliableLedger())
    for name in "abcde":
        recorder.record("p", entry(name))
    assert recorder.dropped == 2
