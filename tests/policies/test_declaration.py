"""Nested steps, and steps that are learned from past runs."""

from __future__ import annotations

from typing import Any

import pytest

from policies.declaration import DEPTH_MAX, flattened, learned_steps


def test_nested_groups_are_flattened_in_order() -> None:
    steps: list[dict[str, Any]] = [
        {"id": "read", "prompt": "Read the inbox."},
        {
            "id": "branches",
            "priority": "high",
            "steps": [
                {"id": "facts", "intent": "extract"},
                {"id": "loop", "steps": [{"id": "draft", "priority": "low"}, {"id": "check"}]},
            ],
        },
        {"id": "join", "intent": "aggregate", "steps": [{"id": "count"}]},
    ]
    assert flattened(steps) == [
        {"id": "read", "prompt": "Read the inbox."},
        {"id": "facts", "intent": "extract", "priority": "high"},
        {"id": "draft", "priority": "low"},
        {"id": "check", "priority": "high"},
        {"id": "join", "intent": "aggregate"},
        {"id": "count"},
    ]


def test_repeated_step_id_keeps_only_the_first_step() -> None:
    steps: list[dict[str, Any]] = [
        {"id": "ask", "prompt": "first"},
        {"id": "again", "steps": [{"id": "ask", "prompt": "second"}]},
    ]
    assert flattened(steps) == [{"id": "ask", "prompt": "first"}]


def test_groups_nested_deeper_than_32_are_refused() -> None:
    step: dict[str, Any] = {"id": "inmost"}
    for level in range(DEPTH_MAX):
        step = {"id": f"group-{level}", "steps": [step]}
    with pytest.raises(ValueError, match="deeper than 32"):
        flattened([step])


@pytest.mark.parametrize(
    ("runs_by_step", "known"),
    [
        ({}, None),
        ({"a": 2, "b": 2}, None),
        ({"a": 3, "b": 3}, ("a", "b")),
        ({"b": 3, "a": 3}, ("b", "a")),  # in the given order
        ({"a": 3, "b": 2, "x": 1}, ("a", "b")),  # one unusual run changes nothing
        ({"a": 4, "b": 2}, ("a", "b")),
        ({"a": 200, "b": 99}, ("a",)),
    ],
)
def test_learned_steps_occur_in_half_of_three_or_more_runs(
    runs_by_step: dict[str, int], known: tuple[str, ...] | None
) -> None:
    assert learned_steps(runs_by_step) == known
