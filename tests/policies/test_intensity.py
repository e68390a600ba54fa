"""The intensity score: neutral without data, bounded, monotone, and composed of weighted measures."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.intensity import (
    CREATION,
    EXECUTION,
    UNKNOWN_SCORE,
    AgentActivity,
    WorkflowShape,
    combined_score,
    intensity_score,
    shape_of,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "intensity.md"
RESEARCHER = AgentActivity(
    runs=20,
    calls=120,
    errors=6,
    input_tokens=240_000,
    output_tokens=24_000,
    total_tokens=264_000,
    peak_run_tokens=21_000,
    duration_ms=1_200_000,
    steps=80,
    retries=3,
    tool_calls=100,
    distinct_tools=4,
)


def test_unknown_agent_scores_5_on_every_scale() -> None:
    assert intensity_score() == UNKNOWN_SCORE
    assert (UNKNOWN_SCORE.creation, UNKNOWN_SCORE.execution, UNKNOWN_SCORE.combined) == (5.0, 5.0, 5.0)


@pytest.mark.parametrize(("runs", "known"), [(0, False), (4, False), (5, True)])
def test_execution_is_scored_from_five_runs_on(runs: int, known: bool) -> None:
    score = intensity_score(replace(RESEARCHER, runs=runs))
    assert score.runs == runs
    assert (score.execution != 5.0) is known
    assert any(name.startswith("execution.") for name in score.parts) is known


@pytest.mark.parametrize(
    ("creation", "execution", "combined"),
    [(0, 0, 0), (10, 10, 10), (0, 10, 7), (10, 0, 3), (None, 10, 8.5), (6, None, 5.3), (2.5, 7.5, 6)],
)
def test_combined_score_is_30_percent_creation_and_70_percent_execution(
    creation: float | None, execution: float | None, combined: float
) -> None:
    assert combined_score(creation, execution).combined == combined


@pytest.mark.parametrize("score", [-0.01, 10.01, float("nan")])
def test_manual_score_outside_0_to_10_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 10"):
        combined_score(score, 5)


@pytest.mark.parametrize("groups", [CREATION, EXECUTION])
def test_group_and_measure_weights_sum_to_one(groups: Any) -> None:
    assert sum(group.weight for group in groups) == pytest.approx(1)
    for group in groups:
        assert sum(measure.weight for measure in group.measures) == pytest.approx(1)


def test_execution_group_weights_are_as_documented() -> None:
    assert {group.name: group.weight for group in EXECUTION} == {
        "tokens": 0.35,
        "executions": 0.25,
        "tools": 0.25,
        "workflow": 0.15,
    }


def test_documented_example_yields_the_documented_scores() -> None:
    """The example of docs/intensity.md."""
    score = intensity_score(RESEARCHER, WorkflowShape(steps=4, branches=1, tools=4))
    assert dict(score.parts) == {
        "creation.workflow": 1.74,  # steps 1.58 × 0.40 and branches 2.00 × 0.25, over 0.65
        "creation.tools": 4.0,
        "execution.tokens": 8.95,  # volume 10, peak 10, efficiency 4.74
        "execution.executions": 1.8,  # iterations 2.63, duration 2, failures 1, retries 0.5
        "execution.tools": 3.1,  # different tools 4, calls a run 2.5, a step 2.5
        "execution.workflow": 1.74,
    }
    assert (score.creation, score.execution, score.combined) == (2.59, 4.62, 4.01)


def test_weight_of_an_unmeasured_group_is_spread_over_the_others() -> None:
    unseen = intensity_score(replace(RESEARCHER, retries=None, tool_calls=None, distinct_tools=None))
    assert "execution.tools" not in unseen.parts
    assert unseen.execution == pytest.approx((0.35 * 8.947 + 0.25 * 2.024 + 0.15 * 1.579) / 0.75, abs=0.02)


SMALL = st.integers(0, 10**9)
ACTIVITIES = st.builds(
    AgentActivity,
    runs=st.integers(5, 10**6),
    **dict.fromkeys(
        ("calls", "errors", "input_tokens", "output_tokens", "total_tokens", "peak_run_tokens", "duration_ms", "steps"),
        SMALL,
    ),
    **dict.fromkeys(("retries", "tool_calls", "distinct_tools"), st.none() | SMALL),
)
SHAPES = st.builds(WorkflowShape, *[st.none() | st.integers(0, 1000) for _ in fields(WorkflowShape)])


@given(st.none() | ACTIVITIES, st.none() | SHAPES)
def test_every_score_is_from_0_to_10(activity: AgentActivity | None, shape: WorkflowShape | None) -> None:
    score = intensity_score(activity, shape)
    assert all(0 <= value <= 10 for value in (score.creation, score.execution, score.combined, *score.parts.values()))


@given(ACTIVITIES, st.sampled_from(["total_tokens", "peak_run_tokens", "input_tokens", "duration_ms", "errors"]), SMALL)
def test_more_activity_never_lowers_the_combined_score(activity: AgentActivity, name: str, more: int) -> None:
    busier = replace(activity, **{name: getattr(activity, name) + more})
    assert intensity_score(busier).combined >= intensity_score(activity).combined


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        ([], WorkflowShape(steps=0, branches=0, loops=0, parallel=0)),
        ([{"id": "a"}, {"id": "b"}], WorkflowShape(steps=2, branches=0, loops=0, parallel=0)),
        (
            [
                {"id": "route", "intent": "conditional"},
                {"id": "both", "steps": [{"id": "a", "tools": ["find", "open"]}, {"id": "b", "tools": ["find"]}]},
                {
                    "id": "again",
                    "kind": "loop",
                    "steps": [{"id": "draft", "output_schema": {"properties": {"x": {}, "y": {}}}}],
                },
                {"id": "either", "kind": "branch", "steps": [{"id": "c"}, {"id": "d", "input_schema": {}}]},
            ],
            WorkflowShape(steps=6, branches=2, loops=1, parallel=2, tools=2, input_fields=0, output_fields=2),
        ),
        (  # one tool, declared in two forms
            [
                {"id": "a", "tools": ["find"]},
                {"id": "b", "tools": [{"type": "function", "function": {"name": "find", "description": "Finds."}}]},
            ],
            WorkflowShape(steps=2, branches=0, loops=0, parallel=0, tools=1),
        ),
        (  # a step of a group inside a group is one step
            [{"id": "outer", "steps": [{"id": "a"}, {"id": "inner", "steps": [{"id": "b"}]}]}],
            WorkflowShape(steps=2, branches=0, loops=0, parallel=2),
        ),
    ],
)
def test_workflow_shape_of_a_declaration(steps: list[dict[str, Any]], shape: WorkflowShape) -> None:
    assert shape_of(steps) == shape


def test_document_lists_every_measure_with_its_range_and_weight() -> None:
    rows = re.findall(r"^\| (\w+) \| (\d+) % \| ([\d,.]+) to ([\d,.]+) \| ([^|]+) \|$", DOCUMENT.read_text(), re.M)
    documented = {
        (name, int(weight), _number(low), _number(high), meaning.strip()) for name, weight, low, high, meaning in rows
    }
    assert documented == {
        (measure.name, round(100 * measure.weight), measure.low, measure.high, measure.meaning)
        for group in (*CREATION, *EXECUTION)
        for measure in group.measures
    }


def _number(text: str) -> float:
    return float(text.replace(",", ""))
