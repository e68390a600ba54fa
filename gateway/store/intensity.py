"""Agent intensity scores: the current one of each agent, its history, and the figures behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from sqlalchemy import and_, case, func, not_, select, tuple_

from gateway.store.active_agents import runs_of_agent
from gateway.store.database import Database
from gateway.store.tables import agent_intensity_metrics, run_steps, runs
from gateway.store.versions import Subject, raise_version

# Every process keeps them in memory, and agents' names come from headers: a new name per run would otherwise fill it.
AGENTS_MAX: Final = 10_000
_KEEP_MS: Final = 90 * 86_400_000


@dataclass(frozen=True, slots=True)
class Intensity:
    """Scores from 0 to 10. `source` is computed or set; `runs` is the number of runs behind the execution score."""

    project: str
    agent: str
    creation: float
    execution: float
    combined: float
    runs: int = 0
    source: str = "computed"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    measured_at_ms: int = 0
    measured_by: str = ""


@dataclass(frozen=True, slots=True)
class ObservedActivity:
    """What the gateway saw of an agent's runs: sums over `runs` runs, and the largest single run."""

    runs: int = 0
    completed_runs: int = 0
    calls: int = 0
    refused: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    peak_run_tokens: int = 0
    duration_ms: int = 0  # from the first to the last event, summed over the runs
    steps: int = 0  # summed over the runs


async def put(db: Database, intensity: Intensity) -> None:
    """Make this the agent's current score. The previous one stays in the history."""
    table = agent_intensity_metrics
    row = {
        "project": intensity.project,
        "agent": intensity.agent,
        "creation": intensity.creation,
        "execution": intensity.execution,
        "combined": intensity.combined,
        "runs": intensity.runs,
        "source": intensity.source,
        "metrics": orjson.dumps(intensity.metrics).decode(),
        "current": True,
        "measured_at": intensity.measured_at_ms,
        "measured_by": intensity.measured_by,
    }
    async with db.begin() as connection:
        # First, because raising the version locks its row, so that concurrent scores of one agent cannot both stay current.
        await raise_version(connection, Subject.AGENTS)
        condition = and_(
            table.c.project == intensity.project, table.c.agent == intensity.agent, table.c.current.is_(True)
        )
        await connection.execute(table.update().where(condition).values(current=False))
        await connection.execute(table.insert().values(**row))


async def current(db: Database, limit: int = AGENTS_MAX) -> list[Intensity]:
    """The current score of each agent; if there are more than `limit`, those that people set, then the latest."""
    table = agent_intensity_metrics.c
    query = select(agent_intensity_metrics).where(table.current.is_(True))
    first = case((table.source == "set", 0), else_=1), table.measured_at.desc(), table.id.desc()
    async with db.begin() as connection:
        rows = (await connection.execute(query.order_by(*first).limit(limit))).mappings()
        return sorted((_from_row(row) for row in rows), key=lambda score: (score.project, score.agent))


async def history(db: Database, project: str, agent: str, limit: int = 100) -> list[Intensity]:
    """Newest first; the first is the current one."""
    table = agent_intensity_metrics.c
    query = select(agent_intensity_metrics).where(table.project == project, table.agent == agent)
    async with db.begin() as connection:
        rows = (await connection.execute(query.order_by(table.id.desc()).limit(limit))).mappings()
        return [_from_row(row) for row in rows]


async def forget_old(db: Database, now_ms: int) -> None:
    """Delete computed scores older than 90 days, unless the score is current and the agent has run since."""
    table = agent_intensity_metrics.c
    old = and_(table.source == "computed", table.measured_at < now_ms - _KEEP_MS)
    active_agents = select(runs.c.project, runs.c.agent).where(runs.c.last_at >= now_ms - _KEEP_MS).distinct()
    is_of_use = and_(table.current.is_(True), tuple_(table.project, table.agent).in_(active_agents))
    async with db.begin() as connection:
        await raise_version(connection, Subject.AGENTS)
        await connection.execute(agent_intensity_metrics.delete().where(old, not_(is_of_use)))


async def observed(db: Database, project: str, agent: str, since_ms: int) -> ObservedActivity:
    """Figures of the agent's runs whose last event is not older than `since_ms`."""
    of_agent = runs_of_agent(project, agent, since_ms)
    summed = ("calls", "refused", "errors", "input_tokens", "output_tokens", "total_tokens")
    query = select(
        func.count().label("runs"),
        func.count(runs.c.completed_at).label("completed_runs"),
        *(func.sum(runs.c[name]).label(name) for name in summed),
        func.max(runs.c.total_tokens).label("peak_run_tokens"),
        func.sum(runs.c.last_at - runs.c.first_at).label("duration_ms"),
    ).where(of_agent)
    joined = and_(run_steps.c.project == runs.c.project, run_steps.c.run == runs.c.run)
    steps = select(func.count()).select_from(runs.join(run_steps, joined)).where(of_agent)
    async with db.begin() as connection:
        row = (await connection.execute(query)).mappings().one()
        step_count = (await connection.execute(steps)).scalar_one()
    return ObservedActivity(**{name: int(value or 0) for name, value in row.items()}, steps=step_count)


def _from_row(row: Mapping[Any, Any]) -> Intensity:
    return Intensity(
        project=row["project"],
        agent=row["agent"],
        creation=row["creation"],
        execution=row["execution"],
        combined=row["combined"],
        runs=row["runs"],
        source=row["source"],
        metrics=orjson.loads(row["metrics"] or "{}"),
        measured_at_ms=row["measured_at"],
        measured_by=row["measured_by"],
    )
