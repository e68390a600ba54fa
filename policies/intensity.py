"""The agent intensity score (AIS): how demanding an agent's work is, from 0 to 10, as far as the gateway can see.

    combined   =  0.3 × creation + 0.7 × execution            an unknown part is neutral: 5.0
    creation   =  what was declared: workflow 50 %, tools 30 %, schemas 20 %
    execution  =  what was observed: tokens 35 %, executions 25 %, tools 25 %, workflow 15 %; known after five runs

Each measure is normalised linearly between two figures and weighted by the two tables below. An unknown measure (None) is
left out, and its weight goes to the other measures of its group; the weight of a group without any measure goes to the other
groups. `docs/intensity.md` has an example.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from types import MappingProxyType
from typing import Any, Final

from policies.declaration import flattened, tool_name
from policies.values import value_class

NEUTRAL: Final = 5.0
SCORE_MAX: Final = 10.0
# Fewer runs than this are too small a sample: a single one may be unusually long.
RUNS_MIN: Final = 5
_CREATION_SHARE: Final = 0.3


@value_class
class Measure:
    """`low` scores 0 and `high` scores 10; values beyond are clamped. `weight` is the measure's share of its group."""

    name: str
    weight: float
    low: float
    high: float
    meaning: str


@value_class
class Group:
    name: str
    weight: float
    measures: tuple[Measure, ...]


_SHAPE_MEASURES: Final = (
    Measure("steps", 0.40, 1, 20, "steps of a run"),
    Measure("branches", 0.25, 0, 5, "branches in the course of a run"),
    Measure("loops", 0.20, 0, 3, "loops"),
    Measure("parallel", 0.15, 0, 5, "steps that run in parallel with others"),
)

CREATION: Final = (
    Group("workflow", 0.50, _SHAPE_MEASURES),
    Group("tools", 0.30, (Measure("tools", 1.0, 0, 10, "different tools declared"),)),
    Group(
        "schema",
        0.20,
        (
            Measure("input_fields", 0.5, 0, 20, "fields of the input's schema"),
            Measure("output_fields", 0.5, 0, 20, "fields of the output's schema"),
        ),
    ),
)

EXECUTION: Final = (
    Group(
        "tokens",
        0.35,
        (
            Measure("volume", 0.50, 0, 5_000, "tokens per run"),
            Measure("peak", 0.30, 0, 10_000, "tokens of the largest run"),
            Measure("efficiency", 0.20, 1, 20, "prompt tokens per output token"),
        ),
    ),
    Group(
        "executions",
        0.25,
        (
            Measure("iterations", 0.35, 1, 20, "calls per run"),
            Measure("duration", 0.30, 0, 300_000, "milliseconds per run"),
            Measure("failures", 0.20, 0, 0.5, "share of calls that failed"),
            Measure("retries", 0.15, 0, 0.5, "share of calls that were retries"),
        ),
    ),
    Group(
        "tools",
        0.25,
        (
            Measure("distinct_tools", 0.40, 0, 10, "different tools offered to the model"),
            Measure("tool_calls", 0.35, 0, 20, "tool calls per run"),
            Measure("tools_a_step", 0.25, 0, 5, "tool calls per step"),
        ),
    ),
    Group("workflow", 0.15, _SHAPE_MEASURES),
)


@value_class
class WorkflowShape:
    """The figures of a declared workflow. None: not declared."""

    steps: int | None = None
    branches: int | None = None
    loops: int | None = None
    parallel: int | None = None
    tools: int | None = None
    input_fields: int | None = None
    output_fields: int | None = None


@value_class
class AgentActivity:
    """What was observed of an agent's runs: sums over `runs` runs unless noted. None: the gateway could not see it."""

    runs: int
    calls: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    peak_run_tokens: int = 0  # of the largest run
    duration_ms: int = 0
    steps: int = 0
    retries: int | None = None
    tool_calls: int | None = None
    distinct_tools: int | None = None  # over all runs


@value_class
class IntensityScore:
    """Scores from 0 to 10, rounded to hundredths. `parts` has each group's score under `creation.…` and `execution.…`."""

    creation: float
    execution: float
    combined: float
    runs: int = 0
    parts: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


UNKNOWN_SCORE: Final = IntensityScore(NEUTRAL, NEUTRAL, NEUTRAL)


def intensity_score(activity: AgentActivity | None = None, shape: WorkflowShape | None = None) -> IntensityScore:
    """The scores of an agent; 5.0 for unknown parts. Execution is unknown before five runs."""
    created = _group_scores(CREATION, {} if shape is None else _shape_values(shape))
    has_enough_runs = activity is not None and activity.runs >= RUNS_MIN
    executed = _group_scores(
        EXECUTION, _activity_values(activity, shape) if activity is not None and has_enough_runs else {}
    )
    parts = {f"creation.{name}": score for name, score in created.items()}
    parts |= {f"execution.{name}": score for name, score in executed.items()}
    return combined_score(
        _weighted_mean(CREATION, created),
        _weighted_mean(EXECUTION, executed),
        runs=activity.runs if activity else 0,
        parts=parts,
    )


