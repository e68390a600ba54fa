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
from gateway.ledger.sqlite_shelf import SqliteShelf
from policies.book import Book
from policies.reservation import Reserve

R = TypeVar("R")

# For the thread. A few ms of work: enough to spread the cost of a commit, but the first answer still comes soon.
BATCH_MAX: Final = 256
# For the loop. About 2 ms of work, which no stream on the loop notices.
HERE_MAX: Final = 32
# If a batch on the loop took longer, it has waited for the disk; then the thread gets all batches for a while.
SLOW_S: Final = 0.1
SLOW_FOR_S: Final = 10.0
# More than a second of work: a disk this far behind counts as out of reach, and waiting would only make it worse.
WAITING_MAX: Final = 20_000
# What is written to a deleted file can be saved while this process lives, so checking at this interval is enough.
CHECK_EVERY_S: Final = 0.05


class Operation(NamedTuple):
    perform: Callable[..., Any]
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]
    is_short: bool


class Answer(NamedTuple):
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
        self._opened: asyncio.Future[None] = loop.create_future()
        self._closed: asyncio.Future[None] = loop.create_future()
        self._check_again_s = 0.0
        self._asked: list[Operation] = []  # since the last turn of the loop
        self._is_beginning = False  # `_begin` will be called in this turn of the loop
        self._owed = 1  # answers that the thread owes; the first is that of the opening
        self._not_here_until_s = math.inf if waits_for_disk else 0.0
        # None tells the thread to stop.
        self._waiting: queue.SimpleQueue[list[Operation] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="farebox-ledger", daemon=True)

    async def start(self) -> None:
        self._thread.start()
        await asyncio.shield(self._opened)

    def give_up(self) -> None:
        """Close as soon as everything in the queue is done, without waiting for it."""
        self._hand_over(WAITING_MAX)
        self._waiting.put(None)

    async def stop(self) -> None:
        self.give_up()
        await asyncio.shield(self._closed)

    async def perform(self, operation: Callable[..., R], *arguments: Any) -> R:
        """Run a short operation of a call, on a few rows."""
        answer: R = await self._ask(operation, arguments, is_short=True)
        return answer

    async def perform_at_length(self, operation: Callable[..., R], *arguments: Any) -> R:
        """Run an operation that may take long, on many rows or with disk waits."""
        answer: R = await self._ask(operation, arguments, is_short=False)
        return answer

    def _ask(self, operation: Callable[..., Any], arguments: tuple[Any, ...], *, is_short: bool) -> asyncio.Future[Any]:
        if self._owed + len(self._asked) >= WAITING_MAX:
            raise LedgerUnavailable(f"{WAITING_MAX} operations are waiting for the disk")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._asked.append(Operation(operation, arguments, answer, is_short))
        self._begin_soon()
        return answer

    def _begin_soon(self) -> None:
        if not self._is_beginning and not self._owed:
            self._is_beginning = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Run what was requested in this turn of the loop, or hand it to the thread. While the thread works, wait for it."""
        self._is_beginning = False
        if not self._asked or self._owed:
            return
        now_s = time.monotonic()
        if now_s < self._not_here_until_s or not all(operation.is_short for operation in self._asked):
            self._hand_over()
            return
        asked, self._asked = self._asked[:HERE_MAX], self._asked[HERE_MAX:]
        self._answer(self._perform(asked))
        if time.monotonic() - now_s > SLOW_S:
            self._not_here_until_s = now_s + SLOW_FOR_S
        is_log_long = self._file.is_log_long()
        if is_log_long or self._shelf.is_journal_long:
            self._ask(self._tidy, (), is_short=not is_log_long).add_done_callback(asyncio.Future.exception)
        elif self._asked:
            self._begin_soon()

    def _hand_over(self, most: int = BATCH_MAX) -> None:
        batch, self._asked = self._asked[:most], self._asked[most:]
        if batch:
            self._waiting.put(batch)
            self._owed += len(batch)

    def _live(self) -> None:
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller of `start` must get it
            self._tell([Answer(self._opened, None, _as_ledger_error(error))])
            return
        self._tell([Answer(self._opened, None, None)])
        while (batch := self._waiting.get()) is not None:
            answers = self._perform(batch)
            if self._file.is_log_long():
                self._file.shorten_log()
            self._tell(answers)  # last, because it gives the file back to the loop
        self._tell([Answer(self._closed, None, self._close())])

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
        self._shelf = SqliteShelf(connection, self.clock.now_ms())
        self.book = Book(self._shelf)

    def _perform(self, batch: list[Operation]) -> list[Answer]:
        """All in one transaction; if that fails for a reason that one of them may have caused, each in its own."""
        try:
            self._check_file()
            return self._attempt(batch)
        except Exception as error:  # noqa: BLE001 - any error becomes the callers' answer, and the thread lives on
            fault = self._undo(error)
        if len(batch) > 1 and not isinstance(fault, LedgerUnavailable):
            return [answer for operation in batch for answer in self._perform([operation])]
        return [Answer(operation.answer, None, fault) for operation in batch]

    def _check_file(self) -> None:
        """Checked from time to time, but at every batch once a check has failed, because only success sets the next time."""
        if time.monotonic() >= self._check_again_s:
            self._file.check_in_place()
            self._check_again_s = time.monotonic() + CHECK_EVERY_S

    def _attempt(self, batch: list[Operation]) -> list[Answer]:
        now_ms = self.clock.now_ms()
        self._shelf.be_current()
        asked = [operation.arguments[:2] for operation in batch if _is_reserve(operation)]
        accounts = {(project, hold.account) for project, request in asked for hold in request.holds}
        self._shelf.prefetch(accounts, [(project, request.id) for project, request in asked])
        answers = [_answer(operation, now_ms) for operation in batch]
        self._shelf.commit(now_ms)
        return answers

    def _undo(self, error: Exception) -> LedgerError:
        # The first error is the one to report. If re-reading fails, it is done before the next operation.
        with suppress(sqlite3.Error, LedgerError):
            self._shelf.roll_back()
        return self._file.explain(error) if isinstance(error, sqlite3.Error) else _as_ledger_error(error)

    def _tidy(self, now_ms: int) -> None:
        """Fold the journal; the thread checkpoints a long log after any batch. Errors are reported by the operations that meet them."""
        self._shelf.fold_oldest()

    def _empty_journal(self) -> None:
        """For anyone who copies or reads the file. If it fails, the next opening reads the journal."""
        try:
            self._shelf.be_current()
            self._shelf.fold()
            self._shelf.commit(self.clock.now_ms())
        except (sqlite3.Error, LedgerError):
            self._file.connection.rollback()

    def _close(self) -> LedgerError | None:
        try:
            self._empty_journal()
            self._file.close()
        except LedgerError as error:
            return error
        return None

    def _deliver(self, answers: list[Answer]) -> None:
        """Take over the thread's results."""
        self._owed -= len(answers)
        self._answer(answers)
        self._begin()

    @staticmethod
    def _answer(answers: list[Answer]) -> None:
        for future, value, error in answers:
            if future.done():
                continue  # the caller has stopped waiting
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def _tell(self, answers: list[Answer]) -> None:
        # RuntimeError: the event loop is closed, so nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, answers)


def _is_reserve(operation: Operation) -> bool:
    """Reservations look up what mostly does not exist, so these lookups are combined."""
    return len(operation.arguments) > 1 and isinstance(operation.arguments[1], Reserve)


def _answer(operation: Operation, now_ms: int) -> Answer:
    try:
        return Answer(operation.answer, operation.perform(*operation.arguments, now_ms), None)
    except ValueError as error:
        # The book checks before it writes, so the other operations of the batch are not affected.
        return Answer(operation.answer, None, LedgerError(str(error)))


def _as_ledger_error(error: Exception) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    told = LedgerError(f"{type(error).__name__}: {error}")
    told.__cause__ = error
    return told
