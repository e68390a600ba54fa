"""SQLite for an event loop: one connection, used in a thread of its own, with the part of SQLAlchemy's `AsyncConnection` that the
store needs.

SQLAlchemy's own way to SQLite hands each cursor over to a thread four times a statement, and loads its ORM (7 MB) with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, CursorResult, Dialect, Engine
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql import Executable

# A second writer never exists, so this only covers the moment in which SQLite itself checkpoints.
BUSY_TIMEOUT_MS: Final = 5_000
# How long a transaction waits for those before it.
_TURN_S: Final = 60.0

T = TypeVar("T")
P = ParamSpec("P")


class SqliteEngine:
    """SQLite before 3.51.3 can corrupt a WAL file that two connections write: one is all there ever is."""

    def __init__(self, url: URL) -> None:
        # Error messages reach logs, and parameters hold what people wrote.
        self._engine = create_engine(url, hide_parameters=True, poolclass=QueuePool, pool_size=1, max_overflow=0)
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[SqliteConnection]:
        """One transaction, committed at the end of the block. Raises TimeoutError when those before it take a minute."""
        async with asyncio.timeout(_TURN_S):
            await self._turn.acquire()
        connection = SqliteConnection(self._engine, self._thread)
        try:
            yield connection
            await connection.end(commit=True)
        finally:
            # The thread does one thing after the other: where this was cancelled it ends what it is at, rolls back, and only then begins
            # the next transaction, whether anybody waits for it or not.
            self._turn.release()
            await connection.end(commit=False)

    async def dispose(self) -> None:
        """Closes the file, after the transaction that is under way."""
        async with self._turn:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
            self._thread.shutdown(wait=False)


class SqliteConnection:
    """The connection in one transaction, which begins with its first statement. What it returns has been fetched: nothing waits
    for SQLite any more.

    A call may wait for each hand-over to the thread, so a transaction of one statement makes two: that statement, and the end.
    """

    def __init__(self, engine: Engine, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread
        self._connection: Connection | None = None
        self._is_over = True  # nothing was handed over yet that has to be ended

    @property
    def dialect(self) -> Dialect:
        return self._engine.dialect

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[*tuple[Any, ...]]:
        return await self.run_sync(_fetched, statement, parameters)

    async def run_sync(
        self, function: Callable[Concatenate[Connection, P], T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        """`function` in the thread of the connection, which is its first argument."""

        def run() -> T:
            if self._connection is None:
                self._connection = self._engine.connect()
                self._connection.begin()
            return function(self._connection, *arguments, **named)

        self._is_over = False
        return await self._hand_over(run)

    async def end(self, *, commit: bool) -> None:
        """Commits or rolls back, and gives the connection back. Does nothing when that was done, or when there was no statement."""

        def end_it() -> None:
            if self._connection is not None:
                with self._connection:
                    if commit:
                        self._connection.commit()

        if not self._is_over:
            self._is_over = True
            await asyncio.shield(self._hand_over(end_it))

    def _hand_over(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work)


def _fetched(connection: Connection, statement: Executable, parameters: Any) -> CursorResult[*tuple[Any, ...]]:
    result = connection.execute(statement, parameters)
    if not result.returns_rows:
        return result
    # A result of the same rows without the cursor; `rowcount`, the only thing that it lacks, is nobody's question where there are rows.
    return cast("CursorResult[*tuple[Any, ...]]", result.freeze()())


def _prepare(connection: Any, _record: Any) -> None:
    # The driver's own idea of transactions leaves DDL outside of them; ours begins each explicitly.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
    except BaseException:
        connection.close()  # the pool has not seen it yet, and would leave it open
        raise
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
