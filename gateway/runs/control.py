"""Actions of people on runs. The ledger is told first, because that stops the next call; then the store.

    action     active      paused      completed   cancelled
    --------   ---------   ---------   ---------   ---------
    pause      paused      =           refused     refused
    resume     =           active      refused     refused
    complete   completed   completed   =           refused
    cancel     cancelled   cancelled   refused     =

An exhausted run is an active one with nothing left, or with less left than its latest call needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from gateway.bookkeeping.catch_up import CatchUp
from gateway.ledger.port import Ledger
from gateway.orchestration import Orchestration
from gateway.runs.plan import RunPlan, RunRequest, announced_plan, stored_step
from gateway.runs.reset import reset_figures
from gateway.runs.view import RunView, RunViews
from gateway.store import runs as runs_store
from gateway.store.database import Database
from gateway.store.runs import Run, RunOfOtherWorkflow
from policies.amounts import UNITS, Limit
from policies.budgets import run_account
from policies.reservation import Gate

Action = Literal["pause", "resume", "complete", "cancel"]

_AFTER: Final[Mapping[tuple[Action, str], str]] = {
    ("pause", "active"): "paused",
    ("pause", "paused"): "paused",
    ("resume", "active"): "active",
    ("resume", "paused"): "active",
    ("complete", "active"): "completed",
    ("complete", "paused"): "completed",
    ("complete", "completed"): "completed",
    ("cancel", "active"): "cancelled",
    ("cancel", "paused"): "cancelled",
    ("cancel", "cancelled"): "cancelled",
}
_GATES: Final = {
    "active": Gate.OPEN,
    "paused": Gate.PAUSED,
    "completed": Gate.COMPLETED,
    "cancelled": Gate.CANCELLED,
}
NO_SUCH_RUN: Final = "run_not_found"


@dataclass(frozen=True, slots=True)
class Denied:
    """Why an action was denied. `code` is `run_not_found`, `run_<state>`, `run_busy`, `run_nested` or `run_of_other_workflow`."""

    message: str
    code: str


class RunControl:
    def __init__(
        self,
        store: Database,
        ledger: Ledger,
        views: RunViews,
        *,
        orchestration: Orchestration,
        catch_up: CatchUp,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._views = views
        self._orchestration = orchestration
        self._catch_up = catch_up
        self._now_ms = now_ms

    async def initialise(self, project: str, request: RunRequest) -> RunView | Denied:
        """Plan a run and store the plan. A repeated announcement updates what it contains; the rest and the spending stay.

        Raises StoreUnavailable, LedgerUnavailable, and ValueError like `plan_run`.
        """
        previous = await self._find(project, request.run)
        if previous is not None and previous.state in runs_store.FINAL_STATES:
            return _finished(previous.run, previous.state)
        if previous is not None and previous.workflow not in ("", request.workflow):
            return _of_other(previous.run, previous.workflow)
        is_new_budget = not request.budget.is_unlimited
        stored_plan = announced_plan(previous) if request.keeps_steps else None
        full_request = request if previous is None else _completed(request, previous)
        plan = await self._orchestration.initialise(project, full_request, stored_plan)
        if is_new_budget:
            await self._ledger.set_override(project, run_account(request.run), full_request.budget)
        try:
            await runs_store.create(self._store, _planned_run(project, full_request, plan, self._now_ms()))
        except RunOfOtherWorkflow as error:  # it began in the meantime
            return _of_other(request.run, error.workflow)
        return await self._view(project, request.run)

    async def act(self, project: str, run: str, action: Action) -> RunView | Denied:
        """Raises StoreUnavailable (the gate may have been set: repeat the action) and LedgerUnavailable."""
        run_row = await self._find(project, run)
        if run_row is None:
            return _unknown(run)
        # The state as shown, because the loop breaker pauses a run only in the ledger.
        view = await self._view(project, run)
        next_state = _AFTER.get((action, "active" if view.state == "exhausted" else view.state))
        if next_state is None:
            return _finished(run, view.state)
        # The state shown may come from the gate alone, if the store failed after it was set: then the rest is still to be done.
        if next_state == view.state == run_row.state:
            return view
        await self._ledger.set_gate(project, run_account(run), _GATES[next_state])
        metrics = None
        if next_state == "completed":
            await self._catch_up()
            metrics = asdict((await self._view(project, run)).metrics)
        await runs_store.set_state(self._store, project, run, next_state, self._now_ms(), metrics)
        return await self._view(project, run)

    async def set_budget(self, project: str, run: str, change: Mapping[str, int | None]) -> RunView | Denied:
        """Give a run a budget of its own, which replaces those of file and store. `change` is by unit; None removes it."""
        run_row = await self._find(project, run)
        if run_row is None:
            return _unknown(run)
        if run_row.state in runs_store.FINAL_STATES:
            return _finished(run, run_row.state)
        previous_budget = run_row.own_budget
        budget = Limit(*(change.get(unit, previous_budget.of(unit)) for unit in UNITS))
        await self._ledger.set_override(project, run_account(run), budget)
        await runs_store.set_plan(self._store, project, run, {**run_row.plan, "budget": asdict(budget)})
        if run_row.state == "exhausted":  # as its latest call reported, under the previous budget
            await runs_store.set_state(self._store, project, run, "active", self._now_ms())
        self._orchestration.budget_changed(project, run)
        return await self._view(project, run)

    async def reset(self, project: str, run: str, reset_id: str) -> tuple[RunView, RunView] | Denied:
        """Start a run's spending again from zero: (before, after). What was spent stays in all sums except the run's.

        Raises StoreUnavailable and LedgerUnavailable; then the run is paused, and a repetition completes the reset.
        """
        run_row = await self._find(project, run)
        if run_row is None:
            return _unknown(run)
        if run_row.state in runs_store.FINAL_STATES:
            return _finished(run, run_row.state)
        async with self._store.read() as connection:
            family = await runs_store.family(connection, project, run)
        if run_row.parent_run or len(family) > 1:
            return Denied(f"Run {run!r} shares its budget with runs inside or around it.", "run_nested")
        state = (await self._view(project, run)).state
        balance = await self._views.balance(project, run)
        # The loop breaker closes runs only in the ledger, and a reset does not resume what it closed.
        is_looping = balance.gate is Gate.LOOPING
        gate = Gate.LOOPING if is_looping else _GATES.get(run_row.state, Gate.OPEN)
        if not is_looping:
            await self._ledger.set_gate(project, run_account(run), Gate.PAUSED)
            balance = await self._views.balance(project, run)
        if balance.reserved.requests or balance.reserved.tokens:
            await self._ledger.set_gate(project, run_account(run), gate)
            return Denied(f"Run {run!r} has calls under way: pause it and try again when they are done.", "run_busy")
        await self._catch_up()
        # It is only paused for this moment.
        view_before = replace(await self._view(project, run), state=state)
        current = await runs_store.get(self._store, project, run)
        await reset_figures(self._ledger, current or run_row, reset_id, self._now_ms())
        await self._catch_up()
        self._orchestration.budget_changed(project, run)  # what its steps left to others is theirs again
        await self._ledger.set_gate(project, run_account(run), gate)
        return view_before, await self._view(project, run)

    async def _find(self, project: str, run: str) -> Run | None:
        """Until its first events are stored, a run that was only named in headers is not in the store."""
        run_row = await runs_store.get(self._store, project, run)
        if run_row is None:
            await self._catch_up()
            run_row = await runs_store.get(self._store, project, run)
        return run_row

    async def _view(self, project: str, run: str) -> RunView:
        view = await self._views.get(project, run)
        if view is None:
            raise LookupError(f"run {run!r} was there a moment ago")
        return view


def _completed(request: RunRequest, previous: Run) -> RunRequest:
    """The request, with what it leaves out taken from the stored run."""
    return replace(
        request,
        agent=request.agent or previous.agent,
        user=request.user or previous.user,
        parent_run=request.parent_run or previous.parent_run,
        budget=previous.own_budget.replaced_by(request.budget),
        strategy=request.strategy or previous.plan.get("strategy"),
    )


def _planned_run(project: str, request: RunRequest, plan: RunPlan, now_ms: int) -> Run:
    names = ("strategy", "pool_tokens", "limit_tokens", "ais")
    stored: dict[str, Any] = {name: getattr(plan, name) for name in names}
    if not request.budget.is_unlimited:
        stored["budget"] = asdict(request.budget)
    return Run(
        project,
        request.run,
        request.workflow,
        request.agent,
        request.user,
        request.parent_run,
        first_at_ms=now_ms,
        last_at_ms=now_ms,
        plan=stored,
        steps=tuple(stored_step(request.run, position, step) for position, step in enumerate(plan.steps, 1)),
    )


def _unknown(run: str) -> Denied:
    return Denied(f"There is no run {run[:200]!r}.", NO_SUCH_RUN)


def _finished(run: str, state: str) -> Denied:
    return Denied(f"Run {run!r} is {state}.", f"run_{state}")


def _of_other(run: str, workflow: str) -> Denied:
    return Denied(f"Run {run!r} is one of workflow {workflow!r}: choose another id.", "run_of_other_workflow")
