"""All budgets that apply now: from the file, made at run time, and of each key; and the chain that they give a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from gateway.config.budgets import UNITS, BudgetConfig, usd_to_nano
from gateway.control import Snapshot
from gateway.pipeline.call import Call
from policies.amounts import Limit
from policies.budgets import ANY_RUN, Budget, Chain, Parent, RunLimits, Scope, Subject, Window, chain_for

_CHAINS_MAX: Final = 20_000
_NO_LIMITS: Final[tuple[Budget, ...]] = ()


class BudgetBook:
    """Caches chains: all calls of a step have the same chain, whatever their run, until a window ends, a limit changes or the
    configuration changes."""

    def __init__(self, configured: Sequence[BudgetConfig], snapshot: Callable[[], Snapshot]) -> None:
        self._configured = tuple(budget.budget() for budget in configured)
        self._snapshot = snapshot
        self._generation = -1
        self._joined: tuple[Budget, ...] = self._configured
        self._chains: dict[tuple[str | int | None, ...], _Made] = {}

    @property
    def configured(self) -> tuple[Budget, ...]:
        return self._configured

    def __call__(self) -> Sequence[Budget]:
        snapshot = self._snapshot()
        if snapshot.generation != self._generation:
            self._joined = self._configured + tuple(stored.budget for stored in snapshot.budgets)
            self._generation = snapshot.generation
            self._chains.clear()
        return self._joined

    def chain(self, call: Call, parents: tuple[Parent, ...], limits: RunLimits, now_ms: int) -> Chain:
        """The accounts that the call is reserved on at `now_ms` (the ledger's clock)."""
        budgets, principal, tags = self(), call.principal, call.tags
        step = tags.step if tags.workflow is not None else None
        if parents:
            names = (principal.project, principal.key_name or None, tags.workflow, call.run, step, tags.agent)
            return chain_for(Subject(*names, parents), (*budgets, *principal.budgets), limits, now_ms)
        # Runs of one workflow may have different plans, which are part of the key so that they do not displace each other.
        planned = (limits.planned_run.tokens, limits.planned_step.tokens)
        key = (principal.project, principal.key_id, tags.workflow, step, tags.agent, *planned)
        cached = self._chains.get(key)
        # A call that began before its key was changed has the key's old limits, which other calls must not get.
        is_same = cached is not None and cached.limits == limits and cached.of_key == principal.budgets
        if cached is None or not is_same or now_ms >= cached.ends_at_ms:
            cached = self._make(call, step, limits, now_ms)
            if len(self._chains) >= _CHAINS_MAX:
                self._chains.clear()
            self._chains[key] = cached
        return cached.chain if call.run is None else cached.chain.for_run(call.run)

    def _make(self, call: Call, step: str | None, limits: RunLimits, now_ms: int) -> _Made:
        principal, tags = call.principal, call.tags
        run = None if call.run is None else ANY_RUN
        subject = Subject(principal.project, principal.key_name or None, tags.workflow, run, step, tags.agent)
        chain = chain_for(subject, (*self(), *principal.budgets), limits, now_ms)
        ends_at_ms = chain.ends_at_ms()
        return _Made(chain, limits, principal.budgets, math.inf if ends_at_ms is None else ends_at_ms)


@dataclass(frozen=True, slots=True)
class _Made:
    chain: Chain
    limits: RunLimits
    of_key: tuple[Budget, ...]
    ends_at_ms: float


def key_budgets(project: str, limits: Mapping[str, Any]) -> tuple[Budget, ...]:
    """A key's own limits (`tokens`, `usd`, `requests`, `window`) as a budget on it; empty if it has none."""
    values = tuple(limits.get(unit) for unit in UNITS)
    if all(value is None for value in values):
        return _NO_LIMITS
    return _key_budgets(project, *values, str(limits.get("window") or "total"))


@lru_cache(maxsize=10_000)
def _key_budgets(project: str, tokens: Any, usd: Any, requests: Any, window: str) -> tuple[Budget, ...]:
    nano_usd = None if usd is None else usd_to_nano(usd)
    limit = Limit(tokens, nano_usd, requests)
    return (Budget(Scope.KEY, limit, match="*", window=Window(window), project=project),)
