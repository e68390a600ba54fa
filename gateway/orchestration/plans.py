"""Plans of runs: how many tokens each step may use. Declared, initialised, learned from past runs, or made as steps appear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from cachetools import LRUCache

from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.store import runs as run_store
from gateway.store import step_history
from gateway.store.database import Database, StoreError
from policies.allocation import (
    Allocation,
    StepAllocation,
    StepDemand,
    allocate,
    allocate_next,
    history_of,
    reallocate,
)
from policies.settings import Settings

_log = structlog.get_logger(__name__)
_PLANS_MAX: Final = 50_000
_HISTORIES_MAX: Final = 5_000
_HISTORY_KEPT_MS: Final = 60_000
# After so many finished runs the steps of a workflow are taken as known.
_RUNS_UNTIL_KNOWN: Final = 3

RunKey = tuple[str, str]  # project, run


@dataclass(slots=True)
class RunPlan:
    """What was planned for one run, and what was added as steps appeared."""

    workflow: str
    pool_limit_tokens: int
    allocation: Allocation | None = None
    demands: tuple[StepDemand, ...] = ()
    steps: dict[str, StepAllocation] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)

    def granted_tokens(self) -> int:
        return sum(step.tokens for step in self.steps.values())


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step as a declaration or an initialised run names it."""

    id: str
    intent: str
    priority: str = "normal"
    budget_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _History:
    at_ms: int
    by_step: Mapping[str, Sequence[step_history.StepSample]]


