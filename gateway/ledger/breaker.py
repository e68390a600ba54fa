"""The circuit breaker: when to stop using a ledger that fails or is slow.

    closed  ──  2 failures or 5 bad results in a row, or half of the last 20 bad  ──▶  open
    open    ──  a probe succeeded quickly (`close`)                               ──▶  closed

A bad result is a failure, or an answer that took longer than `slow_ms`: calls that wait for a slow ledger pile up like those
that wait for a dead one. Operations that were in flight together count once: thirty of them met the same delay, which may
have been a pause of the scheduler, and a thousand callers must not open the breaker sooner than one. There is no half-open
state: while it is open only the probe uses the ledger, so no call is sacrificed.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# One failure may be a pause. A second one, of an operation that began after it, comes a deadline later: an outage.
_FAILED_IN_A_ROW: Final = 2
# Few enough that even a single caller notices a slow ledger within a second or so.
_BAD_IN_A_ROW: Final = 5
_WINDOW: Final = 20


class Breaker:
    """An answer that takes longer than `slow_ms` is bad. Times are in seconds of any monotonic clock."""

    def __init__(self, *, slow_ms: int) -> None:
        self.slow_ms = slow_ms
        self._last: deque[bool] = deque(maxlen=_WINDOW)  # True: bad
        self._failed_in_a_row = 0
        self._bad_in_a_row = 0
        self._counted_at_s = float("-inf")
        self.is_open = False
        self.times_opened = 0

    def answered(self, asked_at_s: float, now_s: float, took_ms: float) -> None:
        """An answer came, possibly a refusal. `took_ms` is the ledger's part of the time."""
        if self._is_news(asked_at_s, now_s):
            self._failed_in_a_row = 0
            self._note(bad=took_ms > self.slow_ms)

    def failed(self, asked_at_s: float, now_s: float) -> None:
        if self._is_news(asked_at_s, now_s):
            self._failed_in_a_row += 1
            self._note(bad=True)

    def close(self) -> None:
        """A probe succeeded: start afresh."""
        self.is_open = False
        self._last.clear()
        self._failed_in_a_row = self._bad_in_a_row = 0

    def _is_news(self, asked_at_s: float, now_s: float) -> bool:
        if asked_at_s < self._counted_at_s:
            return False
        self._counted_at_s = now_s
        return True

    def _note(self, *, bad: bool) -> None:
        self._last.append(bad)
        self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0
        half_bad = len(self._last) == _WINDOW and sum(self._last) * 2 >= _WINDOW
        if not self.is_open and (
            half_bad or self._bad_in_a_row >= _BAD_IN_A_ROW or self._failed_in_a_row >= _FAILED_IN_A_ROW
        ):
            self.is_open = True
            self.times_opened += 1
