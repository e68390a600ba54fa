"""The worked examples of docs/strategies.md agree with the code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from policies.allocation import Allocation, StepDemand, StepHistory, allocate, reallocate
from policies.settings import Settings

TEXT = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
SETTINGS = Settings.from_values()
STEPS = (
    StepDemand("read", "extract"),
    StepDemand("draft", "generate", "high"),
    StepDemand("check", "validate", "critical"),
    StepDemand("post", "send", "low"),
)


def plan(steps: Sequence[StepDemand], strategy: str, limit: int = 20_000) -> Allocation:
    return allocate(steps, strategy=strategy, pool_limit_tokens=limit, settings=SETTINGS)


def is_documented(step: str, *cells: object) -> bool:
    shown = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
    return f"| {step} | {' | '.join(shown)} |\n" in TEXT


def step_tokens(allocation: Allocation, step: str) -> int:
    step_allocation = allocation.of(step)
    assert step_allocation is not None
    return step_allocation.tokens


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.id)
def test_documented_shares_of_equal_proportional_and_priority_are_computed(step: StepDemand) -> None:
    shares = [
        f"{step_tokens(plan(STEPS, strategy), step.id):,} / {step_tokens(plan(STEPS, strategy, 4000), step.id):,}"
        for strategy in ("equal", "proportional", "priority")
    ]
    demand = step_tokens(plan([step], "equal"), step.id)
    assert is_documented(step.id, step.intent, step.priority, demand, *shares)


def test_documented_shares_of_adaptive_are_computed() -> None:
    known = {"read": StepHistory(30, 2400), "draft": StepHistory(30, 1500), "check": StepHistory(12, 600, "intent")}
    steps = [StepDemand(step.id, step.intent, step.priority, history=known.get(step.id)) for step in STEPS]
    assert plan(STEPS, "adaptive").pool_tokens == 6000
    assert plan(steps, "adaptive").pool_tokens == 7400
    histories = {
        "read": "2,400 over 30",
        "draft": "1,500 over 30",
        "check": "600 over 12 of its intent and model",
        "post": "unknown",
    }
    for step, history in histories.items():
        shares = [step_tokens(plan(steps, "adaptive", limit), step) for limit in (20_000, 4000)]
        assert is_documented(step, history, *shares)


def test_documented_shares_with_a_step_cap_are_computed() -> None:
    steps = [StepDemand("a", "generate", "critical", cap_tokens=1000), *(StepDemand(name, "generate") for name in "bc")]
    allocation = plan(steps, "priority", 6000)
    for step in steps:
        assert is_documented(step.id, step.cap_tokens or 4000, step_tokens(allocation, step.id))
    assert all(f"    {step_allocation.reason}\n" in TEXT for step_allocation in allocation.allocations)


def test_documented_reallocation_during_a_run_is_computed() -> None:
    planned = plan(STEPS, "proportional", 4000)
    reallocated = [
        reallocate(planned, completed, STEPS, pool_limit_tokens=4000, settings=SETTINGS)
        for completed in ({"read": 300}, {"read": 300, "draft": 2400})
    ]
    for step in STEPS:
        assert is_documented(step.id, *(step_tokens(allocation, step.id) for allocation in (planned, *reallocated)))
