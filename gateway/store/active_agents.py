"""Which agents ran lately, on which workflows, and what their calls say about tools and retries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, and_, func, select

from gateway.store.database import Database
from gateway.store.tables import is_given, runs, token_usage
from gateway.store.usage_sums import CALL_STATUSES

# Scores are based on the latest runs, because an agent that was rewritten last week has changed.
RUNS_MAX: Final = 50
# Tools and retries are read from single calls; this many are a good enough sample.
CALLS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class ActiveAgent:
    """`workflows` has the number of the agent's runs per workflow in the requested time."""

    project: str
    agent: str
    last_at_ms: int
    workflows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Over `calls` calls. `tools_max` is the most tools that one of them offered."""

    calls: int = 0
    tool_calls: int = 0
    retries: int = 0
    tools_max: int = 0


async def active_since(db: Database, since_ms: int) -> list[ActiveAgent]:
    """Agents with a run whose last event is not older. Raises StoreUnavailable."""
    query = (
        select(runs.c.project, runs.c.agent, runs.c.workflow, func.count(), func.max(runs.c.last_at))
        .where(runs.c.last_at >= since_ms, runs.c.agent != "")
        .group_by(runs.c.project, runs.c.agent, runs.c.workflow)
    )
    agents: dict[tuple[str, str], tuple[int, dict[str, int]]] = {}
    async with db.read() as connection:
        for project, agent, workflow, count, last_at in await connection.execute(query):
            last, workflows = agents.get((project, agent), (0, {}))
            workflows[workflow] = count
            agents[project, agent] = (max(last, last_at), workflows)
    return [ActiveAgent(*key, last_at, workflows) for key, (last_at, workflows) in sorted(agents.items())]


def runs_of_agent(project: str, agent: str, since_ms: int) -> ColumnElement[bool]:
    """Runs of an agent whose last event is not older."""
    return and_(runs.c.project == project, is_given(runs.c.agent), runs.c.agent == agent, runs.c.last_at >= since_ms)


async def latest_runs_since(db: Database, project: str, agent: str, since_ms: int) -> int:
    """The time since which the agent's latest 50 runs had their last event; `since_ms` if there were fewer runs."""
    condition = runs_of_agent(project, agent, since_ms)
    query = select(runs.c.last_at).where(condition).order_by(runs.c.last_at.desc()).offset(RUNS_MAX - 1).limit(1)
    async with db.read() as connection:
        last_at_ms = (await connection.execute(query)).scalar()
    return since_ms if last_at_ms is None else int(last_at_ms)


async def tool_use(db: Database, project: str, agent: str, since_ms: int) -> ToolUse:
    """Over the latest 2,000 calls of the agent's runs since then. Raises StoreUnavailable."""
    joined = runs.join(token_usage, and_(token_usage.c.project == runs.c.project, token_usage.c.run == runs.c.run))
    query = (
        select(token_usage.c.detail)
        .select_from(joined)
        .where(runs_of_agent(project, agent, since_ms), token_usage.c.status.in_(CALL_STATUSES))
        .order_by(token_usage.c.at.desc())
        .limit(CALLS_MAX)
    )
    async with db.read() as connection:
        observations = [_observations(detail) for detail in (await connection.execute(query)).scalars()]
    return ToolUse(
        calls=len(observations),
        tool_calls=sum(_count(observation, "tool_calls") for observation in observations),
        retries=sum(1 for observation in observations if _count(observation, "retry")),
        tools_max=max((_count(observation, "tools") for observation in observations), default=0),
    )


def _observations(detail: str) -> Mapping[str, Any]:
    try:
        parsed = orjson.loads(detail) if detail else {}
    except orjson.JSONDecodeError:
        return {}
    observed = parsed.get("seen") if isinstance(parsed, dict) else None
    return observed if isinstance(observed, dict) else {}


def _count(observation: Mapping[str, Any], name: str) -> int:
    value = observation.get(name)
    return value if type(value) is int else 0
