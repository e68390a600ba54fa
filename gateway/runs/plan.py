"""The plan of a run: each step's intent, share of the tokens, tier and compression.

One function plans all runs: announced ones, those of declared workflows, and those whose steps were learned from past runs.
They only differ in where the steps come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.control import Snapshot
from gateway.store.runs import Run, RunStep
from gateway.store.workflows import Workflow
from policies.allocation import NEUTRAL_AIS, Allocation, StepAllocation, StepDemand, StepHistory, allocate
from policies.amounts import UNLIMITED, Limit
from policies.classify import Classification, StepText, classify
from policies.complexity import effective_complexity, features_of, step_complexity
from policies.declaration import flattened, tool_name
from policies.intents import Intent, parse_intent
from policies.routing import tier_for
from policies.settings import Settings


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The announcement of a run. `steps` are as declared, with nested ones inside; empty: those of the workflow.

    `keeps_steps`: it does not mention steps, so a run that was announced before keeps those it has.
    """

    run: str
    workflow: str
    agent: str = ""
    user: str = ""
    parent_run: str = ""
    budget: Limit = UNLIMITED
    strategy: str | None = None
    ais: float | None = None
    steps: tuple[Mapping[str, Any], ...] = ()
    keeps_steps: bool = False


@dataclass(frozen=True, slots=True)
class StepProfile:
    """What a declared step is asked to produce, and its own complexity (0 to 10)."""

    classification: Classification
    complexity: float


# The arguments are the step, its workflow and the settings.
Profiler = Callable[[Mapping[str, Any], str, Settings], StepProfile]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """`unit` is the index of the declaration's outermost element: steps of one group (a loop, parallel branches) share it."""

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
    cap_tokens: int | None = None
    history: StepHistory | None = None
    unit: int = 0


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The allocations of `steps`, in the order of the declaration, sum to `pool_tokens`; a run gets at most `limit_tokens`."""

    strategy: str
    pool_tokens: int
    limit_tokens: int
    ais: float
    steps: tuple[PlannedStep, ...] = field(default=())


def plan_run(
    request: RunRequest,
    settings: Settings,
    *,
    pool_limit_tokens: int | None,
    histories: Callable[[str, str], StepHistory | None] = lambda _step, _intent: None,
    profiler: Profiler | None = None,
) -> RunPlan:
    """Pure. `pool_limit_tokens` None means `max_tokens_per_workflow`; `histories` returns what is known of a step and its intent.

    Raises ValueError like `allocate` and `flattened`.
    """
    steps = flattened(request.steps)
    profiles = {str(step["id"]): (profiler or profile_by_words)(step, request.workflow, settings) for step in steps}
    ais = NEUTRAL_AIS if request.ais is None else request.ais
    strategy = request.strategy or settings.allocation_strategy
    demands = [_demand_of(step, profiles[str(step["id"])], histories) for step in steps]
    allocation = within_caps(
        allocate(demands, strategy=strategy, pool_limit_tokens=pool_limit_tokens, settings=settings, ais=ais), demands
    )
    units = units_of(request.steps)
    planned = tuple(
        _planned(step, profiles[demand.id], share, demand, settings, request.ais, units[demand.id])
        for step, demand, share in zip(steps, demands, allocation.allocations, strict=True)
    )
    limit = settings.max_tokens_per_workflow if pool_limit_tokens is None else pool_limit_tokens
    return RunPlan(strategy, allocation.pool_tokens, limit, ais, planned)


def with_limit(plan: RunPlan, limit_tokens: int | None, settings: Settings) -> RunPlan:
    """The same steps, sharing another limit. The same object if there is no limit, or it is unchanged."""
    if limit_tokens is None or limit_tokens == plan.limit_tokens or not plan.steps:
        return plan
    return _reallocated(plan, limit_tokens, settings)


def kept_plan(plan: RunPlan, request: RunRequest, limit_tokens: int, settings: Settings) -> RunPlan:
    """The plan of a run that is announced again without steps, updated by the rest of the announcement."""
    strategy, ais = request.strategy or plan.strategy, plan.ais if request.ais is None else request.ais
    if (strategy, ais) == (plan.strategy, plan.ais):
        return with_limit(plan, limit_tokens, settings)
    return _reallocated(replace(plan, strategy=strategy, ais=ais), limit_tokens, settings)


def _reallocated(plan: RunPlan, limit_tokens: int, settings: Settings) -> RunPlan:
    demands = demands_of(plan)
    allocation = within_caps(
        allocate(demands, strategy=plan.strategy, pool_limit_tokens=limit_tokens, settings=settings, ais=plan.ais),
        demands,
    )
    steps = tuple(
        replace(
            step,
            allocation_tokens=share.tokens,
            hard_limit_tokens=share.hard_limit_tokens,
            reason=share.reason,
        )
        for step, share in zip(plan.steps, allocation.allocations, strict=True)
    )
    return replace(plan, pool_tokens=allocation.pool_tokens, limit_tokens=limit_tokens, steps=steps)


def strategy_of(settings: Settings, workflow: Workflow | None) -> str:
    """The allocation strategy of a workflow: its own, or else that of the settings."""
    declared_strategy = workflow.declaration.get("strategy") if workflow is not None else None
    return (
        declared_strategy if isinstance(declared_strategy, str) and declared_strategy else settings.allocation_strategy
    )


def within_caps(allocation: Allocation, demands: Sequence[StepDemand]) -> Allocation:
    """A step's own budget is a hard limit: overage does not exceed it."""
    caps = {demand.id: demand.cap_tokens for demand in demands if demand.cap_tokens is not None}
    if not caps:
        return allocation
    return replace(
        allocation, allocations=tuple(_within(share, caps.get(share.step)) for share in allocation.allocations)
    )


