"""Runs and their steps: their plans, the state people put them in, and the sums that the flusher maintains.

A run appears when it is planned (`create`), has a call that takes long (`begin`) or its first usage event arrives
(`usage.insert_entries`), whichever is first; all of them update the same row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, Select, and_, bindparam, case, func, select

from gateway.store.bulk import (
    add_on_conflict,
    ignore_conflict,
    insert,
    is_in,
    is_in_parameter,
    list_parameter,
    replace_on_conflict,
)
from gateway.store.database import Database, StoreConnection
from gateway.store.paging import after_cursor, cursor_of, newest_first
from gateway.store.tables import SUMS, is_given, run_steps, runs, token_usage
from policies.amounts import Limit

STATES: Final = ("active", "paused", "exhausted", "completed", "cancelled")
FINAL_STATES: Final = ("completed", "cancelled")


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over calls. `calls` counts admitted ones; refused ones are counted separately."""

    calls: int = 0
    refused: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cost_nano_usd: int = 0
    requests: int = 0
    saved_tokens: int = 0
    saved_nano_usd: int = 0
    overrun_tokens: int = 0
    overrun_nano_usd: int = 0

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Sums:
        return cls(**{name: int(row[name] or 0) for name in SUMS})


@dataclass(frozen=True, slots=True)
class RunStep:
    run: str
    step: str
    position: int = 0
    intent: str = ""
    confidence: float | None = None
    intent_source: str = ""
    tier: str = ""
    model: str = ""
    allocation_tokens: int | None = None
    hard_limit_tokens: int | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    first_at_ms: int | None = None
    last_at_ms: int | None = None
    sums: Sums = Sums()


@dataclass(frozen=True, slots=True)
class Run:
    project: str
    run: str
    workflow: str = ""
    agent: str = ""
    user: str = ""
    parent_run: str = ""
    state: str = "active"
    first_at_ms: int = 0
    last_at_ms: int = 0
    completed_at_ms: int | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    sums: Sums = Sums()
    steps: tuple[RunStep, ...] = ()  # filled by `get` only

    @property
    def own_budget(self) -> Limit:
        """The budget that somebody gave this run."""
        return budget_of_plan(self.plan)


def budget_of_plan(plan: Mapping[str, Any]) -> Limit:
    budget = plan.get("budget") or {}
    return Limit(budget.get("tokens"), budget.get("nano_usd"), budget.get("requests"))


class RunOfOtherWorkflow(Exception):
    """A run belongs to one workflow of its project: the first one that was named."""

    def __init__(self, workflow: str) -> None:
        super().__init__(workflow)
        self.workflow = workflow


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list; None matches anything. Times are of the last event, in ms, from inclusive, to exclusive."""

    project: str | None = None
    workflow: str | None = None
    agent: str | None = None
    user: str | None = None
    state: str | None = None
    parent_run: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None


@dataclass(frozen=True, slots=True)
class RunPage:
    """One page of runs, latest first. `next` is the cursor of the following page, None on the last."""

    runs: tuple[Run, ...]
    next: str | None


def _replace_with_offered(name: str) -> Callable[[Any, Any], Any]:
    return lambda _old, offered: offered[name]


_PLAN_CONFLICT: Final = add_on_conflict(
    runs,
    (),
    workflow=lambda old, offered: case((old.workflow == "", offered.workflow), else_=old.workflow),
    **{name: _replace_with_offered(name) for name in ("agent", "user", "parent_run", "plan")},
)
_PLANNED_STEP_COLUMNS: Final = (
    "position",
    "intent",
    "confidence",
    "intent_source",
    "tier",
    "model",
    "allocation_tokens",
    "hard_limit_tokens",
    "plan",
)


# Intent and model are not replaced, because calls report them.
_ALLOCATED_STEP_COLUMNS: Final = ("position", "tier", "allocation_tokens", "hard_limit_tokens", "plan")
# Planned steps are numbered from 1; unplanned ones have 0 and sort after them.
_UNPLANNED: Final = case((run_steps.c.position == 0, 1), else_=0)
_STEP_ORDER: Final = (_UNPLANNED, run_steps.c.position, run_steps.c.first_at, run_steps.c.step)


async def create(db: Database, run: Run) -> Run:
    """Store the plan of a run and its steps. An existing run keeps its state and sums, and gets the new plan.

    Raises RunOfOtherWorkflow, and then changes nothing.
    """
    async with db.begin() as connection:
        await insert(connection, runs, [_run_row(run)], _PLAN_CONFLICT)
        await _check_workflow(connection, run)
        await _forget_plan(connection, run)
        steps = [_step_row(run.project, run.run, step) for step in run.steps]
        await insert(connection, run_steps, steps, replace_on_conflict(run_steps, _PLANNED_STEP_COLUMNS))
    existing = await get(db, run.project, run.run)
    return existing or run


async def begin(db: Database, new_runs: Sequence[Run]) -> None:
    """Insert runs and their steps that have no events yet. Existing rows stay as they are."""
    # so that concurrent writers lock in the same order
    ordered = sorted(new_runs, key=lambda run: (run.project, run.run))
    steps = [_step_row(run.project, run.run, step) for run in ordered for step in run.steps]
    async with db.begin() as connection:
        await insert(connection, runs, [_run_row(run) for run in ordered], ignore_conflict)
        await insert(connection, run_steps, sorted(steps, key=lambda row: row["step"]), ignore_conflict)


async def _check_workflow(connection: StoreConnection, run: Run) -> None:
    """Called after writing, with the row locked: of two concurrent creators one is told of the other's workflow."""
    condition = and_(runs.c.project == run.project, runs.c.run == run.run)
    workflow = (await connection.execute(select(runs.c.workflow).where(condition))).scalar_one()
    if workflow != run.workflow:
        raise RunOfOtherWorkflow(workflow)


