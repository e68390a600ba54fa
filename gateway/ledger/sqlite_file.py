"""One SQLite file, fit to keep money in: used by one process over one connection, complete, and not newer than this version.

Errors are `LedgerError`s that say what to do.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

from gateway.ledger.port import LedgerError, LedgerInUse, LedgerUnavailable
from gateway.ledger.sqlite_schema import APPLICATION_ID, JOURNAL, TABLES, VERSION
from gateway.store.file_lock import FileLock, FileLocked

Durability = Literal["normal", "strict"]

_BUSY_TIMEOUT_S = 1.0
# How many changed rows trigger a checkpoint of the write-ahead log: 6 MB of log, some 230 calls. Operations wait meanwhile:
# the slowest of a thousand calls takes 9 ms, and 19 with a log four times as long (`python -m bench.ledger --engine sqlite`).
CHECKPOINT_ROWS = 1_000
_OLDEST_SQLITE = (3, 27, 0)  # the first with VACUUM INTO


class SqliteFile:
    """Opened by the constructor. `connection` is in autocommit mode outside of `BEGIN`.

    While it is open, the file is marked as not closed cleanly. A file with that mark but without its `-wal` has lost what was
    acknowledged last (the `-wal` was deleted, or only the main file was copied), and is refused.
    """

    def __init__(self, path: Path, durability: Durability) -> None:
        self._path = path
        self._wal_path = path.with_name(path.name + "-wal")
        with ExitStack() as undo:
            self._lock = _acquire_lock(path)
            undo.callback(self._lock.release)
            _check_writable(path)
            wal_was_there = self._wal_path.exists()
            try:
                self.connection = sqlite3.connect(
                    path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                )
                undo.callback(self.connection.close)
                self._prepare(durability, wal_was_there)
            except sqlite3.Error as error:
                raise self.explain(error) from error
            undo.pop_all()
        self._original_inodes = self._inodes()
        self._rows_at_checkpoint = self.connection.total_changes

    def is_checkpoint_due(self) -> bool:
        return self.connection.total_changes - self._rows_at_checkpoint >= CHECKPOINT_ROWS

    def checkpoint(self) -> None:
        """Checkpoint the write-ahead log, which waits for the disk. SQLite would otherwise do it in the middle of some commit."""
        self._rows_at_checkpoint = self.connection.total_changes
        with suppress(sqlite3.Error):  # on failure the log stays long, nothing is lost, and it is tried again later
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def check_not_replaced(self) -> None:
        """Raise if the file was deleted or replaced: what is written then would be lost when this process ends.

        Both files are still open, so nothing is lost yet: `close` moves everything into the main file, and puts that back.
        """
        if self._inodes() != self._original_inodes:
            raise LedgerUnavailable(
                f"{self._path} or its -wal file was deleted or replaced while the ledger was using it. Stop this process: "
                f"that writes {self._path} anew or, if another file is in its place, {self._rescue_path.name} beside it. Then see that "
                "the right file is there, and start again"
            )

    def explain(self, error: sqlite3.Error) -> LedgerError:
        """The same error in words for the person who has to repair it."""
        name = getattr(error, "sqlite_errorname", "")
        for prefix, kind, advice in _FAULTS:
            if name.startswith(prefix):
                return kind(f"the ledger {self._path}: {advice} ({error}, {name})")
        return LedgerError(f"the ledger {self._path}: {error} ({name or type(error).__name__})")

    def close(self) -> None:
        """Checkpoint the write-ahead log and mark the file as closed cleanly. Releases the lock in any case."""
        is_marked = False
        try:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # first, so that a full disk has room
            self.connection.execute("UPDATE meta SET value = 1 WHERE key = 'clean'")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            is_marked = True
            self._rescue()
        except sqlite3.Error as error:
            raise self.explain(error) from error
        finally:
            self.connection.close()
            if not is_marked:
                self._keep_wal()
            self._lock.release()

    def _keep_wal(self) -> None:
        """SQLite deletes the log when all of it is in the main file. The mark is not there, so that would look like a loss."""
        with suppress(OSError):
            self._wal_path.touch()

    def _rescue(self) -> None:
        """A deleted file lives as long as it is open. Without this, what the store does not have yet would go with it."""
        inode = _inode(self._path)
        if inode is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.connection.execute("VACUUM INTO ?", (str(self._path),))
        elif self._original_inodes is not None and inode != self._original_inodes[0]:
            self._rescue_path.unlink(missing_ok=True)
            self.connection.execute("VACUUM INTO ?", (str(self._rescue_path),))

    @property
    def _rescue_path(self) -> Path:
        return self._path.with_name(f"{self._path.name}.rescued")

    def _prepare(self, durability: Durability, wal_was_there: bool) -> None:
        # No one else may open this file: before SQLite 3.51.3 two connections can corrupt a WAL.
        self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self.connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'strict' else 'NORMAL'}")
        self.connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()  # see `checkpoint`
        if self._is_empty():
            self._create()
        else:
            self._check_version()
            self.connection.execute("PRAGMA journal_mode = WAL").fetchall()
            self._check_integrity(wal_was_there)
            self._upgrade_schema()
            self.connection.execute("UPDATE meta SET value = 0 WHERE key = 'clean'")
        # The mark has to be in the main file itself, because the -wal may be what gets lost.
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _is_empty(self) -> bool:
        (tables,) = self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return bool(tables == 0) and self._pragma("application_id") == 0

    def _create(self) -> None:
        self.connection.execute("PRAGMA journal_mode = WAL").fetchall()
        self.connection.execute("BEGIN IMMEDIATE")
        for statement in TABLES:
            self.connection.execute(statement)
        rows = [("epoch", secrets.token_hex(8)), ("clean", 0), ("highest_ms", 0)]
        self.connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", rows)
        self.connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self.connection.execute(f"PRAGMA user_version = {VERSION}")
        self.connection.execute("COMMIT")

    def _check_version(self) -> None:
        if self._pragma("application_id") != APPLICATION_ID:
            raise LedgerError(f"{self._path} is a database of another program: name another file for the ledger")
        version = self._pragma("user_version")
        if version > VERSION:
            raise LedgerError(
                f"the ledger {self._path} was written by a newer Farebox (schema {version}, this one knows {VERSION}): "
                "install that version again, or name another file"
            )

    def _upgrade_schema(self) -> None:
        if self._pragma("user_version") < VERSION:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.execute(JOURNAL)
            self.connection.execute(f"PRAGMA user_version = {VERSION}")
            self.connection.execute("COMMIT")

    def _check_integrity(self, wal_was_there: bool) -> None:
        (clean,) = self.connection.execute("SELECT value FROM meta WHERE key = 'clean'").fetchone()
        if not clean and not wal_was_there:
            raise LedgerError(
                f"the ledger {self._path} was not closed cleanly, and {self._wal_path.name} is not beside it: what was booked last "
                "is missing. Put that file back; or, to go on without it, move the ledger away, so that a new one is filled from the store"
            )
        (verdict,) = self.connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise LedgerError(f"the ledger {self._path}: {_DAMAGED} ({verdict})")

    def _pragma(self, name: str) -> int:
        (value,) = self.connection.execute(f"PRAGMA {name}").fetchone()
        return int(value)

    def _inodes(self) -> tuple[int, int] | None:
        main, wal = _inode(self._path), _inode(self._wal_path)
        return None if main is None or wal is None else (main, wal)


def _inode(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return os.stat(path).st_ino
    return None


_DAMAGED = "it is damaged. Restore it from a backup; or move it away, so that a new one is filled from the store"
_FAULTS: tuple[tuple[str, type[LedgerError], str], ...] = (
    ("SQLITE_FULL", LedgerUnavailable, "the disk is full, nothing was booked. Free some space"),
    (
        "SQLITE_READONLY",
        LedgerUnavailable,
        "it cannot be written. Give this user the right to write the file and its folder",
    ),
    ("SQLITE_BUSY", LedgerUnavailable, "another program has it open. Close that program"),
    ("SQLITE_LOCKED", LedgerUnavailable, "another program has it open. Close that program"),
    ("SQLITE_IOERR", LedgerUnavailable, "the disk failed, nothing was booked. Look at the disk and its space"),
    ("SQLITE_CANTOPEN", LedgerUnavailable, "it cannot be opened. See that its folder exists and can be written"),
    ("SQLITE_CORRUPT", LedgerUnavailable, _DAMAGED),
    ("SQLITE_NOTADB", LedgerUnavailable, _DAMAGED),
    ("SQLITE_CONSTRAINT", LedgerError, "an account would hold less than nothing: the file was changed by hand"),
)


def _acquire_lock(path: Path) -> FileLock:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise LedgerError(f"SQLite {sqlite3.sqlite_version} is too old for the ledger: 3.27 is needed")
    lock, lock_path = FileLock(path), path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        lock_path.write_text(f"{os.getpid()}\n")
    except FileLocked as error:
        raise LedgerInUse(
            f"the ledger {path} is in use by process {_pid_in(lock_path)} (lock file {lock_path}). Stop that process first; "
            "several processes need a ledger in Redis"
        ) from error
    except OSError as error:
        raise LedgerUnavailable(
            f"the ledger {path}: its folder cannot be written ({error}). Give this user the right to, or name another file"
        ) from error
    return lock


def _check_writable(path: Path) -> None:
    """SQLite would open the file read-only, and then fail to lock it with a meaningless I/O error."""
    if path.exists() and not os.access(path, os.W_OK):
        raise LedgerUnavailable(f"the ledger {path}: it cannot be written. Give this user the right to write the file")


def _pid_in(lock_path: Path) -> str:
    try:
        return lock_path.read_text().strip() or "unknown"
    except OSError:
        return "unknown"