def _within(share: StepAllocation, cap_tokens: int | None) -> StepAllocation:
    if cap_tokens is None or share.hard_limit_tokens <= cap_tokens:
        return share
    return replace(share, hard_limit_tokens=cap_tokens)


def units_of(steps: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The outermost element of the declaration that each step belongs to."""
    units: dict[str, int] = {}
    for unit, outermost in enumerate(steps):
        for step in flattened([outermost]):
            units.setdefault(str(step["id"]), unit)
    return units


def demands_of(plan: RunPlan) -> tuple[StepDemand, ...]:
    """The demands of a plan's steps, for sharing out again what completed ones left."""
    return tuple(
        StepDemand(step.step, step.intent, step.priority, history=step.history, cap_tokens=step.cap_tokens)
        for step in plan.steps
    )


def stored_step(run: str, position: int, step: PlannedStep) -> RunStep:
    """The step's row in the store. Planned steps are numbered from 1; 0 is an unplanned step."""
    history = step.history
    plan = {
        "priority": step.priority,
        "compression": step.compression,
        "complexity": step.complexity,
        "reason": step.reason,
        "reasoning": step.reasoning,
        "cap_tokens": step.cap_tokens,
        "history": None if history is None else [history.samples, history.p95_tokens, history.of],
        "unit": step.unit,
        "planned": [step.allocation_tokens, step.hard_limit_tokens, step.reason],
    }
    return RunStep(
        run=run,
        step=step.step,
        position=position,
        intent=step.intent,
        confidence=step.confidence,
        intent_source=step.source,
        tier=step.tier,
        allocation_tokens=step.allocation_tokens,
        hard_limit_tokens=step.hard_limit_tokens,
        plan={name: value for name, value in plan.items() if value is not None},
    )


def reallocated_step(run: str, position: int, step: PlannedStep, allocation: StepAllocation) -> RunStep:
    """The row of a planned step whose allocation changed when others completed. It also keeps what was planned first."""
    row = stored_step(run, position, step)
    return replace(
        row,
        allocation_tokens=allocation.tokens,
        hard_limit_tokens=allocation.hard_limit_tokens,
        plan={**row.plan, "reason": allocation.reason},
    )


def step_of_store(step: RunStep) -> PlannedStep:
    """The inverse of `stored_step`, for a step with an allocation: as it was planned first."""
    plan, history = step.plan, step.plan.get("history")
    tokens_and_limit = (
        step.allocation_tokens or 0,
        step.hard_limit_tokens or step.allocation_tokens or 0,
        plan.get("reason", ""),
    )
    tokens, hard, reason = plan.get("planned", tokens_and_limit)
    return PlannedStep(
        step=step.step,
        intent=step.intent,
        confidence=step.confidence or 0.0,
        source=step.intent_source,
        reasoning=str(plan.get("reasoning", "")),
        priority=str(plan.get("priority") or "normal"),
        tier=step.tier,
        complexity=float(plan.get("complexity", 0.0)),
        compression=str(plan.get("compression", "none")),
        allocation_tokens=int(tokens),
        hard_limit_tokens=int(hard),
        reason=str(reason),
        cap_tokens=plan.get("cap_tokens"),
        history=StepHistory(*history) if history else None,
        unit=int(plan.get("unit", step.position)),
    )


def announced_plan(run: Run | None) -> RunPlan | None:
    """The plan of a run that was announced through the API, perhaps in another process. None: it was not, or has no steps."""
    if run is None or "strategy" not in run.plan:
        return None
    steps = tuple(step_of_store(step) for step in run.steps if step.position and step.allocation_tokens is not None)
    if not steps:
        return None
    pool = int(run.plan.get("pool_tokens", sum(step.allocation_tokens for step in steps)))
    limit = int(run.plan.get("limit_tokens", pool))
    return RunPlan(str(run.plan["strategy"]), pool, limit, float(run.plan.get("ais", 5.0)), steps)


def profile_by_words(step: Mapping[str, Any], workflow: str, settings: Settings) -> StepProfile:
    """The profile by the step's words alone. Raises IntentClassificationError for an invalid declared intent."""
    return profile_as(step, step_intent(step, workflow, settings))


def profile_as(step: Mapping[str, Any], classification: Classification) -> StepProfile:
    prompt = str(step.get("prompt") or step.get("description") or "")
    features = features_of({"messages": [{"role": "user", "content": prompt}]})
    return StepProfile(classification, step_complexity(features, classification.intent).score)


def step_intent(step: Mapping[str, Any], workflow: str | None, settings: Settings) -> Classification:
    """What a declared step is asked to produce. Raises IntentClassificationError for an invalid declared intent."""
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
        tools=tuple(name for tool in tools if (name := tool_name(tool))),
        response_format=_response_format(step.get("response_format")),
    )


