"""/api/agents: intensity scores of agents, computed or set by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from gateway.endpoints.api.route import ApiRequest, Route
from gateway.endpoints.api.schema import ListQuery, Name, NoBody, ProjectQuery, Share, Strict, paged
from gateway.store import intensity as intensity_store
from gateway.store.intensity import Intensity
from gateway.timestamps import iso
from policies.intensity import UNKNOWN_SCORE, combined_score


class IntensityBody(Strict):
    """Scores from 0 to 10. A score that is left out is kept. The combined score is computed from both."""

    creation: Share | None = None
    execution: Share | None = None
    note: str | None = Field(default=None, max_length=500)

    @model_validator(mode="after")
    def _require_change(self) -> IntensityBody:
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


async def list_agents(request: ApiRequest[ListQuery, NoBody]) -> AgentList:
    scored = request.services.parts.control.snapshot.agents.values()
    mine = [_score(score) for score in scored if score.project == request.project]
    page, following = paged(sorted(mine, key=lambda one: one.agent), request.query)
    return AgentList(page, following)


async def get_intensity(request: ApiRequest[ProjectQuery, NoBody]) -> IntensityView:
    return await _view(request)


async def put_intensity(request: ApiRequest[ProjectQuery, IntensityBody]) -> IntensityView:
    agent = _AgentPath(agent=request.path["agent"]).agent
    current_score = request.services.parts.control.snapshot.agents.get((request.project, agent))
    creation, execution = request.body.creation, request.body.execution
    if current_score is not None:
        creation = current_score.creation if creation is None else creation
        execution = current_score.execution if execution is None else execution
    score = combined_score(creation, execution, runs=current_score.runs if current_score else 0)
    intensity = Intensity(
        request.project,
        agent,
        score.creation,
        score.execution,
        score.combined,
        score.runs,
        source="set",
        metrics={"note": request.body.note} if request.body.note else {},
        measured_at_ms=request.services.now_ms(),
        measured_by=request.actor.name,
    )
    await request.services.parts.control.change(intensity_store.put(request.store, intensity))
    await request.audit("agent.intensity", agent, creation=score.creation, execution=score.execution)
    return await _view(request)


class _AgentPath(Strict):
    agent: Name


async def _view(request: ApiRequest[Any, Any]) -> IntensityView:
    agent = request.path["agent"]
    history = tuple(_score(score) for score in await intensity_store.history(request.store, request.project, agent))
    latest = history[0] if history else _unknown(agent)
    return IntensityView(**{name: getattr(latest, name) for name in ScoreView.__slots__}, history=history)


def _score(intensity: Intensity) -> ScoreView:
    return ScoreView(
        intensity.agent,
        intensity.creation,
        intensity.execution,
        intensity.combined,
        intensity.runs,
        intensity.source,
        dict(intensity.metrics),
        iso(intensity.measured_at_ms),
        intensity.measured_by,
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
