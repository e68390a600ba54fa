"""When to stop asking a ledger that fails or drags.

    closed  ──  half of the last `window` answers bad, or `in_a_row` bad ones in a row  ──▶  open
    open    ──  a probe was answered well (`close`)                                     ──▶  closed

Bad is a failure, and also an answer that took longer than `slow_ms`: calls that wait for a dragging ledger pile up just as
those that wait for a dead one. There is no half-open state: while open, only the probe asks, so one call cannot be the victim.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# Enough to outlast a single lost connection, few enough that a caller alone notices an outage within a second or so.
_IN_A_ROW: Final = 5
_WINDOW: Final = 20


class Breaker:
    """`slow_ms`: from which duration on an answer counts as bad."""

    def __init__(self, *, slow_ms: int, in_a_row: int = _IN_A_ROW, window: int = _WINDOW) -> None:
        self.slow_ms = slow_ms
        self._in_a_row = in_a_row
        self._window = window
        self._last: deque[bool] = deque(maxlen=window)  # True: bad
        self._bad_in_a_row = 0
        self.is_open = False
        self.times_opened = 0

    def answered(self, elapsed_ms: float) -> None:
        """An answer came, be it a refusal."""
        self._note(bad=elapsed_ms > self.slow_ms)

    def failed(self) -> None:
        self._note(bad=True)

    def close(self) -> None:
        """A probe was answered well: start afresh."""
        self.is_open = False
        self._last.clear()
        self._bad_in_a_row = 0

    def _note(self, *, bad: bool) -> None:
        self._last.append(bad)
        if not bad:
            self._bad_in_a_row = 0
            return
        self._bad_in_a_row += 1
        half_bad = len(self._last) == self._window and sum(self._last) * 2 >= self._window
        if not self.is_open and (half_bad or self._bad_in_a_row >= self._in_a_row):
            self.is_open = True
            self.times_opened += 1
