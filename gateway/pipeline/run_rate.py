"""Limits how many runs a key may begin per minute.

Every new run starts with a fresh run budget, and a client could name a new run for each call, or a new workflow, whose first call
begins an implicit run. The budgets of workflow, key and project still hold then; this limit bounds the number of runs that the
ledger and the store have to remember. Each process counts for itself, and treats a run as new unless it is among the last 50,000
that it has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cachetools import LRUCache, TTLCache

from gateway.errors import Overloaded
from gateway.pipeline.call import Call

_MINUTE_S: Final = 60
_KNOWN_MAX: Final = 50_000
_KEYS_MAX: Final = 10_000


class NewRunLimit:
    """`per_minute_max`: how many new runs per key; 0: no limit. `timer_s`: a monotonic clock."""

    def __init__(self, per_minute_max: int, timer_s: Callable[[], float]) -> None:
        self._max = per_minute_max
        self._timer_s = timer_s
        self._known: LRUCache[tuple[str, str], bool] = LRUCache(_KNOWN_MAX)
        self._begun_in_minute: TTLCache[tuple[str, str, int], int] = TTLCache(_KEYS_MAX, 2 * _MINUTE_S, timer_s)

    def check(self, call: Call) -> None:
        """Count the call's run if it is new. Raises `Overloaded` (429) above the limit."""
        run, principal = call.run, call.principal
        if run is None or not self._max or (principal.project, run) in self._known:
            return
        now_s = self._timer_s()
        minute = (principal.project, principal.key_id, int(now_s // _MINUTE_S))
        begun_count = self._begun_in_minute.get(minute, 0)
        if begun_count >= self._max:
            raise Overloaded(
                f"This key has begun {begun_count} runs in a minute, and may not begin more.",
                code="too_many_new_runs",
                headers={"retry-after": str(int(_MINUTE_S - now_s % _MINUTE_S) + 1)},
            )
        self._begun_in_minute[minute] = begun_count + 1
        self._known[principal.project, run] = True
