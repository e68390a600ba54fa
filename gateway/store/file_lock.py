"""A lock that keeps a second process away from an SQLite file, and is released when its process dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path


class FileLocked(Exception):
    """Another process holds the lock."""


class FileLock:
    """Held on `<file>.lock` beside the protected file. That file stays after release, because deleting it would race with the
    next lock."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raises FileLocked if another process (or another holder in this one) has it, OSError if the folder is not writable."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise FileLocked(f"{self.path} is held by another process") from error
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock of a file now. Creates nothing: a lock that was never taken has no file."""
    lock = FileLock(path)
    try:
        if not lock.path.exists():
            return False
        lock.acquire()
    except FileLocked:
        return True
    except OSError:  # not accessible to this user, so the state is unknown
        return False
    lock.release()
    return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
