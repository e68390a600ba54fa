"""Runs the ledger's operations on its file, with group commits.

Operations of the same turn of the event loop share one transaction, up to a bound. It runs on the loop itself: a commit that
does not wait for the disk takes less time than waking a thread and being woken by it. A thread does what waits or takes long:
long operations, checkpoints, durability that waits for the disk, and everything while the disk is slow. Only one of the two
works at a time: the loop does while the thread owes no answer, so that operations are performed in the order of their
requests.
"""

from __future__ import annotations

import asyncio
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from gateway.ledger.clock import SteadyClock
from gateway.ledger.port import LedgerError, LedgerUnavailable
from gateway.ledger.sqlite_file import SqliteFile
from gateway.ledger.sqlite_outage import SqliteOutage
from gateway.ledger.sqlite_storage import SqliteStorage
from policies.book import Book
from policies.reservation import Reserve

R = TypeVar("R")

# For the thread. A few ms of work: enough to spread the cost of a commit, but the first answer still comes soon.
THREAD_BATCH_MAX: Final = 256
# For the loop. About 2 ms of work, which no stream on the loop notices.
LOOP_BATCH_MAX: Final = 32
# If a batch on the loop took longer, it has waited for the disk; then the thread gets all batches for a while.
SLOW_BATCH_S: Final = 0.1
THREAD_ONLY_S: Final = 10.0
# More than a second of work: a disk this far behind counts as out of reach, and waiting would only make it worse.
QUEUED_MAX: Final = 20_000
# What is written to a deleted file can be saved while this process lives, so checking at this interval is enough.
FILE_CHECK_INTERVAL_S: Final = 0.05


class Operation(NamedTuple):
    perform: Callable[..., Any]
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]
    is_short: bool


