"""/api/agents: intensity scores of agents, computed or set by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from gateway.endpoints.api.route import Ask, Route
from gateway.endpoints.api.schema import ListQuery, Name, NoBody, ProjectQuery, Share, Strict, paged
from gateway.moments import iso
from gateway.store import intensity as intensity_store
from gateway.store.intensity import Intensity
from policies.intensity import UNKNOWN_SCORE, combined_score


class IntensityBody(Strict):
    """Scores from 0 to 10. A score that is left out is kept. The combined score is computed from both."""

    creation: Share | None = None
    execution: Share | None = None
    note: str | None = Field(default=None, max_length=500)

    @model_validator(mode="after")
    def _says_something(self) -> IntensityBody:
        if self.creation is None and self.execution is None:
            raise ValueError("give at least one of creation, execution")
        return self


@dataclass(frozen=True, slots=True)
class ScoreView:
    """`source`: computed, set, or unknown (then everything is the neutral 5.0)."""

    agent: str
    creation: float
    execution: float
    combined: float
    runs: int
    source: str
    metrics: dict[str, Any]
    measured_at: str | None
    measured_by: str


@dataclass(frozen=True, slots=True)
class IntensityView(ScoreView):
    history: tuple[ScoreView, ...]


@dataclass(frozen=True, slots=True)
class AgentList:
    agents: tuple[ScoreView, ...]
    next: str | None


async def list_agents(ask: Ask[ListQuery, NoBody]) -> AgentList:
    scored = ask.desk.parts.control.snapshot.agents.values()
    mine = [_score(one) for one in scored if one.project == ask.project]
    page, following = paged(sorted(mine, key=lambda one: one.agent), ask.query)
    return AgentList(page, following)


async def get_intensity(ask: Ask[ProjectQuery, NoBody]) -> IntensityView:
    return await _view(ask)


async def put_intensity(ask: Ask[ProjectQuery, IntensityBody]) -> IntensityView:
    agent = _Named(agent=ask.path["agent"]).agent
    known = ask.desk.parts.control.snapshot.agents.get((ask.project, agent))
    creation = ask.body.creation if ask.body.creation is not None else known.creation if known else None
    execution = ask.body.execution if ask.body.execution is not None else known.execution if known else None
    score = combined_score(creation, execution, runs=known.runs if known else 0)
    intensity = Intensity(
        ask.project,
        agent,
        score.creation,
        score.execution,
        score.combined,
        score.runs,
        source="set",
        metrics={"note": ask.body.note} if ask.body.note else {},
        measured_at_ms=ask.desk.now_ms(),
        measured_by=ask.actor.name,
    )
    await ask.desk.parts.control.change(intensity_store.put(ask.store, intensity))
    await ask.audit("agent.intensity", agent, creation=score.creation, execution=score.execution)
    return await _view(ask)


class _Named(Strict):
    agent: Name


async def _view(ask: Ask[Any, Any]) -> IntensityView:
    agent = ask.path["agent"]
    history = tuple(_score(one) for one in await intensity_store.history(ask.store, ask.project, agent))
    now = history[0] if history else _unknown(agent)
    return IntensityView(**{name: getattr(now, name) for name in ScoreView.__slots__}, history=history)


def _score(one: Intensity) -> ScoreView:
    return ScoreView(
        one.agent,
        one.creation,
        one.execution,
        one.combined,
        one.runs,
        one.source,
        dict(one.metrics),
        iso(one.measured_at_ms),
        one.measured_by,
    )


def _unknown(agent: str) -> ScoreView:
    return ScoreView(
        agent, UNKNOWN_SCORE.creation, UNKNOWN_SCORE.execution, UNKNOWN_SCORE.combined, 0, "unknown", {}, None, ""
    )


ROUTES = (
    Route("GET", "/agents", list_agents, AgentList, "Agents with a score, by name.", ListQuery),
    Route("GET", "/agents/{agent}/intensity", get_intensity, IntensityView, "An agent's score and its history."),
    Route("PUT", "/agents/{agent}/intensity", put_intensity, IntensityView, "Set the score.", body=IntensityBody),
)
