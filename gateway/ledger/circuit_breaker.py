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
_FAILURES_IN_A_ROW_MAX: Final = 2
# Few enough that even a single caller notices a slow ledger within a second or so.
_BAD_IN_A_ROW_MAX: Final = 5
_RECENT_MAX: Final = 20


class CircuitBreaker:
    """An answer that takes longer than `slow_ms` is bad. Times are in seconds of any monotonic clock."""

    def __init__(self, *, slow_ms: int) -> None:
        self.slow_ms = slow_ms
        self._recent_results: deque[bool] = deque(maxlen=_RECENT_MAX)  # True: bad
        self._failed_in_a_row = 0
        self._bad_in_a_row = 0
        self._counted_at_s = float("-inf")
        self.is_open = False
        self.times_opened = 0

    def record_answer(self, started_at_s: float, now_s: float, duration_ms: float) -> None:
        """An answer came, possibly a refusal. `duration_ms` is the ledger's part of the time."""
        if self._is_independent(started_at_s, now_s):
            self._failed_in_a_row = 0
            self._record_result(bad=duration_ms > self.slow_ms)

    def record_failure(self, started_at_s: float, now_s: float) -> None:
        if self._is_independent(started_at_s, now_s):
            self._failed_in_a_row += 1
            self._record_result(bad=True)

    def close(self) -> None:
        """A probe succeeded: start afresh."""
        self.is_open = False
        self._recent_results.clear()
        self._failed_in_a_row = self._bad_in_a_row = 0

    def _is_independent(self, started_at_s: float, now_s: float) -> bool:
        if started_at_s < self._counted_at_s:
            return False
        self._counted_at_s = now_s
        return True

    def _record_result(self, *, bad: bool) -> None:
        self._recent_results.append(bad)
        self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0
        half_bad = len(self._recent_results) == _RECENT_MAX and sum(self._recent_results) * 2 >= _RECENT_MAX
        if not self.is_open and (
            half_bad or self._bad_in_a_row >= _BAD_IN_A_ROW_MAX or self._failed_in_a_row >= _FAILURES_IN_A_ROW_MAX
        ):
            self.is_open = True
            self.times_opened += 1