async def _forget_plan(connection: StoreConnection, run: Run) -> None:
    """Remove the steps of an earlier plan; those that have calls stay as unplanned steps."""
    steps = run_steps.c
    planned = and_(steps.project == run.project, steps.run == run.run, steps.position > 0)
    never_called = and_(steps.calls == 0, steps.refused == 0, steps.total_tokens == 0)
    await connection.execute(run_steps.delete().where(planned, never_called))
    unplanned = {"position": 0, "tier": "", "allocation_tokens": None, "hard_limit_tokens": None, "plan": ""}
    await connection.execute(run_steps.update().where(planned).values(**unplanned))


async def save_allocations(db: Database, steps: Sequence[tuple[str, RunStep]]) -> None:
    """Store the allocations that steps, each with its project, got during their runs. Of two for one step the last one counts."""
    last = {(project, step.run, step.step): _step_row(project, step.run, step) for project, step in steps}
    rows = [last[key] for key in sorted(last)]  # so that concurrent writers lock in the same order
    async with db.begin() as connection:
        await insert(connection, run_steps, rows, replace_on_conflict(run_steps, _ALLOCATED_STEP_COLUMNS))


async def get(db: Database, project: str, run: str) -> Run | None:
    """The run with its steps in the order of the plan, then unplanned ones in the order of appearance."""
    return (await get_many(db, project, [run])).get(run)


async def get_many(db: Database, project: str, names: Sequence[str]) -> dict[str, Run]:
    """Those of the runs that the store has, by name."""
    async with db.begin() as connection:
        parameters = {"project": project, "names": list_parameter(connection, names)}
        rows = (await connection.execute(_runs_named(connection.dialect.name), parameters)).mappings().all()
        if not rows:
            return {}
        names_found = [row["run"] for row in rows]
        query = select(run_steps).where(run_steps.c.project == project, is_in(connection, run_steps.c.run, names_found))
        steps: dict[str, list[RunStep]] = {name: [] for name in names_found}
        for row in (await connection.execute(query.order_by(*_STEP_ORDER))).mappings():
            steps[row["run"]].append(_step(row))
    return {row["run"]: _run(row, tuple(steps[row["run"]])) for row in rows}


@cache
def _runs_named(dialect: str) -> Select[*tuple[Any, ...]]:
    """Cached: every run's first call needs it, and building the statement takes as long as executing it."""
    return select(runs).where(runs.c.project == bindparam("project"), is_in_parameter(dialect, runs.c.run, "names"))


async def overhead_us(db: Database, run: Run) -> int | None:
    """The gateway's overhead over all calls of the run; None if no call has it (retention deletes single calls)."""
    calls = token_usage.c
    condition = and_(
        calls.project == run.project, calls.run == run.run, calls.at.between(run.first_at_ms, run.last_at_ms)
    )
    async with db.read() as connection:
        total_us = (await connection.execute(select(func.sum(calls.overhead_us)).where(condition))).scalar()
    return None if total_us is None else int(total_us)


async def latest_keys(db: Database, project: str, names: Sequence[str]) -> dict[str, str]:
    """The key id of each run's latest call; empty for a call without one, missing if no call is kept."""
    calls = token_usage.c
    latest = (
        select(calls.key_id)
        .where(calls.project == runs.c.project, calls.run == runs.c.run)
        .order_by(calls.at.desc())
        .limit(1)
        .scalar_subquery()
    )
    async with db.read() as connection:
        query = select(runs.c.run, latest).where(runs.c.project == project, is_in(connection, runs.c.run, names))
        return {run: key for run, key in await connection.execute(query) if key is not None}


async def list_runs(db: Database, run_filter: RunFilter, limit: int = 50, cursor: str | None = None) -> RunPage:
    """Runs by their last event, latest first. Raises ValueError for an invalid cursor."""
    keys = runs.c.last_at, runs.c.run
    query = select(runs).where(*_conditions(run_filter), *after_cursor(cursor, *keys)).order_by(*newest_first(*keys))
    async with db.begin() as connection:
        rows = [_run(row, ()) for row in (await connection.execute(query.limit(limit + 1))).mappings()]
    page = rows[:limit]
    return RunPage(tuple(page), cursor_of(page[-1].last_at_ms, page[-1].run) if len(rows) > limit else None)


