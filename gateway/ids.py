"""Ids that sort by time: 48 bits of milliseconds, then 80 random bits (the layout of UUIDv7 and ULID), as 32 hex digits."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable


class Ids:
    """Random bytes are read from the system in blocks, one read for 64 ids."""

    def __init__(self, clock_ms: Callable[[], int], random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._clock_ms = clock_ms
        self._random_bytes = random_bytes
        self._pool = b""
        self._used = 0

    def new(self) -> str:
        if self._used >= len(self._pool):
            self._pool, self._used = self._random_bytes(640), 0
        random_part = self._pool[self._used : self._used + 10]
        self._used += 10
        return f"{self._clock_ms():012x}{random_part.hex()}"


def process_name() -> str:
    """The name of this process, for display and for things that several processes share."""
    return f"{socket.gethostname()}:{os.getpid()}"
