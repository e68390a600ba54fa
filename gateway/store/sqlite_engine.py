"""SQLite for an event loop: one connection, used in its own thread, with the part of SQLAlchemy's `AsyncConnection` that the store needs.

SQLAlchemy's own async driver for SQLite takes four thread switches per statement, and loads its ORM (7 MB).
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

# There is never a second writer, so this only covers the moment in which SQLite itself checkpoints.
BUSY_TIMEOUT_MS: Final = 5_000
# How long a transaction waits for those before it.
_TURN_S: Final = 60.0

T = TypeVar("T")
P = ParamSpec("P")


class SqliteEngine:
    """Before 3.51.3, SQLite can corrupt a WAL file that two connections write, so there is only one."""

    def __init__(self, url: URL) -> None:
        # Error messages reach logs, and parameters contain user data.
        self._engine = create_engine(url, hide_parameters=True, poolclass=QueuePool, pool_size=1, max_overflow=0)
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[SqliteConnection]:
        """One transaction, committed at the end of the block. Raises TimeoutError if those before it take a minute."""
        async with asyncio.timeout(_TURN_S):
            await self._turn.acquire()
        connection = SqliteConnection(self._engine, self._thread)
        try:
            yield connection
            await connection.end(commit=True)
        finally:
            # The thread works in order: if this was cancelled, it finishes the current statement, rolls back, and only then
            # begins the next transaction, whether anybody waits for it or not.
            self._turn.release()
            await connection.end(commit=False)

    async def dispose(self) -> None:
        """Close the file after the current transaction."""
        async with self._turn:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
            self._thread.shutdown(wait=False)


class SqliteConnection:
    """The connection in one transaction, which begins with its first statement. Results are fetched completely, so nothing
    has to wait for SQLite later.

    A call may wait for each thread switch, so a transaction of one statement has two: the statement, and the end.
    """

    def __init__(self, engine: Engine, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread
        self._connection: Connection | None = None
        self._is_over = True  # nothing was started that has to be ended

    @property
    def dialect(self) -> Dialect:
        return self._engine.dialect

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[*tuple[Any, ...]]:
        return await self.run_sync(_execute_and_fetch, statement, parameters)

    async def run_sync(
        self, function: Callable[Concatenate[Connection, P], T], *arguments: P.args, **keywords: P.kwargs
    ) -> T:
        """Run `function` in the connection's thread, with the connection as its first argument."""

        def run() -> T:
            if self._connection is None:
                self._connection = self._engine.connect()
                self._connection.begin()
            return function(self._connection, *arguments, **keywords)

        self._is_over = False
        return await self._run_in_thread(run)

    async def end(self, *, commit: bool) -> None:
        """Commit or roll back, and return the connection. Does nothing if that was done, or there was no statement."""

        def end_it() -> None:
            if self._connection is not None:
                with self._connection:
                    if commit:
                        self._connection.commit()

        if not self._is_over:
            self._is_over = True
            await asyncio.shield(self._run_in_thread(end_it))

    def _run_in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work)


def _execute_and_fetch(
    connection: Connection, statement: Executable, parameters: Any
) -> CursorResult[*tuple[Any, ...]]:
    result = connection.execute(statement, parameters)
    if not result.returns_rows:
        return result
    # A result of the same rows without the cursor. It only lacks `rowcount`, which nobody needs for a query.
    return cast("CursorResult[*tuple[Any, ...]]", result.freeze()())


def _prepare(connection: Any, _record: Any) -> None:
    # By default the driver leaves DDL outside of transactions; the store begins each one explicitly.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
    except BaseException:
        connection.close()  # the pool does not know it yet, and would leave it open
        raise
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