async def set_state(
    db: Database, project: str, run: str, state: str, now_ms: int, metrics: Mapping[str, Any] | None = None
) -> Run | None:
    """Put a run into one of `STATES`. None if there is no such run. Raises ValueError for another state."""
    if state not in STATES:
        raise ValueError(f"'{state}' is not a state of a run; there are {', '.join(STATES)}")
    values: dict[str, Any] = {"state": state, "completed_at": now_ms if state in FINAL_STATES else None}
    if metrics is not None:
        values["metrics"] = _json(metrics)
    async with db.begin() as connection:
        condition = and_(runs.c.project == project, runs.c.run == run)
        await connection.execute(runs.update().where(condition).values(**values))
    return await get(db, project, run)


async def set_plan(db: Database, project: str, run: str, plan: Mapping[str, Any]) -> None:
    """Replace the plan, for example after the budget of the run was raised."""
    async with db.begin() as connection:
        condition = and_(runs.c.project == project, runs.c.run == run)
        await connection.execute(runs.update().where(condition).values(plan=_json(plan)))


async def family(connection: StoreConnection, project: str, run: str) -> list[str]:
    """The run and all runs inside it, at any depth: they all spend from its account."""
    tree = select(runs.c.run).where(runs.c.project == project, runs.c.run == run).cte("family", recursive=True)
    has_parent = is_given(runs.c.parent_run)
    children = select(runs.c.run).where(
        runs.c.project == project, has_parent, runs.c.parent_run == tree.c.run, runs.c.run != runs.c.parent_run
    )
    # UNION and not UNION ALL, so that a cycle, which headers can create, ends.
    rows = await connection.execute(select(tree.union(children).c.run))
    return list({run, *rows.scalars()})


async def runs_inside(connection: StoreConnection, project: str, names: Sequence[str]) -> dict[str, str]:
    """All runs inside one of `names`, at any depth, each with the run directly around it."""
    parent_by_run: dict[str, str] = {}
    ancestors = list(names)
    while ancestors:
        has_parent = is_given(runs.c.parent_run), runs.c.run != runs.c.parent_run
        query = select(runs.c.run, runs.c.parent_run).where(
            runs.c.project == project, *has_parent, is_in(connection, runs.c.parent_run, ancestors)
        )
        rows = {row.run: row.parent_run for row in await connection.execute(query)}
        ancestors = [run for run in rows if run not in parent_by_run]
        parent_by_run |= rows
    return parent_by_run


def _conditions(run_filter: RunFilter) -> list[ColumnElement[bool]]:
    names = ("project", "workflow", "agent", "user", "state", "parent_run")
    columns_and_values = [(runs.c[name], getattr(run_filter, name)) for name in names]
    conditions: list[ColumnElement[bool]] = [
        column == value for column, value in columns_and_values if value is not None
    ]
    if run_filter.agent:
        conditions.append(is_given(runs.c.agent))
    if run_filter.from_ms is not None:
        conditions.append(runs.c.last_at >= run_filter.from_ms)
    if run_filter.to_ms is not None:
        conditions.append(runs.c.last_at < run_filter.to_ms)
    return conditions


def _run_row(run: Run) -> dict[str, Any]:
    return {
        "project": run.project,
        "run": run.run,
        "workflow": run.workflow,
        "agent": run.agent,
        "user": run.user,
        "parent_run": run.parent_run,
        "state": run.state,
        "first_at": run.first_at_ms,
        "last_at": run.last_at_ms or run.first_at_ms,
        "plan": _json(run.plan),
    }


def _step_row(project: str, run: str, step: RunStep) -> dict[str, Any]:
    planned = {name: getattr(step, name) for name in _PLANNED_STEP_COLUMNS}
    return {"project": project, "run": run, "step": step.step} | planned | {"plan": _json(step.plan)}


def _run(row: Mapping[Any, Any], steps: tuple[RunStep, ...]) -> Run:
    texts = {name: row[name] for name in ("project", "run", "workflow", "agent", "user", "parent_run", "state")}
    return Run(
        **texts,
        first_at_ms=row["first_at"],
        last_at_ms=row["last_at"],
        completed_at_ms=row["completed_at"],
        plan=orjson.loads(row["plan"] or "{}"),
        metrics=orjson.loads(row["metrics"] or "{}"),
        sums=Sums.of(row),
        steps=steps,
    )


_SAME_NAME: Final = tuple(
    one.name for one in fields(RunStep) if one.name not in ("plan", "first_at_ms", "last_at_ms", "sums")
)


def _step(row: Mapping[Any, Any]) -> RunStep:
    return RunStep(
        **{name: row[name] for name in _SAME_NAME},
        plan=orjson.loads(row["plan"] or "{}"),
        first_at_ms=row["first_at"],
        last_at_ms=row["last_at"],
        sums=Sums.of(row),
    )


def _json(value: Mapping[str, Any]) -> str:
    return orjson.dumps(value).decode() if value else ""