def combined_score(
    creation: float | None, execution: float | None, *, runs: int = 0, parts: Mapping[str, float] | None = None
) -> IntensityScore:
    """The combined score of two given ones (None: neutral), for scores that were set by hand. Raises ValueError outside 0 to 10."""
    creation_score, execution_score = (NEUTRAL if score is None else score for score in (creation, execution))
    for score in (creation_score, execution_score):
        if not 0 <= score <= SCORE_MAX:
            raise ValueError(f"an intensity score is from 0 to 10, not {score!r}")
    combined = _CREATION_SHARE * creation_score + (1 - _CREATION_SHARE) * execution_score
    rounded = MappingProxyType({name: round(score, 2) for name, score in (parts or {}).items()})
    return IntensityScore(round(creation_score, 2), round(execution_score, 2), round(combined, 2), runs, rounded)


def shape_of(steps: Sequence[Mapping[str, Any]]) -> WorkflowShape:
    """The shape of a declaration's `steps`. Tools are told apart by name; fields are the `properties` of schemas.

    A step that decides (intent `conditional`) is a branch, and so is a group of `kind` branch; a group of `kind` loop is a
    loop; the steps of any other group run in parallel.
    """
    flat, groups = flattened(steps), list(_step_groups(steps))
    kinds = [group.get("kind") for group in groups]
    parallel_ids = {
        step["id"]
        for group in groups
        if group.get("kind") not in ("loop", "branch")
        for step in flattened(group["steps"])
    }
    tools = {tool_name(tool) or str(tool) for step in flat for tool in step.get("tools") or ()}
    return WorkflowShape(
        steps=len(flat),
        branches=sum(step.get("intent") == "conditional" for step in flat) + kinds.count("branch"),
        loops=kinds.count("loop"),
        parallel=len(parallel_ids),
        tools=len(tools) if any("tools" in step for step in flat) else None,
        input_fields=_schema_field_count(flat, "input_schema"),
        output_fields=_schema_field_count(flat, "output_schema"),
    )


def _step_groups(steps: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for step in steps:
        if step.get("steps"):
            yield step
            yield from _step_groups(step["steps"])


def _schema_field_count(steps: Iterable[Mapping[str, Any]], name: str) -> int | None:
    schemas = [step[name] for step in steps if isinstance(step.get(name), Mapping)]
    if not schemas:
        return None
    return sum(len(schema["properties"]) for schema in schemas if isinstance(schema.get("properties"), Mapping))


Values = Mapping[str, Mapping[str, float | None]]


def _shape_values(shape: WorkflowShape) -> Values:
    return {
        "workflow": {name: getattr(shape, name) for name in ("steps", "branches", "loops", "parallel")},
        "tools": {"tools": shape.tools},
        "schema": {"input_fields": shape.input_fields, "output_fields": shape.output_fields},
    }


def _activity_values(activity: AgentActivity, shape: WorkflowShape | None) -> Values:
    runs, calls, steps = activity.runs, max(1, activity.calls), max(1, activity.steps)
    tool_calls = activity.tool_calls
    declared = shape or WorkflowShape()
    return {
        "tokens": {
            "volume": activity.total_tokens / runs,
            "peak": activity.peak_run_tokens,
            "efficiency": activity.input_tokens / max(1, activity.output_tokens),
        },
        "executions": {
            "iterations": activity.calls / runs,
            "duration": activity.duration_ms / runs,
            "failures": activity.errors / calls,
            "retries": None if activity.retries is None else activity.retries / calls,
        },
        "tools": {
            "distinct_tools": activity.distinct_tools,
            "tool_calls": None if tool_calls is None else tool_calls / runs,
            "tools_a_step": None if tool_calls is None else tool_calls / steps,
        },
        # Only the number of steps can be observed; the declaration supplies the rest of the shape.
        "workflow": {
            "steps": activity.steps / runs,
            "branches": declared.branches,
            "loops": declared.loops,
            "parallel": declared.parallel,
        },
    }


def _group_scores(groups: Iterable[Group], values: Values) -> dict[str, float]:
    """The score of each group with at least one known measure."""
    scores = {}
    for group in groups:
        group_values = values.get(group.name, {})
        measured = [
            (measure, value) for measure in group.measures if (value := group_values.get(measure.name)) is not None
        ]
        weight = sum(measure.weight for measure, _ in measured)
        if weight:
            scores[group.name] = (
                sum(measure.weight * _normalized(measure, value) for measure, value in measured) / weight
            )
    return scores


def _normalized(measure: Measure, value: float) -> float:
    share = (value - measure.low) / (measure.high - measure.low)
    return SCORE_MAX * min(1.0, max(0.0, share))


def _weighted_mean(groups: Iterable[Group], scores: Mapping[str, float]) -> float | None:
    scored_groups = [group for group in groups if group.name in scores]
    weight = sum(group.weight for group in scored_groups)
    return (
        min(SCORE_MAX, sum(group.weight * scores[group.name] for group in scored_groups) / weight) if weight else None
    )
