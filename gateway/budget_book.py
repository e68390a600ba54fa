"""All budgets that apply now: those of the file, those made at run time, and each key's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from cachetools import LRUCache

from gateway.config_budgets import BudgetConfig, usd_to_nano
from gateway.control import Snapshot
from policies.amounts import Limit
from policies.budgets import Budget, Scope, Subject, Window

_MATCHES_MAX: Final = 20_000
_NO_LIMITS: Final[tuple[Budget, ...]] = ()


class BudgetBook:
    """Which budgets concern a call is found once for each of its combinations of names, not once a call."""

    def __init__(self, configured: Sequence[BudgetConfig], snapshot: Callable[[], Snapshot]) -> None:
        self._configured = tuple(budget.budget() for budget in configured)
        self._snapshot = snapshot
        self._generation = -1
        self._joined: tuple[Budget, ...] = self._configured
        self._matches: LRUCache[tuple[object, ...], tuple[Budget, ...]] = LRUCache(_MATCHES_MAX)

    @property
    def configured(self) -> tuple[Budget, ...]:
        return self._configured

    def __call__(self) -> Sequence[Budget]:
        snapshot = self._snapshot()
        if snapshot.generation != self._generation:
            self._joined = self._configured + tuple(stored.budget for stored in snapshot.budgets)
            self._generation = snapshot.generation
            self._matches.clear()
        return self._joined

    def matching(self, subject: Subject) -> tuple[Budget, ...]:
        """Those that apply to a call with these names."""
        joined = self()
        if not joined:
            return _NO_LIMITS
        names = (subject.project, subject.key, subject.workflow, subject.step, subject.agent)
        found = self._matches.get(names)
        if found is None:
            found = self._matches[names] = tuple(budget for budget in joined if budget.applies_to(subject))
        return found


def key_budgets(name: str, project: str, limits: Mapping[str, Any]) -> tuple[Budget, ...]:
    """A key's own limits (`tokens`, `usd`, `requests`, `window`) as a budget on it; none where it has none."""
    given = tuple(limits.get(unit) for unit in ("tokens", "usd", "requests"))
    if all(value is None for value in given):
        return _NO_LIMITS
    return _key_budgets(name, project, *given, str(limits.get("window") or "total"))


@lru_cache(maxsize=10_000)
def _key_budgets(name: str, project: str, tokens: Any, usd: Any, requests: Any, window: str) -> tuple[Budget, ...]:
    nano_usd = None if usd is None else usd_to_nano(usd)
    limit = Limit(tokens, nano_usd, requests)
    return (Budget(Scope.KEY, limit, match="*", window=Window(window), project=project),)
