"""The plan of a run that is announced before it begins: each step's intent, share of the tokens, tier and compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import orjson

from gateway.control import Snapshot
from gateway.store import step_history
from gateway.store.database import Database
from policies.allocation import NEUTRAL_AIS, StepAllocation, StepDemand, StepHistory, allocate, history_of
from policies.amounts import UNLIMITED, Limit
from policies.classify import Classification, StepText, classify
from policies.complexity import effective_complexity, features_of, step_complexity
from policies.declaration import flattened
from policies.intents import Intent, parse_intent
from policies.routing import tier_for
from policies.settings import Settings

_NO_HISTORY: Final[Mapping[str, StepHistory]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run as it is announced. `steps` are as they were declared, nested ones inside; empty: those of the workflow."""

    run: str
    workflow: str
    agent: str = ""
    user: str = ""
    parent_run: str = ""
    budget: Limit = UNLIMITED
    strategy: str | None = None
    ais: float | None = None
    steps: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedStep:
    step: str
    intent: str
    confidence: float
    source: str
    reasoning: str
    priority: str
    tier: str
    complexity: float
    compression: str
    allocation_tokens: int
    hard_limit_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The allocations of `steps`, in the order of the declaration, sum to `pool_tokens`."""

    strategy: str
    pool_tokens: int
    ais: float
    steps: tuple[PlannedStep, ...] = field(default=())


def plan_run(
    request: RunRequest,
    settings: Settings,
    *,
    pool_limit_tokens: int | None,
    histories: Mapping[str, StepHistory] = _NO_HISTORY,
) -> RunPlan:
    """Pure. `pool_limit_tokens` None takes `max_tokens_per_workflow`. Raises ValueError as `allocate` and `flattened` do."""
    steps = flattened(request.steps)
    told = {str(step["id"]): step_intent(step, request.workflow, settings) for step in steps}
    ais = NEUTRAL_AIS if request.ais is None else request.ais
    strategy = request.strategy or settings.allocation_strategy
    demands = [demand_of(step, told[str(step["id"])].intent, histories) for step in steps]
    allocation = allocate(demands, strategy=strategy, pool_limit_tokens=pool_limit_tokens, settings=settings, ais=ais)
    shares = {one.step: one for one in allocation.allocations}
    planned = tuple(
        _planned(step, told[str(step["id"])], shares[str(step["id"])], settings, request.ais) for step in steps
    )
    return RunPlan(strategy, allocation.pool_tokens, ais, planned)


def step_intent(step: Mapping[str, Any], workflow: str | None, settings: Settings) -> Classification:
    """What a declared step is asked to make. Raises IntentClassificationError for a declared intent that is none."""
    declared = parse_intent(str(step["intent"])) if step.get("intent") else None
    threshold = settings.intent_classification_confidence_threshold
    return classify(step_text(step, workflow), declared=declared, confidence_threshold=threshold)


def step_text(step: Mapping[str, Any], workflow: str | None) -> StepText:
    tools = step.get("tools") or ()
    return StepText(
        step=str(step.get("id") or step.get("step") or "") or None,
        workflow=workflow,
        system=step.get("system"),
        prompt=str(step.get("prompt") or step.get("description") or ""),
        tools=tuple(name for tool in tools if (name := _tool_name(tool))),
        response_format=_response_format(step.get("response_format")),
    )


def demand_of(step: Mapping[str, Any], intent: str, histories: Mapping[str, StepHistory] = _NO_HISTORY) -> StepDemand:
    name = str(step["id"])
    return StepDemand(
        name,
        intent,
        str(step.get("priority") or "normal"),
        demand_tokens=step.get("budget_tokens"),
        history=histories.get(name),
    )


async def known_histories(
    db: Database, project: str, workflow: str, steps: Sequence[Mapping[str, Any]], now_ms: int
) -> Mapping[str, StepHistory]:
    """What past runs say of these steps. Raises StoreUnavailable."""
    own = await step_history.by_step(db, project, workflow, now_ms)
    found = {str(step["id"]): history_of(own.get(str(step["id"]), ())) for step in flattened(steps)}
    return {name: history for name, history in found.items() if history is not None}


def with_declaration(request: RunRequest, snapshot: Snapshot, project: str) -> tuple[Mapping[str, Any], ...]:
    """The steps of the request, completed by what the workflow's declaration says of steps with the same id."""
    workflow = snapshot.workflow(project, request.workflow)
    declared = tuple(workflow.declaration.get("steps") or ()) if workflow is not None else ()
    if not request.steps:
        return declared
    known = {str(step["id"]): step for step in flattened(declared)}
    return tuple(_completed(step, known) for step in request.steps)


def _completed(step: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    inner = [_completed(one, known) for one in step.get("steps") or ()]
    return {**known.get(str(step["id"]), {}), **step, **({"steps": inner} if inner else {})}


def _planned(
    step: Mapping[str, Any], told: Classification, share: StepAllocation, settings: Settings, ais: float | None
) -> PlannedStep:
    prompt = str(step.get("prompt") or step.get("description") or "")
    own = step_complexity(features_of({"messages": [{"role": "user", "content": prompt}]}), told.intent)
    score = effective_complexity(ais, own.score)
    compression = settings.compression_strategy[Intent(told.intent)] if settings.compression_enabled else "none"
    return PlannedStep(
        step=str(step["id"]),
        intent=told.intent,
        confidence=told.confidence,
        source=told.source,
        reasoning=told.reasoning,
        priority=str(step.get("priority") or "normal"),
        tier=tier_for(score, settings).value,
        complexity=round(score, 2),
        compression=compression,
        allocation_tokens=share.tokens,
        hard_limit_tokens=share.hard_limit_tokens,
        reason=share.reason,
    )


def _tool_name(tool: Any) -> str:
    """Tools by name, or as a request to a model has them."""
    if isinstance(tool, str):
        return tool
    if not isinstance(tool, Mapping):
        return ""
    inner = tool.get("function")
    named = inner if isinstance(inner, Mapping) else tool
    return str(named.get("name") or "")


def _response_format(given: Any) -> str | None:
    if given is None or isinstance(given, str):
        return given or None
    return "json_object" if given.get("type") == "json_object" else orjson.dumps(given).decode()
