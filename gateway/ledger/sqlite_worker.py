"""The thread that owns the ledger's file, and its group commits."""

from __future__ import annotations

import asyncio
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

# From so many on a batch is not added to. A few ms of work: enough to spread the cost of a commit, and the first is answered soon.
BATCH_MAX: Final = 256
# More than a second of work: a disk that is so far behind is out of reach, and waiting would only make it worse.
WAITING_MAX: Final = 20_000
# What is written into a deleted file can be saved while this process lives, so that looking seldom costs nothing.
CHECK_EVERY_S: Final = 0.05


class Operation(NamedTuple):
    perform: Callable[..., Any]
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]


class Answer(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: LedgerError | None


class SqliteWorker:
    """The thread that owns the file. Its methods that begin with `_` run there, the others on the event loop."""

    clock: SteadyClock
    book: Book
    epoch: str

    def __init__(
        self,
        open_file: Callable[[], SqliteFile],
        clock_ms: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._open_file = open_file
        self.clock = SteadyClock(clock_ms)
        self._loop = loop
        self._opened: asyncio.Future[None] = loop.create_future()
        self._closed: asyncio.Future[None] = loop.create_future()
        self._check_again_s = 0.0
        self._asked: list[
            Operation
        ] = []  # since the loop came round: handed over together, because waking the thread costs most
        self._unanswered = 1  # the opening is the first answer
        # None is the sign to stop.
        self._waiting: queue.SimpleQueue[list[Operation] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="farebox-ledger", daemon=True)

    async def start(self) -> None:
        self._thread.start()
        await asyncio.shield(self._opened)

    def give_up(self) -> None:
        """Close as soon as everything that waits is done, without anybody waiting for that."""
        self._hand_over()
        self._waiting.put(None)

    async def stop(self) -> None:
        self.give_up()
        await asyncio.shield(self._closed)

    async def perform(self, operation: Callable[..., R], *arguments: Any) -> R:
        if self._unanswered >= WAITING_MAX:
            raise LedgerUnavailable(f"{WAITING_MAX} operations are waiting for the disk")
        answer: asyncio.Future[R] = self._loop.create_future()
        if not self._asked:
            self._loop.call_soon(self._hand_over)
        self._asked.append(Operation(operation, arguments, answer))
        self._unanswered += 1
        return await answer

    def _hand_over(self) -> None:
        if self._asked:
            self._waiting.put(self._asked)
            self._asked = []

    def _live(self) -> None:
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - whatever it is, the one who opens the ledger has to hear of it
            self._tell([Answer(self._opened, None, _as_ledger_error(error))])
            return
        self._tell([Answer(self._opened, None, None)])
        while batch := self._take():
            self._tell(self._perform(batch))
        self._tell([Answer(self._closed, None, self._close())])

    def _open(self) -> None:
        self._file = self._open_file()
        connection = self._file.connection
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        self.epoch = meta["epoch"]
        self.clock.be_at_least(meta["highest_ms"])
        self._shelf = SqliteShelf(connection, self.clock.now_ms())
        self.book = Book(self._shelf)

    def _take(self) -> list[Operation]:
        """Everything that is waiting, at least one operation; nothing once it is time to stop."""
        batch: list[Operation] = []
        asked = self._waiting.get()
        while asked is not None:
            batch.extend(asked)
            if len(batch) >= BATCH_MAX or self._waiting.empty():
                return batch
            asked = self._waiting.get()
        if batch:
            self._waiting.put(None)
        return batch

    def _perform(self, batch: list[Operation]) -> list[Answer]:
        """All in one transaction; if that fails for a reason that may lie in one of them, each in its own."""
        try:
            self._check_file()
            return self._attempt(batch)
        except Exception as error:  # noqa: BLE001 - the callers wait: any fault becomes their answer, and the thread lives on
            fault = self._undo(error)
        if len(batch) > 1 and not isinstance(fault, LedgerUnavailable):
            return [answer for operation in batch for answer in self._perform([operation])]
        return [Answer(operation.answer, None, fault) for operation in batch]

    def _check_file(self) -> None:
        """Now and then; and at every batch once something is wrong, because only a good check moves the next one away."""
        if time.monotonic() >= self._check_again_s:
            self._file.check_in_place()
            self._check_again_s = time.monotonic() + CHECK_EVERY_S

    def _attempt(self, batch: list[Operation]) -> list[Answer]:
        now_ms = self.clock.now_ms()
        asked = [operation.arguments[:2] for operation in batch if _is_reserve(operation)]
        accounts = {(project, hold.account) for project, request in asked for hold in request.holds}
        self._shelf.prefetch(accounts, [(project, request.id) for project, request in asked])
        answers = [_answer(operation, now_ms) for operation in batch]
        self._shelf.commit(now_ms)
        return answers

    def _undo(self, error: Exception) -> LedgerError:
        # The first error is the one to tell; what could not be rolled back is rolled back by the next opening.
        with suppress(sqlite3.Error):
            self._shelf.roll_back()
        return self._file.explain(error) if isinstance(error, sqlite3.Error) else _as_ledger_error(error)

    def _close(self) -> LedgerError | None:
        try:
            self._file.close()
        except LedgerError as error:
            return error
        return None

    def _deliver(self, answers: list[Answer]) -> None:
        for future, value, error in answers:
            self._unanswered -= 1
            if future.done():
                continue  # whoever asked does not wait any more
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def _tell(self, answers: list[Answer]) -> None:
        # RuntimeError: the event loop is closed, and nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, answers)


def _is_reserve(operation: Operation) -> bool:
    """Reservations ask for things that are mostly not there: they are looked for together."""
    return len(operation.arguments) > 1 and isinstance(operation.arguments[1], Reserve)


def _answer(operation: Operation, now_ms: int) -> Answer:
    try:
        return Answer(operation.answer, operation.perform(*operation.arguments, now_ms), None)
    except ValueError as error:
        # The book checks before it writes: the other operations of the batch are not concerned.
        return Answer(operation.answer, None, LedgerError(str(error)))


def _as_ledger_error(error: Exception) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    told = LedgerError(f"{type(error).__name__}: {error}")
    told.__cause__ = error
    return told
