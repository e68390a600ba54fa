"""The plans of active runs: what each step may use, what completed steps leave to others, and steps that no plan has.

At a run's first call here, its plan is found in the store, if it was announced through the API, or made by `plan_run` from the workflow's
declaration or its learned steps. Later calls of a step cost one look-up.

When a step begins, planned steps before it that have used something and hold nothing are considered completed, and what they left is
shared out again. The steps of a group (a loop, parallel branches) complete together, once a step after the group begins. A step that calls
again keeps its allocation; the limit of the run ensures that the run does not spend more than it has.

Calls that name no step have no allocation: only the run's limit applies to them, unless the plan has a step `default`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cachetools import LRUCache

from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.orchestration.batch_writer import BatchWriter
from gateway.orchestration.run_lookups import RunLookups
from gateway.runs.plan import (
    PlannedStep,
    RunPlan,
    announced_plan,
    demands_of,
    reallocated_step,
    stored_step,
    with_limit,
    within_caps,
)
from gateway.store import runs as run_store
from gateway.store.database import Database, StoreError
from gateway.store.runs import Run, RunStep
from gateway.tags import DEFAULT_STEP
from policies.allocation import (
    Allocation,
    StepAllocation,
    StepDemand,
    allocate_next,
    raised_for_first_call,
    reallocate,
)
from policies.budgets import run_account, step_account
from policies.reservation import Balance
from policies.settings import Settings

_PLANS_MAX: Final = 50_000
_JUST_FOUND_MAX: Final = 1_000

RunKey = tuple[str, str]  # project, run


@dataclass(frozen=True, slots=True)
class StepStart:
    """A step that calls, as far as the call itself describes it."""

    step: str
    intent: str
    priority: str
    confidence: float = 0.0
    source: str = ""


@dataclass(frozen=True, slots=True)
class StepGrant:
    """`share` is what the step may use (None: only its run's limit applies), `is_new` whether this is its first call here,
    `parent_run` the run that its run is inside of (empty: none), and `planned` the step as its run's plan has it, if it does.
    `plan` is set by a preview, which may be of a plan that nobody keeps."""

    share: StepAllocation | None
    is_new: bool
    parent_run: str
    planned: PlannedStep | None = None
    plan: LivePlan | None = None


@dataclass(slots=True)
class LivePlan:
    """`limit_tokens` is what the run may use, `used` what completed steps have used."""

    limit_tokens: int
    ais: float
    allocation: Allocation | None = None
    demands: tuple[StepDemand, ...] = ()
    planned: Mapping[str, PlannedStep] = field(default_factory=dict)
    steps: dict[str, StepAllocation] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    used: dict[str, int] = field(default_factory=dict)
    run_used_tokens: int = 0
    run_settled_tokens: int = 0
    parent_run: str = ""

    def left_tokens(self, own_tokens: int) -> int:
        """What may be allocated to a step that the plan does not have, and that has used `own_tokens` already."""
        allocated_tokens = sum(self.used.get(name, step.tokens) for name, step in self.steps.items())
        return max(0, self.limit_tokens - max(allocated_tokens, self.run_used_tokens - own_tokens))

    def raised_share(
        self, step: str, needed_tokens: int, answer_tokens: int, settings: Settings
    ) -> StepAllocation | None:
        """The share of a step whose first call it refused, and which needs so many tokens; None if it stays as it was."""
        share = self.steps.get(step)
        if share is None or needed_tokens <= share.hard_limit_tokens:  # a concurrent first call has raised it
            return share
        demand = next((demand for demand in self.demands if demand.id == step), StepDemand(step, share.intent))
        return raised_for_first_call(
            share, demand, needed_tokens=needed_tokens, answer_tokens=answer_tokens, settings=settings, ais=self.ais
        )

    def comes_before(self, step: str, other: str) -> bool:
        """Whether `step` can be complete when `other` begins. The order of unplanned steps is that of their first calls."""
        first, second = self.planned.get(step), self.planned.get(other)
        if first is None or second is None:
            return True
        return first.unit < second.unit


def live_plan(plan: RunPlan, parent_run: str = "") -> LivePlan:
    shares = tuple(
        StepAllocation(step.step, step.intent, step.allocation_tokens, step.hard_limit_tokens, step.reason)
        for step in plan.steps
    )
    allocation = Allocation(plan.strategy, plan.pool_tokens, shares) if shares else None
    return LivePlan(
        plan.limit_tokens,
        plan.ais,
        allocation,
        demands_of(plan),
        {step.step: step for step in plan.steps},
        {step.step: step for step in shares},
        parent_run=parent_run,
    )


# Makes the plan of a run that is not known here yet, from what the store has of it, if anything.
Propose = Callable[[Run | None], Awaitable[RunPlan]]


class Plans:
    def __init__(self, store: Database, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        self._lookups = RunLookups(store)
        self._plans: LRUCache[RunKey, LivePlan] = LRUCache(_PLANS_MAX)
        self._just_found: LRUCache[RunKey, Run | None] = LRUCache(_JUST_FOUND_MAX)
        self._writing: BatchWriter[tuple[str, RunStep]] = BatchWriter("allocations", self._write)

    def start(self) -> None:
        self._writing.start()

    async def stop(self) -> None:
        await self._writing.stop()

    async def flush(self) -> None:
        await self._writing.flush()

    def forget(self) -> None:
        """Drop all plans after a change of settings: runs are planned again at their next call."""
        self._plans.clear()

    def put(self, project: str, run: str, plan: RunPlan, parent_run: str = "") -> None:
        """Set the plan of an announced run. What the run has used already is read when its next step begins."""
        self._plans[project, run] = live_plan(plan, parent_run)

    def drop(self, project: str, run: str) -> None:
        """Drop the plan of a run whose budget was changed: it is planned again at its next call."""
        self._plans.pop((project, run), None)

    async def is_outgrown(self, project: str, run: str) -> bool:
        """Whether the run has more than its plan knows: somebody raised its budget or reset it, perhaps at another gateway."""
        plan = self._plans.get((project, run))
        if plan is None:
            return False
        try:
            (run_balance,) = await self._ledger.balances(project, [run_account(run)])
        except LedgerUnavailable:
            return False
        is_raised = run_balance.limit.tokens is not None and run_balance.limit.tokens > plan.limit_tokens
        return is_raised or run_balance.settled.tokens < plan.run_settled_tokens

    def raise_share(
        self, key: RunKey, step_start: StepStart, needed_tokens: int, answer_tokens: int, settings: Settings
    ) -> StepAllocation | None:
        """Raise the share of a step whose first call it refused. None: it stays as it was."""
        plan, name = self._plans.get(key), step_start.step
        share = None if plan is None else plan.raised_share(name, needed_tokens, answer_tokens, settings)
        if plan is None or share is None:
            return None
        if name in plan.planned:
            self._revise(key, plan, [share], writes=True)
        else:
            plan.steps[name] = share
            self._note(key, plan, step_start)
        return share

    async def step(self, key: RunKey, step_start: StepStart, propose: Propose, settings: Settings) -> StepGrant:
        """What the step of the current call may use."""
        plan = self._plans.get(key)
        if plan is None:
            # Two concurrent first calls of a run may both get here: their plans are the same, and the first is kept.
            plan = self._plans.setdefault(key, await self._first_plan(key, propose, settings))
        name = step_start.step
        begins, own_tokens = name not in plan.begun, 0
        if begins:
            plan.begun.add(name)
            own_tokens = await self._reallocate_unused(key, plan, name, settings)
        if name not in plan.steps:
            if name == DEFAULT_STEP:
                return StepGrant(None, begins, plan.parent_run)
            plan.steps[name] = self._next(plan, step_start, settings, own_tokens)
        if begins:
            self._note(key, plan, step_start)
        return StepGrant(plan.steps[name], begins, plan.parent_run, plan.planned.get(name))

    async def preview(self, key: RunKey, step_start: StepStart, propose: Propose, settings: Settings) -> StepGrant:
        """What `step` would return now, without writing or remembering anything."""
        cached = self._plans.get(key)
        if cached is None:
            plan, _ = await self._found_or_proposed(key, propose, settings)
        else:
            plan = replace(cached, steps=dict(cached.steps), begun=set(cached.begun), used=dict(cached.used))
        name, own_tokens = step_start.step, 0
        begins = name not in plan.begun
        if begins:
            own_tokens = await self._reallocate_unused(key, plan, name, settings, writes=False)
        share = plan.steps.get(name)
        if share is None and name != DEFAULT_STEP:
            share = self._next(plan, step_start, settings, own_tokens)
        return StepGrant(share, begins, plan.parent_run, plan.planned.get(name), plan)

    async def _first_plan(self, key: RunKey, propose: Propose, settings: Settings) -> LivePlan:
        plan, proposed = await self._found_or_proposed(key, propose, settings)
        for position, step in enumerate(proposed, 1):
            self._writing.put((key[0], stored_step(key[1], position, step)))
        return plan

    async def _found_or_proposed(
        self, key: RunKey, propose: Propose, settings: Settings
    ) -> tuple[LivePlan, Sequence[PlannedStep]]:
        """The plan, and those of its steps that are not in the store yet."""
        run = self._just_found[key] = await self.find(*key, fresh=True)
        parent_run = run.parent_run if run is not None else ""
        announced = announced_plan(run)
        if run is not None and announced is not None:
            resized = with_limit(announced, run.own_budget.tokens, settings)
            return live_plan(resized, parent_run), () if resized is announced else resized.steps
        plan = await propose(run)
        return live_plan(plan, parent_run), plan.steps

    async def find(self, project: str, run: str, *, fresh: bool) -> Run | None:
        """The run in the store; None if it is not there, or the store is unreachable. Not `fresh`: what its plan was made from will do."""
        key = (project, run)
        if key in self._just_found:
            run_row = self._just_found.pop(key)
            if not fresh:
                return run_row
        try:
            return await self._lookups.get(project, run)
        except StoreError:
            return None

    def _next(self, plan: LivePlan, step_start: StepStart, settings: Settings, own_tokens: int) -> StepAllocation:
        """The allocation of a step that the plan does not have: its demand, or what is left if that is less."""
        demand = StepDemand(step_start.step, step_start.intent, priority=step_start.priority)
        # Others may not use all of their allocations, so if nothing is left to allocate, the run's limit decides.
        remaining_tokens = plan.left_tokens(own_tokens) or plan.limit_tokens
        return allocate_next(demand, run_remaining_tokens=remaining_tokens, settings=settings, ais=plan.ais)

    async def _reallocate_unused(
        self, key: RunKey, plan: LivePlan, begins: str, settings: Settings, *, writes: bool = True
    ) -> int:
        """Share out again what completed steps have left, at the cost of one read of the ledger when a step begins. Returns what the
        beginning step has used already, since the plan may be younger than the run."""
        earlier_steps = [name for name in plan.steps if name != begins and plan.comes_before(name, begins)]
        if not earlier_steps:
            return 0
        project, run = key
        try:
            run_balance, step_balance, *balances = await self._ledger.balances(
                project, [run_account(run), *(step_account(run, name) for name in (begins, *earlier_steps))]
            )
        except LedgerUnavailable:
            return 0
        own_tokens = step_balance.settled.tokens + step_balance.reserved.tokens
        plan.run_settled_tokens = run_balance.settled.tokens
        plan.run_used_tokens = run_balance.settled.tokens + run_balance.reserved.tokens
        plan.used = _completed(earlier_steps, balances)
        if plan.allocation is None:
            return own_tokens
        completed = {name: tokens for name, tokens in plan.used.items() if name in plan.planned}
        revised = within_caps(
            reallocate(
                plan.allocation,
                completed,
                plan.demands,
                pool_limit_tokens=plan.limit_tokens,
                settings=settings,
                ais=plan.ais,
            ),
            plan.demands,
        )
        self._revise(
            key, plan, [allocation for allocation in revised.allocations if allocation.step not in completed], writes
        )
        return own_tokens

    def _revise(self, key: RunKey, plan: LivePlan, shares: Sequence[StepAllocation], writes: bool) -> None:
        for share in shares:
            if plan.steps[share.step] != share:
                plan.steps[share.step] = share
                if not writes:
                    continue
                position = list(plan.planned).index(share.step) + 1
                self._writing.put((key[0], reallocated_step(key[1], position, plan.planned[share.step], share)))

    def _note(self, key: RunKey, plan: LivePlan, step_start: StepStart) -> None:
        """Store a step that the plan does not have, so that the run's page shows its limits."""
        if step_start.step in plan.planned:
            return
        share = plan.steps[step_start.step]
        step = PlannedStep(
            step=step_start.step,
            intent=step_start.intent,
            confidence=step_start.confidence,
            source=step_start.source,
            reasoning="",
            priority=step_start.priority,
            tier="",
            complexity=0.0,
            compression="",
            allocation_tokens=share.tokens,
            hard_limit_tokens=share.hard_limit_tokens,
            reason=share.reason,
        )
        self._writing.put((key[0], stored_step(key[1], 0, step)))

    async def _write(self, steps: Sequence[tuple[str, RunStep]]) -> None:
        await run_store.save_allocations(self._store, steps)


def _completed(steps: Sequence[str], balances: Sequence[Balance]) -> dict[str, int]:
    """The tokens used by each step that has used something and holds nothing now."""
    return {
        step: balance.settled.tokens
        for step, balance in zip(steps, balances, strict=True)
        if balance.settled.tokens > 0 and not balance.reserved.requests
    }