def _demand_of(
    step: Mapping[str, Any], profile: StepProfile, histories: Callable[[str, str], StepHistory | None]
) -> StepDemand:
    """A step's own budget caps its allocation; its demand follows from its intent."""
    name, intent = str(step["id"]), profile.classification.intent
    return StepDemand(
        name,
        intent,
        str(step.get("priority") or "normal"),
        history=histories(name, intent),
        cap_tokens=step.get("budget_tokens"),
    )


def with_declaration(request: RunRequest, snapshot: Snapshot, project: str) -> tuple[Mapping[str, Any], ...]:
    """The steps of the request, each completed by the workflow's declaration of the step with the same id."""
    workflow = snapshot.workflow(project, request.workflow)
    declared = tuple(workflow.declaration.get("steps") or ()) if workflow is not None else ()
    if not request.steps:
        return declared
    declared_steps = {str(step["id"]): step for step in flattened(declared)}
    return tuple(_completed(step, declared_steps) for step in request.steps)


def _completed(step: Mapping[str, Any], declared_steps: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    inner = [_completed(inner_step, declared_steps) for inner_step in step.get("steps") or ()]
    return {**declared_steps.get(str(step["id"]), {}), **step, **({"steps": inner} if inner else {})}


def _planned(
    step: Mapping[str, Any],
    profile: StepProfile,
    share: StepAllocation,
    demand: StepDemand,
    settings: Settings,
    ais: float | None,
    unit: int,
) -> PlannedStep:
    intent = profile.classification.intent
    score = effective_complexity(ais, profile.complexity)
    compression = settings.compression_strategy[Intent(intent)] if settings.compression_enabled else "none"
    return PlannedStep(
        step=demand.id,
        intent=intent,
        confidence=profile.classification.confidence,
        source=profile.classification.source,
        reasoning=profile.classification.reasoning,
        priority=demand.priority,
        tier=tier_for(score, settings).value,
        complexity=round(score, 2),
        compression=compression,
        allocation_tokens=share.tokens,
        hard_limit_tokens=share.hard_limit_tokens,
        reason=share.reason,
        cap_tokens=demand.cap_tokens,
        history=demand.history,
        unit=unit,
    )


def _response_format(response_format: Any) -> str | None:
    if response_format is None or isinstance(response_format, str):
        return response_format or None
    if response_format.get("type") == "json_object":
        return "json_object"
    return json.dumps(response_format, ensure_ascii=False)  # orjson refuses integers above 64 bits
