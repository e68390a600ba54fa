"""Access to the store: one engine, one schema, SQLite or Postgres.

    StoreError
    ├── StoreUnavailable    it cannot be reached, or the connection broke; a write's outcome is unknown, so writes are idempotent by id
    ├── StoreInUse          the SQLite file belongs to another process
    └── SchemaMismatch      the tables are older or newer than this gateway; the message says what to do

Behind pgbouncer in transaction mode no state may be left on a server connection: statements are unnamed, settings and locks
are local to a transaction, and LISTEN is not used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool

from gateway.store import postgres_tls
from gateway.store.file_lock import FileLock, FileLocked
from gateway.store.schema_snapshot import create_tables
from gateway.store.sqlite_engine import SqliteConnection, SqliteEngine
from gateway.store.tables import SCHEMA_REVISION

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# In a transaction. Both types have `execute`, `run_sync` and `dialect`, which is all that statements for either engine need.
StoreConnection: TypeAlias = "AsyncConnection | SqliteConnection"

# Long enough for a report over a partition that is not in memory, short enough to notice a dead peer.
STATEMENT_TIMEOUT_MS: Final = 30_000
CONNECT_TIMEOUT_MS: Final = 5_000
# How long to wait for a command, which holds the file of an embedded store for a second or so if no gateway does.
_COMMAND_S: Final = 3.0
_LOOK_S: Final = 0.05
# SQLSTATE classes after which the same work may succeed: connection, transaction state and rollback, authorization and
# missing database (an operator corrects both), resources, locks, operator intervention, system.
_RETRYABLE: Final = ("08", "25", "28", "3D", "40", "53", "55", "57", "58")
# The database user lacks a permission, or sees no schema at all, which an operator corrects.
_FORBIDDEN: Final = ("42501", "3F000")
_CONNECTIONS_MAX: Final = 8
# What to do about a Postgres that answers, but lacks something.
_ADVICE: Final = {
    "53100": "Its disk is full: free some space.",
    "53300": f"Each gateway process opens up to {_CONNECTIONS_MAX}: raise Postgres's max_connections or the role's limit, or use a pooler.",
}
# Data exceptions, integrity violations, program limits (a row or index entry that is too large).
_DATA_FAULTS: Final = ("22", "23", "54")
# People repair or replace a damaged file, after which the same work succeeds, too.
_SQLITE_RETRYABLE: Final = (
    "locked",
    "disk i/o",
    "is full",
    "readonly",
    "unable to open",
    "closed",
    "not a database",
    "malformed",
)
# Any constant that is the same in every gateway. (The bytes of "farebox".)
MIGRATION_LOCK: Final = 0x66617265626F78


class StoreError(Exception):
    """The store refused."""


class StoreUnavailable(StoreError):
    """The store cannot be reached. Try again: writes are idempotent by id."""


class StoreInUse(StoreError):
    """The file belongs to another process."""


class SchemaMismatch(StoreError):
    """The store's tables are not those of this gateway."""


