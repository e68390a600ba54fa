"""The embedded ledger: one SQLite file and one connection.

Operations queue up, and all that are waiting are performed in one transaction (a group commit) and answered together after
the commit. A started operation completes even if its caller stops waiting: its id tells what became of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from gateway.ledger import checks
from gateway.ledger.clock import wall_clock_ms
from gateway.ledger.health import Health
from gateway.ledger.port import (
    ExpiredReservation,
    LedgerError,
    LedgerUnavailable,
    OutboxEntry,
    Progress,
    Reserve,
    Resolution,
)
from gateway.ledger.sqlite_file import Durability, SqliteFile
from gateway.ledger.sqlite_worker import SqliteWorker
from policies.amounts import Amount, Limit
from policies.reservation import Balance, Decision, Demand, Gate, Hold

_log = structlog.get_logger(__name__)


class SqliteLedger:
    """`clock_ms` gives the time in ms since the epoch; the ledger's own clock follows it and never goes back, not even over restarts.

    durability: "normal" survives the death of the process, but may lose the last moments if the power fails; "strict" waits
    for the disk at every commit.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock_ms: Callable[[], int] = wall_clock_ms,
        durability: Durability = "normal",
    ) -> None:
        self._path = path
        self._clock_ms = clock_ms
        self._durability = durability
        self._worker: SqliteWorker | None = None

    async def open(self) -> None:
        """Raises `LedgerError` if another process uses the file (with its pid), or if it is damaged, foreign, or of a newer version."""
        if self._worker is not None:
            raise LedgerError(f"the ledger {self._path} is open already")
        worker = SqliteWorker(
            self._open_file,
            self._clock_ms,
            asyncio.get_running_loop(),
            waits_for_disk=self._durability == "strict",
        )
        try:
            await worker.start()
        except asyncio.CancelledError:
            worker.request_stop()
            raise
        self._worker = worker

    async def close(self) -> None:
        """Perform all queued operations, then close the file cleanly. If its disk fails, it is left as a crash would leave it."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        try:
            await worker.stop()
        except LedgerUnavailable as error:
            _log.error("ledger_not_closed", error=str(error))

    @property
    def health(self) -> Health:
        reason = "" if self._worker is None else self._worker.outage.reason
        return Health(not reason, reason)

    async def now_ms(self) -> int:
        return self._require_worker().clock.now_ms()

    async def reserve(self, project: str, request: Reserve) -> Decision:
        checks.check_reserve(request)
        worker = self._require_worker()
        return await worker.perform(worker.book.reserve, project, request)

    async def extend(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand) -> Decision:
        checks.check_holds(holds)
        checks.check_extra(extra)
        worker = self._require_worker()
        return await worker.perform(worker.book.extend, project, reservation_id, holds, extra)

    async def renew(self, project: str, progress: Sequence[Progress], ttl_ms: int) -> tuple[str, ...]:
        checks.check_progress(progress, ttl_ms)
        worker = self._require_worker()
        return await worker.perform_long(worker.book.renew, project, progress, ttl_ms)

    async def settle(self, project: str, reservation_id: str, used: Amount, detail: bytes) -> Resolution:
        checks.check_amount("used", used)
        worker = self._require_worker()
        return await worker.perform(worker.book.settle, project, reservation_id, used, detail)

    async def void(self, project: str, reservation_id: str) -> Resolution:
        worker = self._require_worker()
        return await worker.perform(worker.book.void, project, reservation_id)

    async def expire_due(self, limit: int = 1000) -> Sequence[ExpiredReservation]:
        worker = self._require_worker()
        return await worker.perform_long(worker.book.expire_due, limit)

    async def record(self, project: str, entries: Sequence[OutboxEntry]) -> None:
        checks.check_entries(entries)
        worker = self._require_worker()
        await worker.perform_long(worker.book.record, project, entries)

    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]:
        worker = self._require_worker()
        return await worker.perform(worker.book.balances, project, accounts)

    async def set_override(self, project: str, account: str, limit: Limit) -> Balance:
        checks.check_limit(limit)
        worker = self._require_worker()
        return await worker.perform(worker.book.set_override, project, account, limit)

    async def set_gate(self, project: str, account: str, gate: Gate) -> Balance:
        worker = self._require_worker()
        return await worker.perform(worker.book.set_gate, project, account, gate)

    async def current_run(self, project: str, workflow: str, candidate: str, silence_ms: int) -> str:
        checks.check_count("silence_ms", silence_ms)
        worker = self._require_worker()
        return await worker.perform(worker.book.current_run, project, workflow, candidate, silence_ms)

    async def pending(self, project: str, limit: int = 1000) -> Sequence[tuple[str, str, Amount, int]]:
        worker = self._require_worker()
        return await worker.perform_long(worker.book.pending, project, limit)

    async def outbox_read(self, consumer: str, limit: int = 1000) -> Sequence[OutboxEntry]:
        worker = self._require_worker()
        return await worker.perform_long(worker.book.outbox_read, consumer, limit)

    async def outbox_acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        worker = self._require_worker()
        await worker.perform_long(worker.book.outbox_acknowledge, entries)

    async def outbox_size(self) -> int:
        worker = self._require_worker()
        return await worker.perform_long(worker.book.outbox_size)

    async def restore(
        self,
        project: str,
        account: str,
        settled: Amount,
        keep_ms: int,
        gate: Gate | None = None,
        override: Limit | None = None,
    ) -> None:
        checks.check_amount("settled", settled)
        checks.check_count("keep_ms", keep_ms)
        if override is not None:
            checks.check_limit(override)
        worker = self._require_worker()
        await worker.perform_long(worker.book.restore, project, account, settled, keep_ms, gate, override)

    async def epoch(self) -> str:
        return self._require_worker().epoch

    async def purge(self, limit: int = 1000) -> int:
        worker = self._require_worker()
        return await worker.perform_long(worker.book.purge, limit)

    def _open_file(self) -> SqliteFile:
        return SqliteFile(self._path, self._durability)

    def _require_worker(self) -> SqliteWorker:
        if self._worker is None:
            raise LedgerError(f"the ledger {self._path} is not open")
        return self._worker
