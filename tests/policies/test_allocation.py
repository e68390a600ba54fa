"""Sharing a run's tokens: worked figures for every strategy, and the properties that hold for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.allocation import (
    PRIORITY_WEIGHT,
    Allocation,
    StepDemand,
    StepHistory,
    UsageSample,
    ais_multiplier,
    allocate,
    allocate_next,
    decayed_p95,
    demand_tokens,
    flattened,
    hard_limit,
    history_of,
    learned_steps,
    reallocate,
    share,
)
from policies.intents import Intent
from policies.settings import ALLOCATION_STRATEGIES, Settings

SETTINGS = Settings.from_values()
DAY_MS = 24 * 3_600_000
MAIL = [StepDemand("read", "extract"), StepDemand("write", "generate"), StepDemand("route", "conditional")]


def tokens_of(allocation: Allocation) -> dict[str, int]:
    return {one.step: one.tokens for one in allocation.allocations}


def plan(
    steps: list[StepDemand], strategy: str = "proportional", limit: int | None = None, ais: float = 0.0
) -> Allocation:
    return allocate(steps, strategy=strategy, pool_limit_tokens=limit, settings=SETTINGS, ais=ais)


@pytest.mark.parametrize(
    ("ais", "multiplier"), [(0, 1.0), (2, 1.1), (5, 1.25), (10, 1.5), (-3, 1.0), (11, 1.5), (7.3, 1.365)]
)
def test_intensity_raises_demand_by_up_to_a_half(ais: float, multiplier: float) -> None:
    assert ais_multiplier(ais) == multiplier
    assert demand_tokens("generate", SETTINGS, ais) == int(2500 * multiplier + 0.5)


@pytest.mark.parametrize(
    ("strategy", "limit", "expected"),
    [
        ("proportional", None, {"read": 800, "write": 2500, "route": 300}),
        ("proportional", 20_000, {"read": 800, "write": 2500, "route": 300}),
        ("proportional", 1800, {"read": 400, "write": 1250, "route": 150}),
        ("proportional", 100, {"read": 22, "write": 70, "route": 8}),
        ("proportional", 1, {"read": 0, "write": 1, "route": 0}),
        ("proportional", 0, {"read": 0, "write": 0, "route": 0}),
        ("equal", None, {"read": 1200, "write": 1200, "route": 1200}),
        ("equal", 100, {"read": 34, "route": 33, "write": 33}),
        ("adaptive", 1800, {"read": 400, "write": 1250, "route": 150}),
        ("priority", 1800, {"read": 400, "write": 1250, "route": 150}),
    ],
)
def test_shares_by_strategy(strategy: str, limit: int | None, expected: dict[str, int]) -> None:
    allocation = plan(MAIL, strategy, limit)
    assert tokens_of(allocation) == expected
    assert allocation.strategy == strategy
    assert allocation.pool_tokens == sum(expected.values())
    assert all(one.reason.endswith(".") for one in allocation.allocations)


def test_priority_counts_half_to_double() -> None:
    steps = [StepDemand(priority, "extract", priority) for priority in ("low", "normal", "high", "critical")]
    assert tokens_of(plan(steps, "priority", 1000)) == {"low": 100, "normal": 200, "high": 300, "critical": 400}


def test_what_a_cap_frees_goes_to_the_others() -> None:
    steps = [StepDemand("big", "generate", demand_tokens=12_000), *(StepDemand(n, "generate") for n in "ab")]
    allocation = plan(steps, limit=9000)
    assert tokens_of(allocation) == {"big": 4000, "a": 2500, "b": 2500}
    assert "cut to the step cap" in allocation.allocations[0].reason


def test_a_step_has_the_tighter_of_its_own_cap_and_the_setting() -> None:
    steps = [StepDemand("a", "generate", cap_tokens=100), StepDemand("b", "generate", cap_tokens=9000)]
    assert tokens_of(plan(steps)) == {"a": 100, "b": 4000}


@pytest.mark.parametrize(
    ("allowed", "threshold", "tokens", "limit"),
    [
        (True, 1.2, 1000, 1200),
        (True, 1.15, 100, 115),
        (True, 1.1, 10, 11),
        (True, 1.2, 4, 4),
        (True, 1.0, 1000, 1000),
        (False, 1.2, 1000, 1000),
        (True, 1.2, 0, 0),
    ],
)
def test_hard_limit(allowed: bool, threshold: float, tokens: int, limit: int) -> None:
    settings = replace(SETTINGS, budget_overage_allowed=allowed, budget_overage_threshold=threshold)
    assert hard_limit(tokens, settings) == limit


# --- adaptive ---

USED = StepHistory(samples=12, p95_tokens=3000)


def test_adaptive_plans_by_what_was_used() -> None:
    steps = [
        StepDemand("read", "extract", history=USED),
        StepDemand("write", "generate", history=StepHistory(10, 1000)),
        StepDemand("route", "conditional"),
    ]
    allocation = plan(steps, "adaptive")
    assert tokens_of(allocation) == {"read": 3000, "write": 1000, "route": 300}
    assert "its own last 12 runs" in allocation.allocations[0].reason
    assert tokens_of(plan(steps, "adaptive", 2150)) == {"read": 1500, "write": 500, "route": 150}


def test_a_new_step_is_planned_by_its_intent() -> None:
    few = StepHistory(9, 50_000)
    allocation = plan([StepDemand("read", "extract", history=few, intent_history=USED)], "adaptive")
    assert tokens_of(allocation) == {"read": 3000}
    assert "extract's last 12 runs" in allocation.allocations[0].reason


@pytest.mark.parametrize(("known", "adapts"), [(0, False), (1, False), (2, True), (4, True)])
def test_below_half_coverage_the_plan_is_proportional(known: int, adapts: bool) -> None:
    steps = [StepDemand(str(n), "extract", history=USED if n < known else None) for n in range(4)]
    allocation = plan(steps, "adaptive")
    assert (tokens_of(allocation)["0"] == 3000) is adapts
    assert allocation.allocations[0].reason.startswith("too few past runs") is not adapts
    assert allocation.strategy == "adaptive"


@pytest.mark.parametrize(("p95", "expected"), [(3, 100), (50_000, 4000)])
def test_what_was_learned_stays_within_bounds(p95: int, expected: int) -> None:
    assert tokens_of(plan([StepDemand("a", "extract", history=StepHistory(20, p95))], "adaptive")) == {"a": expected}


def test_a_declared_demand_beats_history() -> None:
    step = StepDemand("a", "extract", demand_tokens=123, history=USED)
    assert tokens_of(plan([step], "adaptive")) == {"a": 123}


def test_percentile_of_recent_runs() -> None:
    assert decayed_p95([]) is None
    assert history_of([]) is None
    assert decayed_p95([UsageSample(7)]) == 7
    assert decayed_p95([UsageSample(n) for n in range(1, 21)]) == 19
    assert history_of([UsageSample(n) for n in range(20)]) == StepHistory(20, 18)
    old_and_dear = [UsageSample(9000, 140 * DAY_MS)] * 10
    assert decayed_p95([*old_and_dear, *[UsageSample(100)] * 10]) == 100
    assert decayed_p95(old_and_dear) == 9000
    assert decayed_p95([UsageSample(5, 10**18), UsageSample(6, 10**18)]) == 6


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.builds(UsageSample, st.integers(0, 10**6), st.integers(0, 10**12)), min_size=1, max_size=30),
)
def test_the_percentile_is_one_of_the_samples_in_any_order(samples: list[UsageSample]) -> None:
    found = decayed_p95(samples)
    assert found in {sample.tokens for sample in samples}
    assert decayed_p95(sorted(samples, key=lambda sample: (sample.age_ms, sample.tokens))) == found


# --- undeclared workflows ---


@pytest.mark.parametrize(
    ("left", "tokens", "words"),
    [(20_000, 3125, "3125 tokens."), (1000, 1000, "cut to 1000"), (0, 0, "cut to 0"), (-5, 0, "cut to 0")],
)
def test_an_unforeseen_step_gets_its_demand_or_what_is_left(left: int, tokens: int, words: str) -> None:
    allocation = allocate_next(StepDemand("draft", "generate"), run_remaining_tokens=left, settings=SETTINGS)
    assert allocation.tokens == tokens
    assert allocation.hard_limit_tokens == tokens * 6 // 5
    assert words in allocation.reason


def test_an_unforeseen_step_is_cut_to_its_cap_and_learns_where_that_is_on() -> None:
    step = StepDemand("draft", "generate", history=StepHistory(30, 9000))
    plain = allocate_next(step, run_remaining_tokens=20_000, settings=SETTINGS)
    adaptive = replace(SETTINGS, adaptive_budget_enabled=True)
    learned = allocate_next(step, run_remaining_tokens=20_000, settings=adaptive)
    assert (plain.tokens, learned.tokens) == (3125, 4000)
    assert "step cap of 4000" in learned.reason


def test_three_runs_make_the_steps_known() -> None:
    read, write = StepDemand("read", "extract"), StepDemand("write", "generate")
    newer, rare = StepDemand("write", "summarize"), StepDemand("rare", "send")
    assert learned_steps([[read], [read]]) is None
    assert learned_steps([[read, write], [read, rare], [read, newer]]) == (read, newer)
    assert learned_steps([[rare], [rare], [read], [read], [read]]) == (read,)


def test_nested_steps_are_flattened_without_their_containers() -> None:
    deep: dict[str, object] = {"id": "leaf"}
    for depth in range(5000):
        deep = {"id": f"d{depth}", "steps": [deep]}
    nested: list[dict[str, object]] = [
        {"id": "a"},
        {"id": "loop", "steps": [{"id": "b"}, {"id": "branch", "prompt": "?", "steps": [deep]}]},
    ]
    assert [step["id"] for step in flattened(nested)] == ["a", "b", "branch", "leaf"]


# --- completion ---


def test_what_a_step_left_goes_to_those_to_come() -> None:
    before = plan(MAIL, limit=1800)
    after = reallocate(before, {"read": 100}, SETTINGS)
    assert tokens_of(after) == {"read": 100, "write": 1518, "route": 182}
    assert after.of("read") is not None
    assert [one.completed for one in after.allocations] == [True, False, False]
    assert "+268 tokens from completed steps" in after.allocations[1].reason
    assert reallocate(after, {"read": 100}, SETTINGS) == after


def test_what_a_step_overdrew_comes_from_those_to_come() -> None:
    after = reallocate(plan(MAIL, limit=1800), {"read": 470, "unplanned": 30}, SETTINGS)
    assert sum(tokens_of(after).values()) == 1800 - 30
    assert tokens_of(after)["write"] < 1250
    assert "overdrawn" in after.allocations[1].reason
    assert tokens_of(reallocate(after, {"read": 99_999}, SETTINGS))["write"] == 0


# --- properties ---

caps_and_weights = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.tuples(st.integers(0, 10_000), st.integers(0, 5000)),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 50_000), caps_and_weights)
def test_shares_are_exact_capped_and_never_negative(pool: int, parts: dict[str, tuple[int, int]]) -> None:
    weights = {name: weight for name, (weight, _) in parts.items()}
    caps = {name: cap for name, (_, cap) in parts.items()}
    shares = share(pool, weights, caps)
    served = [name for name in weights if weights[name]] or list(weights)
    assert sum(shares.values()) == min(pool, sum(caps[name] for name in served))
    assert all(0 <= shares[name] <= caps[name] for name in weights)
    assert share(pool, dict(reversed(weights.items())), caps) == shares


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 50_000), caps_and_weights, st.data())
def test_more_weight_never_means_fewer_tokens(
    pool: int, parts: dict[str, tuple[int, int]], data: st.DataObject
) -> None:
    weights = {name: weight for name, (weight, _) in parts.items()}
    caps = {name: cap for name, (_, cap) in parts.items()}
    shares = share(pool, weights, caps)
    name = data.draw(st.sampled_from(sorted(weights)))
    if any(weights.values()):
        raised = {**weights, name: weights[name] + data.draw(st.integers(1, 5000))}
        assert share(pool, raised, caps)[name] >= shares[name]
    for other in weights:
        if weights[other] > weights[name] > 0 and caps[other] >= caps[name]:
            assert shares[other] >= shares[name]


step_lists = st.lists(
    st.builds(
        StepDemand,
        id=st.text("abcdef", min_size=1, max_size=4),
        intent=st.sampled_from(list(Intent)),
        priority=st.sampled_from(list(PRIORITY_WEIGHT)),
        demand_tokens=st.none() | st.integers(0, 9000),
        history=st.none() | st.builds(StepHistory, st.integers(0, 30), st.integers(0, 200_000)),
        cap_tokens=st.none() | st.integers(0, 6000),
    ),
    max_size=8,
    unique_by=lambda step: step.id,
)


@settings(deadline=None)  # the machine may be busy
@given(step_lists, st.sampled_from(ALLOCATION_STRATEGIES), st.integers(0, 30_000), st.floats(0, 10))
def test_a_plan_is_exact_whatever_the_order(steps: list[StepDemand], strategy: str, limit: int, ais: float) -> None:
    allocation = plan(steps, strategy, limit, ais)
    shares = tokens_of(allocation)
    caps = sum(one.cap_tokens for one in allocation.allocations)
    assert list(shares) == [step.id for step in steps]
    assert sum(shares.values()) <= min(limit, allocation.pool_tokens, caps)
    assert all(0 <= one.tokens <= one.hard_limit_tokens for one in allocation.allocations)
    if all(step.demand_tokens for step in steps if step.demand_tokens is not None):
        assert sum(shares.values()) == min(allocation.pool_tokens, caps)
    assert tokens_of(plan(steps[::-1], strategy, limit, ais)) == shares


@settings(deadline=None)  # the machine may be busy
@given(step_lists, st.integers(0, 30_000), st.data())
def test_completing_steps_never_plans_more_than_the_pool(
    steps: list[StepDemand], limit: int, data: st.DataObject
) -> None:
    allocation = plan(steps, limit=limit)
    done = data.draw(st.sets(st.sampled_from([step.id for step in steps]))) if steps else set()
    used = {name: data.draw(st.integers(0, tokens_of(allocation)[name])) for name in sorted(done)}
    after = reallocate(allocation, used, SETTINGS)
    assert sum(tokens_of(after).values()) <= allocation.pool_tokens
    for one in after.allocations:
        planned = tokens_of(allocation)[one.step]
        assert one.tokens == used[one.step] if one.step in used else one.tokens >= planned
    assert reallocate(after, used, SETTINGS) == after


@pytest.mark.parametrize(
    ("steps", "strategy", "limit", "words"),
    [
        (MAIL, "greedy", 1, "'greedy' is not a strategy; there are equal, proportional"),
        (MAIL, "equal", -1, "cannot have -1 tokens"),
        ([*MAIL, MAIL[0]], "equal", 1, "Two steps are called 'read'"),
        ([StepDemand("a", "extract", "urgent")], "equal", 1, "'urgent' is not a priority"),
        ([StepDemand("a", "extract", demand_tokens=-1)], "equal", 1, "negative tokens"),
        ([StepDemand("a", "ponder")], "equal", 1, "ponder"),
    ],
)
def test_what_cannot_be_planned(steps: list[StepDemand], strategy: str, limit: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(steps, strategy, limit)


def test_a_run_without_steps_has_an_empty_plan() -> None:
    assert plan([]) == Allocation("proportional", 0, ())
