"""A clock for in-process engines: it follows the wall clock, but never goes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def wall_clock_ms() -> int:
    """Milliseconds since the epoch, by this machine's clock."""
    return time.time_ns() // 1_000_000


class SteadyClock:
    """The highest time seen so far, in ms since the epoch. Thread-safe.

    When the wall clock is set back, this clock goes on at half pace until the wall clock has caught up. Standing still would
    be simpler, but would keep the holds of dead owners for as long as the clock had been wrong: a day, or a year.
    """

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._lock = threading.Lock()
        self._wall_seen_ms = self._now_ms = wall_ms()
        self._behind_since = (self._wall_seen_ms, self._now_ms)  # (wall, own) when the wall clock fell behind

    def now_ms(self) -> int:
        with self._lock:
            wall_ms = self._wall_ms()
            if wall_ms >= self._now_ms:
                self._now_ms = wall_ms
            elif wall_ms < self._wall_seen_ms:
                self._behind_since = (wall_ms, self._now_ms)
            else:
                wall_then_ms, own_then_ms = self._behind_since
                self._now_ms = max(self._now_ms, own_then_ms + (wall_ms - wall_then_ms) // 2)
            self._wall_seen_ms = wall_ms
            return self._now_ms

    def advance_to(self, now_ms: int) -> None:
        """Take over a time that was seen before this process began."""
        with self._lock:
            if now_ms > self._now_ms:
                self._now_ms = now_ms
                self._behind_since = (self._wall_seen_ms, now_ms)
