"""The answer storage of an embedded gateway: a file beside the ledger's, opened on first use.

It is separate from the ledger, so that megabytes of answers do not delay reservations on the ledger's thread. The file may be
deleted while Farebox is stopped; then calls are made again that would have been answered from it. Claims are kept in this
process, because the ledger's lock excludes a second one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from gateway.answers.memory import ProcessClaims
from gateway.answers.port import AnswerLimits, AnswerStorageUnavailable, Claimed, Slot, StoredAnswer

T = TypeVar("T")
_VERSION: Final = 1
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS answers (
    use TEXT NOT NULL, project TEXT NOT NULL, key TEXT NOT NULL, expires_ms INTEGER NOT NULL, size INTEGER NOT NULL,
    fingerprint BLOB NOT NULL, content_type BLOB NOT NULL, body BLOB NOT NULL, PRIMARY KEY (use, project, key)
);
CREATE INDEX IF NOT EXISTS answers_by_end ON answers (use, project, expires_ms);
"""
_FIND: Final = """
SELECT fingerprint, content_type, body FROM answers WHERE use = ? AND project = ? AND key = ? AND expires_ms > ?
"""
_SOONEST: Final = (
    "SELECT key, size, expires_ms FROM answers WHERE use = ? AND project = ? ORDER BY expires_ms LIMIT 100"
)
_SIZE: Final = "SELECT size FROM answers WHERE use = ? AND project = ? AND key = ?"
_DROP: Final = "DELETE FROM answers WHERE use = ? AND project = ? AND key = ?"
_KEEP: Final = "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SIZES: Final = "SELECT use, project, SUM(size) FROM answers GROUP BY use, project"


class SqliteAnswerStorage:
    """Private methods run on the storage's own thread, except `_perform`."""

    renew_s = None

    def __init__(self, path: Path, limits: AnswerLimits, clock_ms: Callable[[], int]) -> None:
        self._path = path
        self._limits = limits
        self._clock_ms = clock_ms
        self._claims = ProcessClaims()
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._sizes: dict[tuple[str, str], int] = {}

    async def find(self, slot: Slot) -> StoredAnswer | None:
        return await self._perform(self._find, slot)

    async def claim(self, slot: Slot, fingerprint: bytes, owner: str) -> StoredAnswer | Claimed | None:
        # Claim first: between reading the file and claiming, another call could keep its answer.
        claimed = self._claims.claim(slot, fingerprint, owner)
        if claimed is not None:
            return claimed
        stored = None
        try:
            stored = await self.find(slot)
        except BaseException:
            self._claims.release(slot, owner)
            raise
        if stored is not None:
            self._claims.release(slot, owner)
        return stored

    async def renew(self, slot: Slot, owner: str) -> None:
        """Nothing expires here."""

    async def release(self, slot: Slot, owner: str) -> None:
        self._claims.release(slot, owner)

    async def put(self, slot: Slot, answer: StoredAnswer, ttl_ms: int) -> bool:
        try:
            return self._limits.accepts(answer) and await self._perform(self._put, slot, answer, ttl_ms)
        finally:
            self._claims.end(slot)

    async def close(self) -> None:
        if self._thread is not None:
            await self._perform(self._close)
            self._thread.shutdown()
            self._thread = None

    async def _perform(self, work: Callable[..., T], *arguments: Any) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="farebox-answers")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except (sqlite3.Error, OSError) as error:
            raise AnswerStorageUnavailable(
                f"{self._path}: {error}; it may be deleted while Farebox is stopped, and is made anew"
            ) from error

    def _find(self, slot: Slot) -> StoredAnswer | None:
        row = self._opened().execute(_FIND, (slot.use, slot.project, slot.key, self._clock_ms())).fetchone()
        return None if row is None else StoredAnswer(*row)

    def _put(self, slot: Slot, answer: StoredAnswer, ttl_ms: int) -> bool:
        connection, now_ms = self._opened(), self._clock_ms()
        partition = (slot.use, slot.project)
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            used_bytes = self._sizes.get(partition, 0) - _delete(connection, slot)
            used_bytes = self._evict(connection, slot, used_bytes, self._limits.bytes_max - answer.size, now_ms)
            row = (answer.size, answer.fingerprint, answer.content_type, answer.body)
            connection.execute(_KEEP, (*partition, slot.key, now_ms + ttl_ms, *row))
        self._sizes[partition] = used_bytes + answer.size
        return True

    @staticmethod
    def _evict(connection: sqlite3.Connection, slot: Slot, used_bytes: int, used_bytes_max: int, now_ms: int) -> int:
        """Delete expired answers, then those that expire soonest, until at most `used_bytes_max` bytes are used."""
        while soonest := connection.execute(_SOONEST, (slot.use, slot.project)).fetchall():
            for key, size, expires_ms in soonest:
                if expires_ms > now_ms and used_bytes <= used_bytes_max:
                    return used_bytes
                connection.execute(_DROP, (slot.use, slot.project, key))
                used_bytes -= size
        return used_bytes

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        self._path.chmod(0o600)  # it contains models' answers
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if connection.execute("PRAGMA user_version").fetchone()[0] not in (0, _VERSION):
            connection.execute("DROP TABLE IF EXISTS answers")
        connection.executescript(f"{_TABLE} PRAGMA user_version = {_VERSION};")
        self._sizes = {(use, project): size for use, project, size in connection.execute(_SIZES)}

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _delete(connection: sqlite3.Connection, slot: Slot) -> int:
    """Delete the entry to be replaced. Returns its bytes."""
    name = (slot.use, slot.project, slot.key)
    row = connection.execute(_SIZE, name).fetchone()
    if row is not None:
        connection.execute(_DROP, name)
    return 0 if row is None else int(row[0])


def answers_file(ledger: Path) -> Path:
    """The answers of `ledger.db` are in `ledger-answers.db`."""
    return ledger.with_name(f"{ledger.stem}-answers{ledger.suffix}")
