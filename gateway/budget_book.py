"""All budgets that apply now: those of the file and those made at run time, joined when either changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.config import BudgetConfig
from gateway.control import Snapshot
from policies.budgets import Budget


class BudgetBook:
    def __init__(self, configured: Sequence[BudgetConfig], snapshot: Callable[[], Snapshot]) -> None:
        self._configured = tuple(budget.budget() for budget in configured)
        self._snapshot = snapshot
        self._generation = -1
        self._joined: tuple[Budget, ...] = self._configured

    @property
    def configured(self) -> tuple[Budget, ...]:
        return self._configured

    def __call__(self) -> Sequence[Budget]:
        snapshot = self._snapshot()
        if snapshot.generation != self._generation:
            self._joined = self._configured + tuple(stored.budget for stored in snapshot.budgets)
            self._generation = snapshot.generation
        return self._joined
