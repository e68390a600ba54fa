"""Moves usage events from the ledger's outbox to the store. Any number of flushers may work on one outbox.

read ─▶ commit ─▶ acknowledge. If that is interrupted, the entries are read again, and their ids make the repetition
idempotent. While the store is unreachable the outbox grows. At its cap the pipeline is told (`is_full`), because it is better
to refuse a call than to lose its record.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from gateway.ledger.clock import wall_clock_ms
from gateway.ledger.port import Ledger, LedgerError, OutboxEntry
from gateway.store import usage
from gateway.store.database import Database, StoreUnavailable
from gateway.store.usage import InsertCounts

BATCH: Final = 1_000
# Sums by hour, run and step are written once per batch, whose rows share the cost of the transaction: a row in a batch of
# 5,000 costs gateway and Postgres together 39 µs, one of 1,000 57 µs. Batches are only that large while there is a backlog.
BATCH_POSTGRES: Final = 5_000
OUTBOX_CAP: Final = 1_000_000
NEARLY_FULL: Final = 0.8
# Short enough for reports to show a call a moment later, long enough to cost nothing.
IDLE_MS: Final = 250
BACKOFF_MS_MIN: Final = 200
BACKOFF_MS_MAX: Final = 15_000
SIZE_EVERY_MS: Final = 1_000

_log = structlog.get_logger(__name__)


Insert = Callable[[Database, Sequence[OutboxEntry], int], Awaitable[InsertCounts]]


class Flusher:
    """`consumer` identifies this process to the outbox; two flushers with the same name would get the same entries."""

    def __init__(
        self,
        ledger: Ledger,
        store: Database,
        *,
        consumer: str,
        batch: int | None = None,
        outbox_cap: int = OUTBOX_CAP,
        idle_ms: int = IDLE_MS,
        clock_ms: Callable[[], int] = wall_clock_ms,
        random_share: Callable[[], float] = random.random,
        insert: Insert = usage.insert_entries,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._consumer = consumer
        # The most entries that are moved at once.
        self.batch = batch or (BATCH_POSTGRES if store.is_postgres else BATCH)
        self._outbox_cap = outbox_cap
        self._idle_ms = idle_ms
        self._clock_ms = clock_ms
        self._random_share = random_share
        self._insert = insert
        self._turn = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._sized_at_ms = 0
        self._oldest_at_ms: int | None = None
        self.outbox_size = 0
        self.inserted_total = 0
        self.dead_lettered_total = 0
        self.failures_in_a_row = 0
        self.last_error = ""

    @property
    def is_full(self) -> bool:
        """The outbox is at its cap: calls that must be recorded have to be refused."""
        return self.outbox_size >= self._outbox_cap

    @property
    def is_nearly_full(self) -> bool:
        """Whether to alert: 80 % of the cap."""
        return self.outbox_size >= NEARLY_FULL * self._outbox_cap

    @property
    def is_store_available(self) -> bool:
        return self.failures_in_a_row == 0

    @property
    def lag_ms(self) -> int:
        """Age of the oldest entry that was read but is not in the store yet; 0 if there is none."""
        return 0 if self._oldest_at_ms is None else max(0, self._clock_ms() - self._oldest_at_ms)

    async def run(self) -> None:
        """Flush until `stop`. No error ends it, because an outbox that nobody empties fills up."""
        while not self._stopping.is_set():
            try:
                moved = await self.flush_once()
                pause_ms = 0 if moved >= self.batch else self._idle_ms
            except Exception as error:  # noqa: BLE001 - a bug must not end the loop either; it is logged and shown
                pause_ms = self._note_failure(error)
            await self._pause(pause_ms)

    async def stop(self, drain_ms: int = 5_000) -> bool:
        """End `run`, then move the rest, for at most `drain_ms`. Returns whether everything was moved."""
        self._stopping.set()
        return await self.drain(drain_ms)

    async def drain(self, timeout_ms: int) -> bool:
        """Move all that can be read now, so that reports show it. False if the time was up or the store is unreachable."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while await self.flush_once():
                    pass
        except (TimeoutError, StoreUnavailable, LedgerError) as error:
            self.last_error = str(error) or type(error).__name__
            return False
        return True

    async def flush_once(self) -> int:
        """Move one batch; returns its number of entries. Raises StoreUnavailable and LedgerError, and then nothing is lost."""
        async with self._turn:
            entries = await self._ledger.outbox_read(self._consumer, self.batch)
            if not entries:
                self._note_success()
                return 0
            self._oldest_at_ms = min(entry.at_ms for entry in entries)
            counts = await self._insert(self._store, entries, self._clock_ms())
            await self._ledger.outbox_acknowledge(entries)
            self.inserted_total += counts.inserted
            self.dead_lettered_total += counts.dead_lettered
            self._note_success()
        if counts.dead_lettered:
            _log.warning("usage_dead_lettered", events=counts.dead_lettered)
        return len(entries)

    async def measure(self) -> None:
        """Read the outbox's size, at most once a second. Keeps the last one if the ledger is unreachable."""
        now_ms = self._clock_ms()
        if now_ms - self._sized_at_ms < SIZE_EVERY_MS:
            return
        self._sized_at_ms = now_ms
        try:
            self.outbox_size = await self._ledger.outbox_size()
        except LedgerError as error:
            self.last_error = str(error) or type(error).__name__

    def _note_success(self) -> None:
        if self.failures_in_a_row:
            _log.info("flush_recovered", after_failures=self.failures_in_a_row)
        self.failures_in_a_row = 0
        self.last_error = ""
        self._oldest_at_ms = None

    def _note_failure(self, error: Exception) -> int:
        """Returns the backoff: exponential with jitter, so that many flushers do not retry in step."""
        self.failures_in_a_row += 1
        self.last_error = str(error) or type(error).__name__
        longest_ms = min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** min(self.failures_in_a_row - 1, 10))
        pause_ms = int(longest_ms * (0.5 + self._random_share() / 2))
        level = "warning" if isinstance(error, StoreUnavailable | LedgerError) else "error"
        getattr(_log, level)("flush_failed", error=self.last_error, kind=type(error).__name__, retry_in_ms=pause_ms)
        return pause_ms

    async def _pause(self, pause_ms: int) -> None:
        """Wait in slices, so that the outbox is measured even while the store is unreachable. Ends early on `stop`."""
        await self.measure()
        while pause_ms > 0 and not self._stopping.is_set():
            slice_ms = min(pause_ms, SIZE_EVERY_MS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), slice_ms / 1000)
            pause_ms -= slice_ms
            await self.measure()