class Plans:
    def __init__(self, store: Database, ledger: Ledger, clock_ms: Callable[[], int]) -> None:
        self._store = store
        self._ledger = ledger
        self._clock_ms = clock_ms
        self._plans: LRUCache[RunKey, RunPlan] = LRUCache(_PLANS_MAX)
        self._histories: LRUCache[RunKey, _History] = LRUCache(_HISTORIES_MAX)
        self._loading: set[asyncio.Task[None]] = set()

    def forget(self) -> None:
        """Settings changed: runs are planned anew at their next call."""
        self._plans.clear()

    def put(self, project: str, run: str, plan: RunPlan) -> None:
        self._plans[project, run] = plan

    def make(
        self,
        project: str,
        workflow: str,
        steps: Sequence[PlannedStep],
        pool_limit_tokens: int,
        settings: Settings,
        ais: float,
        strategy: str,
    ) -> RunPlan:
        """A plan for known steps. The history that is at hand decides; one that is missing is loaded for the next run."""
        history = self._history(project, workflow)
        demands = [_demand(step, history) for step in steps]
        allocation = allocate(
            demands, strategy=strategy, settings=settings, ais=ais, pool_limit_tokens=pool_limit_tokens
        )
        by_step = {one.step: one for one in allocation.allocations}
        return RunPlan(workflow, pool_limit_tokens, allocation, tuple(demands), by_step)

    async def step(
        self,
        key: RunKey,
        workflow: str,
        step: PlannedStep,
        *,
        declared: Sequence[PlannedStep],
        pool_limit_tokens: int,
        settings: Settings,
        ais: float,
    ) -> StepAllocation:
        """The allocation of the step that calls now."""
        plan = self._plans.get(key)
        if plan is None:
            plan = await self._first_plan(key, workflow, declared, pool_limit_tokens, settings, ais)
            self._plans[key] = plan
        if step.id not in plan.steps:
            plan.steps[step.id] = self._next(plan, step, settings, ais)
        if step.id not in plan.started:
            if settings.adaptive_budget_enabled:
                await self._return_what_is_left(key, plan, settings, ais)
            plan.started.append(step.id)
        return plan.steps[step.id]

    async def _first_plan(
        self,
        key: RunKey,
        workflow: str,
        declared: Sequence[PlannedStep],
        pool_limit_tokens: int,
        settings: Settings,
        ais: float,
    ) -> RunPlan:
        stored = await self._stored(key)
        if stored is not None:
            return stored
        steps = declared or self._learned_steps(key[0], workflow)
        if not steps:
            return RunPlan(workflow, pool_limit_tokens)
        return self.make(key[0], workflow, steps, pool_limit_tokens, settings, ais, settings.allocation_strategy)

    async def _stored(self, key: RunKey) -> RunPlan | None:
        """A run that was initialised through the API, perhaps in another process. One query at a run's first call here."""
        try:
            run = await run_store.get(self._store, *key)
        except StoreError:
            return None
        planned = [step for step in run.steps if step.allocation_tokens is not None] if run is not None else []
        if run is None or not planned:
            return None
        steps = {
            step.step: StepAllocation(
                step.step,
                step.intent,
                step.allocation_tokens or 0,
                step.hard_limit_tokens or step.allocation_tokens or 0,
                "as initialised",
            )
            for step in planned
        }
        pool = sum(one.tokens for one in steps.values())
        allocation = Allocation(str(run.plan.get("strategy", "proportional")), pool, tuple(steps.values()))
        demands = tuple(StepDemand(step.step, step.intent, demand_tokens=step.allocation_tokens) for step in planned)
        return RunPlan(run.workflow, pool, allocation, demands, steps)

    def _next(self, plan: RunPlan, step: PlannedStep, settings: Settings, ais: float) -> StepAllocation:
        """A step that no plan knew of: its demand, as far as the run has that much left."""
        left = max(0, plan.pool_limit_tokens - plan.granted_tokens())
        demand = StepDemand(step.id, step.intent, priority=step.priority, demand_tokens=step.budget_tokens)
        # What others were granted they may never use: with nothing left to grant, the run's own limit decides.
        return allocate_next(demand, run_remaining_tokens=left or plan.pool_limit_tokens, settings=settings, ais=ais)

    async def _return_what_is_left(self, key: RunKey, plan: RunPlan, settings: Settings, ais: float) -> None:
        """Steps that called before, with nothing under way now, are taken as completed: what they left is shared anew."""
        if plan.allocation is None or not plan.started:
            return
        project, run = key
        planned = [step for step in plan.started if any(demand.id == step for demand in plan.demands)]
        try:
            balances = await self._ledger.balances(project, [f"step/{run}/{step}" for step in planned])
        except LedgerUnavailable:
            return
        completed = {
            step: balance.settled.tokens
            for step, balance in zip(planned, balances, strict=True)
            if balance.settled.tokens and not balance.reserved.requests
        }
        if completed:
            revised = reallocate(
                plan.allocation,
                completed,
                plan.demands,
                pool_limit_tokens=plan.pool_limit_tokens,
                settings=settings,
                ais=ais,
            )
            plan.steps |= {one.step: one for one in revised.allocations if one.step not in completed}

    def _learned_steps(self, project: str, workflow: str) -> list[PlannedStep]:
        history = self._history(project, workflow)
        runs = max((len(samples) for samples in history.values()), default=0)
        if runs < _RUNS_UNTIL_KNOWN:
            return []
        return [
            PlannedStep(name, "generate", budget_tokens=max(sample.tokens for sample in samples))
            for name, samples in history.items()
            if len(samples) * 2 >= runs
        ]

    def _history(self, project: str, workflow: str) -> Mapping[str, Sequence[step_history.StepSample]]:
        known = self._histories.get((project, workflow))
        if known is None or self._clock_ms() - known.at_ms > _HISTORY_KEPT_MS:
            self._histories[project, workflow] = _History(self._clock_ms(), known.by_step if known else {})
            task = asyncio.create_task(self._load_history(project, workflow))
            self._loading.add(task)
            task.add_done_callback(self._loading.discard)
        return self._histories[project, workflow].by_step

    async def _load_history(self, project: str, workflow: str) -> None:
        try:
            found = await step_history.by_step(self._store, project, workflow, self._clock_ms())
        except StoreError as error:
            _log.warning("history_not_loaded", workflow=workflow, error=str(error))
            return
        self._histories[project, workflow] = _History(self._clock_ms(), found)


def _demand(step: PlannedStep, history: Mapping[str, Sequence[step_history.StepSample]]) -> StepDemand:
    return StepDemand(
        step.id,
        step.intent,
        priority=step.priority,
        demand_tokens=step.budget_tokens,
        history=history_of(history.get(step.id, ())),
    )


def declared_steps(steps: Iterable[Mapping[str, Any]]) -> list[PlannedStep]:
    """Steps of a workflow's declaration, nested ones flattened in their order."""
    found: list[PlannedStep] = []
    for step in steps:
        if "id" in step:
            found.append(
                PlannedStep(
                    str(step["id"]),
                    str(step.get("intent") or ""),
                    str(step.get("priority") or "normal"),
                    step.get("budget_tokens") or step.get("budget"),
                )
            )
        found += declared_steps(step.get("steps") or ())
    return found
