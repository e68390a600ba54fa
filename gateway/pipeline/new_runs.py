"""How many runs a key may begin in a minute.

A run's budget begins anew with every run. Whoever may name runs could name a new one for each call: what is then kept are the
budgets of the workflow, the key and the project, and this keeps the number of runs that ledger and store have to remember in bounds.
Each process counts for itself, and takes a run for new that it has not seen among the last fifty thousand.
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


class NewRuns:
    """`per_minute_max` 0: as many as they like."""

    def __init__(self, per_minute_max: int, timer_s: Callable[[], float]) -> None:
        self._max = per_minute_max
        self._timer_s = timer_s
        self._known: LRUCache[tuple[str, str], bool] = LRUCache(_KNOWN_MAX)
        self._begun: TTLCache[tuple[str, str, int], int] = TTLCache(_KEYS_MAX, 2 * _MINUTE_S, timer_s)

    def check(self, call: Call) -> None:
        """Raises `Overloaded` (429) for a run too many."""
        run, principal = call.tags.run, call.principal
        if run is None or not self._max or (principal.project, run) in self._known:
            return
        now_s = self._timer_s()
        minute = (principal.project, principal.key_id, int(now_s // _MINUTE_S))
        begun = self._begun.get(minute, 0)
        if begun >= self._max:
            raise Overloaded(
                f"This key has begun {begun} runs in a minute, and may not begin more.",
                code="too_many_new_runs",
                headers={"retry-after": str(int(_MINUTE_S - now_s % _MINUTE_S) + 1)},
            )
        self._begun[minute] = begun + 1
        self._known[principal.project, run] = True