class OperationResult(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: LedgerError | None


class SqliteWorker:
    """Owns the file and the thread. `waits_for_disk`: every commit does, so none runs on the loop."""

    clock: SteadyClock
    book: Book
    epoch: str

    def __init__(
        self,
        open_file: Callable[[], SqliteFile],
        clock_ms: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
        *,
        waits_for_disk: bool,
    ) -> None:
        self._open_file = open_file
        self.clock = SteadyClock(clock_ms)
        self._loop = loop
        self._open_done: asyncio.Future[None] = loop.create_future()
        self._close_done: asyncio.Future[None] = loop.create_future()
        self.outage = SqliteOutage(loop, lambda: self.perform(self._write_probe_row))
        self._next_file_check_s = 0.0
        self._queued: list[Operation] = []  # since the last turn of the loop
        self._is_run_scheduled = False  # `_run_queued` will be called in this turn of the loop
        self._thread_operations = 1  # answers that the thread owes; the first is that of the opening
        self._thread_only_until_s = math.inf if waits_for_disk else 0.0
        # None tells the thread to stop.
        self._thread_queue: queue.SimpleQueue[list[Operation] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run_thread, name="farebox-ledger", daemon=True)

    async def start(self) -> None:
        self._thread.start()
        await asyncio.shield(self._open_done)

    def request_stop(self) -> None:
        """Close as soon as everything in the queue is done, without waiting for it."""
        self.outage.stop()
        self._hand_to_thread(QUEUED_MAX)
        self._thread_queue.put(None)

    async def stop(self) -> None:
        self.request_stop()
        await asyncio.shield(self._close_done)

    def perform(self, operation: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        """Run a short operation of a call, on a few rows."""
        return self._enqueue(operation, arguments, is_short=True)

    def perform_long(self, operation: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        """Run an operation that may take long, on many rows or with disk waits."""
        return self._enqueue(operation, arguments, is_short=False)

    def _enqueue(self, operation: Callable[..., R], arguments: tuple[Any, ...], *, is_short: bool) -> asyncio.Future[R]:
        if self._thread_operations + len(self._queued) >= QUEUED_MAX:
            raise LedgerUnavailable(f"{QUEUED_MAX} operations are waiting for the disk")
        answer: asyncio.Future[R] = self._loop.create_future()
        self._queued.append(Operation(operation, arguments, answer, is_short))
        self._schedule_run()
        return answer

    def _schedule_run(self) -> None:
        if not self._is_run_scheduled and not self._thread_operations:
            self._is_run_scheduled = True
            self._loop.call_soon(self._run_queued)

    def _run_queued(self) -> None:
        """Run what was requested in this turn of the loop, or hand it to the thread. While the thread works, wait for it."""
        self._is_run_scheduled = False
        if not self._queued or self._thread_operations:
            return
        now_s = time.monotonic()
        if now_s < self._thread_only_until_s or not all(operation.is_short for operation in self._queued):
            self._hand_to_thread()
            return
        batch, self._queued = self._queued[:LOOP_BATCH_MAX], self._queued[LOOP_BATCH_MAX:]
        self._resolve_futures(self._perform(batch))
        if time.monotonic() - now_s > SLOW_BATCH_S:
            self._thread_only_until_s = now_s + THREAD_ONLY_S
        is_checkpoint_due = self._file.is_checkpoint_due()
        if is_checkpoint_due or self._storage.is_journal_long:
            self._enqueue(self._fold_journal, (), is_short=not is_checkpoint_due).add_done_callback(
                asyncio.Future.exception
            )
        elif self._queued:
            self._schedule_run()

    def _hand_to_thread(self, batch_max: int = THREAD_BATCH_MAX) -> None:
        batch, self._queued = self._queued[:batch_max], self._queued[batch_max:]
        if batch:
            self._thread_queue.put(batch)
            self._thread_operations += len(batch)

    def _run_thread(self) -> None:
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller of `start` must get it
            self._send_to_loop([OperationResult(self._open_done, None, _as_ledger_error(error))])
            return
        self._send_to_loop([OperationResult(self._open_done, None, None)])
        while (batch := self._thread_queue.get()) is not None:
            results = self._perform(batch)
            if self._file.is_checkpoint_due():
                self._file.checkpoint()
            self._send_to_loop(results)  # last, because it gives the file back to the loop
        self._send_to_loop([OperationResult(self._close_done, None, self._close())])

    def _open(self) -> None:
        self._file = self._open_file()
        try:
            self._read_file()
        except Exception:
            with suppress(LedgerError):  # the first error is the one to report
                self._file.close()
            raise

    def _read_file(self) -> None:
        connection = self._file.connection
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        self.epoch = meta["epoch"]
        self.clock.advance_to(meta["highest_ms"])
        self._storage = SqliteStorage(connection, self.clock.now_ms())
        self.book = Book(self._storage)

    def _perform(self, batch: list[Operation]) -> list[OperationResult]:
        """All in one transaction; if that fails for a reason that one of them may have caused, each in its own."""
        try:
            self._check_file()
            return self._commit_batch(batch)
        except Exception as error:  # noqa: BLE001 - any error becomes the callers' answer, and the thread lives on
            fault = self._roll_back(error)
        if len(batch) > 1 and not isinstance(fault, LedgerUnavailable):
            return [result for operation in batch for result in self._perform([operation])]
        return [OperationResult(operation.answer, None, fault) for operation in batch]

    def _check_file(self) -> None:
        """Checked from time to time, but at every batch once a check has failed, because only success sets the next time."""
        if time.monotonic() >= self._next_file_check_s:
            self._file.check_not_replaced()
            self._next_file_check_s = time.monotonic() + FILE_CHECK_INTERVAL_S

    def _commit_batch(self, batch: list[Operation]) -> list[OperationResult]:
        now_ms = self.clock.now_ms()
        self._storage.ensure_current()
        reserve_requests = [operation.arguments[:2] for operation in batch if _is_reserve(operation)]
        accounts = {(project, hold.account) for project, request in reserve_requests for hold in request.holds}
        self._storage.prefetch(accounts, [(project, request.id) for project, request in reserve_requests])
        results = [_run_operation(operation, now_ms) for operation in batch]
        self._storage.commit(now_ms)
        return results

    def _roll_back(self, error: Exception) -> LedgerError:
        # The first error is the one to report. If re-reading fails, it is done before the next operation.
        with suppress(sqlite3.Error, LedgerError):
            self._storage.roll_back()
        return self._file.explain(error) if isinstance(error, sqlite3.Error) else _as_ledger_error(error)

    def _fold_journal(self, now_ms: int) -> None:
        """Fold the journal; the thread checkpoints a long log after any batch. Errors are reported by the operations that meet them."""
        self._storage.fold_oldest()

    def _write_probe_row(self, now_ms: int) -> None:
        self._storage.write_clock(now_ms)

    def _empty_journal(self) -> None:
        """For anyone who copies or reads the file. If it fails, the next opening reads the journal."""
        try:
            self._storage.ensure_current()
            self._storage.fold()
            self._storage.commit(self.clock.now_ms())
        except (sqlite3.Error, LedgerError):
            self._file.connection.rollback()

    def _close(self) -> LedgerError | None:
        try:
            self._empty_journal()
            self._file.close()
        except LedgerError as error:
            return error
        return None

    def _deliver(self, results: list[OperationResult]) -> None:
        """Take over the thread's results."""
        self._thread_operations -= len(results)
        self._resolve_futures(results)
        self._run_queued()

    def _resolve_futures(self, results: list[OperationResult]) -> None:
        for future, value, error in results:
            # Whoever opens or closes the file reports its failure in words of its own.
            if isinstance(error, LedgerUnavailable) and future not in (self._open_done, self._close_done):
                self.outage.failed(str(error))
            if future.done():
                continue  # the caller has stopped waiting
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def _send_to_loop(self, results: list[OperationResult]) -> None:
        # RuntimeError: the event loop is closed, so nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, results)


def _is_reserve(operation: Operation) -> bool:
    """Whether this reserves. A reservation looks up rows that mostly do not exist, so the lookups of a batch are combined."""
    return len(operation.arguments) > 1 and isinstance(operation.arguments[1], Reserve)


def _run_operation(operation: Operation, now_ms: int) -> OperationResult:
    try:
        return OperationResult(operation.answer, operation.perform(*operation.arguments, now_ms), None)
    except ValueError as error:
        # The book checks before it writes, so the other operations of the batch are not affected.
        return OperationResult(operation.answer, None, LedgerError(str(error)))


def _as_ledger_error(error: Exception) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    wrapped = LedgerError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
