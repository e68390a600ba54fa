"""The ledger engines that the contract suites run on. An engine joins every suite by one entry in `ENGINES`.

An entry is a function that takes a folder of its own and gives an opened, empty ledger and a way to move its clock. Where an
engine cannot run here (no server), the function calls `pytest.skip` with a reason that says what is lacking.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest import mock

from gateway.ledger import sqlite_storage
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import Ledger
from gateway.ledger.sqlite import SqliteLedger
from tests.contracts import redis_engines

START_MS: Final = 1_750_000_000_000


@dataclass(frozen=True, slots=True)
class LedgerUnderTest:
    """`advance(ms)` moves the ledger's clock forward. Between advances it may run on with real time (a server's clock does) or
    stand still, so tests compare times with a tolerance of some seconds and put deadlines at least a minute apart."""

    ledger: Ledger
    advance: Callable[[int], Awaitable[None]]
    is_durable: bool = False  # acknowledged operations survive `close` and `open`


Engine = Callable[[Path], AbstractAsyncContextManager[LedgerUnderTest]]


class ManualClock:
    """A clock that moves only by `advance`."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    async def advance(self, by_ms: int) -> None:
        self.now_ms += by_ms


@asynccontextmanager
async def memory(folder: Path) -> AsyncIterator[LedgerUnderTest]:
    clock = ManualClock()
    ledger = MemoryLedger(clock_ms=clock)
    await ledger.open()
    yield LedgerUnderTest(ledger, clock.advance)
    await ledger.close()


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[LedgerUnderTest]:
    clock = ManualClock()
    ledger = SqliteLedger(folder / "ledger.db", clock_ms=clock)
    await ledger.open()
    yield LedgerUnderTest(ledger, clock.advance, is_durable=True)
    await ledger.close()


@asynccontextmanager
async def sqlite_folding(folder: Path) -> AsyncIterator[LedgerUnderTest]:
    """With a journal so short that values are moved into the tables all the time, a few at once."""
    with mock.patch.multiple(sqlite_storage, JOURNAL_MAX=5, FOLD_MIN=2, _JOURNAL_OVERDUE=9):
        async with sqlite(folder) as under_test:
            yield under_test


ENGINES: Final[dict[str, Engine]] = {
    "memory": memory,
    "sqlite": sqlite,
    "sqlite-folding": sqlite_folding,
    "redis": redis_engines.redis,
    "redis-6.2": redis_engines.redis_oldest,
    "redis-cluster": redis_engines.redis_cluster,
    "redis-behind-outage-ledger": redis_engines.redis_behind_outage_ledger,
}
