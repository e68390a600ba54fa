"""Nested steps, and steps that are learned from past runs."""

from __future__ import annotations

from typing import Any

import pytest

from policies.declaration import DEPTH_MAX, flattened, learned_steps


def test_groups_are_flattened_in_order() -> None:
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


def test_an_id_that_comes_again_is_the_same_step() -> None:
    steps: list[dict[str, Any]] = [
        {"id": "ask", "prompt": "first"},
        {"id": "again", "steps": [{"id": "ask", "prompt": "second"}]},
    ]
    assert flattened(steps) == [{"id": "ask", "prompt": "first"}]


def test_groups_nested_without_end_are_refused() -> None:
    step: dict[str, Any] = {"id": "inmost"}
    for level in range(DEPTH_MAX):
        step = {"id": f"group-{level}", "steps": [step]}
    with pytest.raises(ValueError, match="deeper than 32"):
        flattened([step])


@pytest.mark.parametrize(
    ("past_runs", "known"),
    [
        ([], None),
        ([["a", "b"], ["a", "b"]], None),
        ([["a", "b"], ["a", "b"], ["a", "b"]], ("a", "b")),
        ([["b", "a"], ["a", "b"], ["a", "b"]], ("b", "a")),  # in the order of the newest run
        ([["a", "x"], ["a", "b"], ["a", "b"]], ("a", "b")),  # one odd run adds nothing
        ([["a"], ["a", "b"], ["a", "b"]], ("a", "b")),  # and takes nothing away
        ([["a"], ["a", "b"], ["a", "b"], ["a"]], ("a", "b")),
        ([["a", "a", "a"], ["b"], ["b"]], ("b",)),  # a loop within a run counts once
    ],
)
def test_steps_of_an_undeclared_workflow(past_runs: list[list[str]], known: tuple[str, ...] | None) -> None:
    assert learned_steps(past_runs) == known