class Database:
    """`url`: `sqlite:///file`, `sqlite://` (in memory, for tests) or `postgresql://…` (`sslmode` and its files as libpq has them)."""

    def __init__(self, url: str, *, connections_max: int = _CONNECTIONS_MAX) -> None:
        self._url = _driver_url(url)
        self._connections_max = connections_max
        self._engine: AsyncEngine | SqliteEngine | None = None
        self._lock: FileLock | None = None

    @property
    def is_postgres(self) -> bool:
        return self._url.get_backend_name() == "postgresql"

    @property
    def _file(self) -> Path | None:
        name = self._url.database
        return None if self.is_postgres or name in (None, "", ":memory:") else Path(str(name))

    async def open(self, *, waits: bool = False) -> None:
        """Take the file's lock (SQLite) and make the engine, without connecting yet. Raises StoreInUse, StoreUnavailable.
        `waits`: wait for a command that may hold the file for a moment."""
        if self._engine is None:
            await self._wait_for_lock(_COMMAND_S if waits else 0.0)
            self._engine = self._make_engine(migrating=False)

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[StoreConnection]:
        """One transaction, committed at the end of the block. Raises StoreUnavailable; data errors pass through unchanged."""
        if self._engine is None:
            raise StoreUnavailable("The store is not open.")
        async with _translate_errors(), self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[StoreConnection]:
        """A transaction in which several queries see the same snapshot. Raises StoreUnavailable."""
        if self._engine is None:
            raise StoreUnavailable("The store is not open.")
        engine = self._engine
        if not isinstance(engine, SqliteEngine):
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        async with _translate_errors(), engine.begin() as connection:
            yield connection

    async def schema_revision(self) -> str | None:
        """The revision of the store's tables; None if there are none."""
        async with self.begin() as connection:
            if not await connection.run_sync(lambda sync: inspect(sync).has_table("alembic_version")):
                return None
            return (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()

    async def check_schema(self) -> None:
        """Raises SchemaMismatch with one sentence unless the tables are exactly those of this gateway."""
        revision = await self.schema_revision()
        if revision is None:
            raise SchemaMismatch("The store has no tables yet: run `farebox migrate`.")
        # Revisions are numbers of four digits, so they sort as texts.
        if revision < SCHEMA_REVISION:
            raise SchemaMismatch(
                f"The store's schema {revision} is older than this gateway's {SCHEMA_REVISION}: run `farebox migrate`."
            )
        if revision > SCHEMA_REVISION:
            raise SchemaMismatch(
                f"The store's schema {revision} is newer than this gateway's {SCHEMA_REVISION}: upgrade the gateway."
            )

    async def migrate(self, now_ms: int) -> str:
        """Bring the tables to this gateway's revision in one transaction, completely or not at all. Returns the revision.

        Safe for concurrent starts: the second one waits and finds nothing to do. `now_ms` determines which months get partitions.
        """
        if not self.is_postgres:
            async with self.begin() as connection:
                await connection.run_sync(create_tables)
            if await self.schema_revision() == SCHEMA_REVISION:
                return SCHEMA_REVISION  # the usual start of an embedded store, which does not even load Alembic
        from gateway.store.migration import upgrade

        engine = self._make_engine(migrating=True) if self.is_postgres else self._engine
        if engine is None:
            raise StoreUnavailable("The store is not open.")
        try:
            async with _translate_errors(), engine.begin() as connection:
                if self.is_postgres:
                    await connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
                await upgrade(connection, now_ms)
        finally:
            if engine is not self._engine:
                await engine.dispose()
        return SCHEMA_REVISION

    async def _wait_for_lock(self, wait_s: float) -> None:
        patient_until_s = time.monotonic() + wait_s
        while True:
            try:
                self._take_lock()
            except StoreInUse:
                if time.monotonic() >= patient_until_s:
                    raise
                await asyncio.sleep(_LOOK_S)
            else:
                return

    def _take_lock(self) -> None:
        if self._file is None:
            return
        lock = FileLock(self._file)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except FileLocked as error:
            raise StoreInUse(
                f"The store {self._file} is used by another process; an SQLite file belongs to one at a time. "
                "Stop that process, or name another file in storage.store."
            ) from error
        except OSError as error:
            raise StoreUnavailable(f"The store {self._file} cannot be opened: {error.strerror}.") from error
        self._lock = lock

    def _make_engine(self, *, migrating: bool) -> AsyncEngine | SqliteEngine:
        return self._postgres_engine(migrating=migrating) if self.is_postgres else SqliteEngine(self._url)

    def _postgres_engine(self, *, migrating: bool) -> AsyncEngine:
        from sqlalchemy.ext.asyncio import create_async_engine  # loads SQLAlchemy's ORM, too: 7 MB

        connect_args: dict[str, Any] = {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": _empty_statement_name,
            "timeout": CONNECT_TIMEOUT_MS / 1000,
            # A migration may rewrite a large table, and takes as long as it takes.
            "command_timeout": None if migrating else STATEMENT_TIMEOUT_MS / 1000,
            **_tls_arguments(self._url),
        }
        url = self._url.difference_update_query(["sslmode", *postgres_tls.FILES])
        if migrating:
            return create_async_engine(url, connect_args=connect_args, hide_parameters=True, poolclass=NullPool)
        return create_async_engine(
            url,
            connect_args=connect_args,
            hide_parameters=True,
            pool_size=self._connections_max,
            max_overflow=0,
            pool_timeout=CONNECT_TIMEOUT_MS / 1000,
            pool_pre_ping=True,
            pool_recycle=1800,
        )


def _driver_url(url: str) -> URL:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return parsed.set(drivername="sqlite+pysqlite")
    if parsed.drivername not in ("postgres", "postgresql", "postgresql+asyncpg"):
        raise StoreError(f"A store is sqlite:///… or postgresql://…, not {parsed.drivername}://…")
    return parsed.set(drivername="postgresql+asyncpg")


def _tls_arguments(url: URL) -> dict[str, Any]:
    try:
        return postgres_tls.tls_arguments(url.query)
    except (OSError, ValueError) as error:
        raise StoreError(f"The TLS settings of storage.store cannot be used: {error}.") from error


def _empty_statement_name() -> str:
    """A named prepared statement would stay on a connection that pgbouncer hands to another client."""
    return ""


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed later: the store is unreachable or busy, or the connection broke; the data is not at fault."""
    if isinstance(error, OSError | TimeoutError | PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state:
        return str(state)[:2] in _RETRYABLE or state in _FORBIDDEN
    words = str(error.orig).lower()
    return type(error.orig).__name__ == "InterfaceError" or any(word in words for word in _SQLITE_RETRYABLE)


def is_data_fault(error: BaseException) -> bool:
    """Whether the engine refused the content of a row: then retrying is useless, but leaving the row out is not."""
    if isinstance(error, OverflowError):  # sqlite3 raises it for integers of more than 64 bits
        return True
    if not isinstance(error, DBAPIError) or is_transient(error):
        return False
    state = getattr(error.orig, "sqlstate", None)
    return str(state)[:2] in _DATA_FAULTS if state else isinstance(error, DataError | IntegrityError)


@asynccontextmanager
async def _translate_errors() -> AsyncIterator[None]:
    try:
        yield
    except (OSError, TimeoutError, SQLAlchemyError) as error:
        state = getattr(getattr(error, "orig", None), "sqlstate", None)
        if state in _FORBIDDEN:
            raise StoreUnavailable(
                f"The store refuses its user: {first_line(error)}. Give it the right to, or use the owner of the tables."
            ) from error
        if is_transient(error):
            advice = f". {_ADVICE[state]}" if state in _ADVICE else ""
            raise StoreUnavailable(f"The store cannot be reached: {first_line(error)}{advice}") from error
        raise


def first_line(error: BaseException) -> str:
    """The driver's message without the statement and its parameters, which may contain what must not be logged."""
    cause = getattr(error, "orig", None) or error
    return (str(cause) or type(cause).__name__).splitlines()[0]
