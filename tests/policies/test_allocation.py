"""Plans: the four strategies, their properties for any steps, and reallocation during a run."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.allocation import (
    PRIORITY_WEIGHTS,
    Allocation,
    Overage,
    StepAllocation,
    StepDemand,
    StepHistory,
    ais_multiplier,
    allocate,
    allocate_next,
    demand_tokens,
    hard_limit,
    overage_of,
    raised_for_first_call,
    reallocate,
)
from policies.errors import IntentClassificationError
from policies.intents import Intent
from policies.settings import ALLOCATION_STRATEGIES, Settings

DEFAULT = Settings.from_values()


def settings(**values: Any) -> Settings:
    return Settings.from_values({f"orchestration_{name}": value for name, value in values.items()})


def tokens_of(plan: Allocation) -> list[int]:
    return [allocation.tokens for allocation in plan.allocations]


# --- demand


@pytest.mark.parametrize(("ais", "multiplier"), [(0, 1.0), (2, 1.1), (5, 1.25), (7.3, 1.365), (10, 1.5)])
def test_ais_multiplier_grows_from_1_to_1_5(ais: float, multiplier: float) -> None:
    assert ais_multiplier(ais) == multiplier


@pytest.mark.parametrize("ais", [-0.1, 10.1, float("nan"), float("inf")])
def test_ais_outside_0_to_10_is_refused(ais: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 10"):
        ais_multiplier(ais)


@pytest.mark.parametrize(
    ("intent", "ais", "tokens"),
    [
        ("extract", 0, 800),
        ("generate", 0, 2500),
        ("conditional", 5, 375),
        ("summarize", 10, 2250),
        ("generate", 10, 3750),
        ("filter", 7.3, 819),
        ("conditional", 0.1, 302),  # 301.5 is rounded half up
    ],
)
def test_demand_is_baseline_times_multiplier(intent: str, ais: float, tokens: int) -> None:
    assert demand_tokens(intent, DEFAULT, ais) == tokens


def test_demand_is_limited_by_max_tokens_per_step() -> None:
    assert demand_tokens("generate", settings(max_tokens_per_step=2000), 5) == 2000


def test_unknown_intent_has_no_demand() -> None:
    with pytest.raises(IntentClassificationError, match="the ten are"):
        demand_tokens("ponder", DEFAULT)


# --- overage


@pytest.mark.parametrize(
    ("tokens", "threshold", "allowed", "limit"),
    [
        (2500, 1.2, True, 3000),
        (5, 1.2, True, 6),  # 5 × 1.2 must not be rounded by binary floating point
        (7, 1.2, True, 8),
        (1000, 1.0, True, 1000),
        (1000, 1.2, False, 1000),
        (0, 1.2, True, 0),
    ],
)
def test_hard_limit_is_the_allocation_times_the_threshold_rounded_down(
    tokens: int, threshold: float, allowed: bool, limit: int
) -> None:
    configured = settings(budget_overage_threshold=threshold, budget_overage_allowed=allowed)
    assert hard_limit(tokens, configured) == limit


@pytest.mark.parametrize(
    ("used", "standing"),
    [
        (0, Overage.WITHIN),
        (1000, Overage.WITHIN),
        (1001, Overage.OVER_SOFT),
        (1199, Overage.OVER_SOFT),
        (1200, Overage.EXHAUSTED),
        (1300, Overage.EXHAUSTED),
    ],
)
def test_overage_is_flagged_above_the_soft_limit_and_exhausted_at_the_hard_limit(used: int, standing: Overage) -> None:
    assert overage_of(used, 1000, 1200) is standing


def test_step_with_an_allocation_of_0_is_exhausted_from_the_start() -> None:
    assert overage_of(0, 0, 0) is Overage.EXHAUSTED


def test_missing_soft_or_hard_limit_is_never_exceeded() -> None:
    assert overage_of(10**9, None, None) is Overage.WITHIN
    assert overage_of(1200, None, 1200) is Overage.EXHAUSTED
    assert overage_of(1200, 1000, None) is Overage.OVER_SOFT


# --- strategies

THREE = (StepDemand("read", "extract"), StepDemand("draft", "generate"), StepDemand("route", "conditional"))


@pytest.mark.parametrize(
    ("strategy", "limit", "expected"),
    [
        ("proportional", None, [800, 2500, 300]),  # everything fits: each gets its demand
        ("proportional", 1800, [400, 1250, 150]),
        ("proportional", 1000, [222, 695, 83]),
        ("equal", None, [1200, 1200, 1200]),
        ("equal", 1000, [333, 334, 333]),  # equal remainders go by id: draft, read, route
        ("priority", None, [800, 2500, 300]),  # all normal: the same as proportional
        ("adaptive", None, [800, 2500, 300]),  # nothing is known yet: proportional
        ("proportional", 0, [0, 0, 0]),
    ],
)
def test_strategy_divides_the_pool_among_three_steps(strategy: str, limit: int | None, expected: list[int]) -> None:
    plan = allocate(THREE, strategy=strategy, pool_limit_tokens=limit, settings=DEFAULT, ais=0)
    assert tokens_of(plan) == expected
    assert plan.pool_tokens == sum(expected)


def test_plan_returns_the_allocation_of_a_step() -> None:
    plan = allocate(THREE, strategy="equal", settings=DEFAULT)
    assert plan.of("draft") == plan.allocations[1]
    assert plan.of("nothing") is None


def test_pool_limit_defaults_to_the_setting_and_the_pool_stops_at_the_demand() -> None:
    steps = [StepDemand(f"part-{number}", "generate") for number in range(20)]
    assert allocate(steps, strategy="equal", settings=DEFAULT).pool_tokens == 20_000
    assert allocate(steps, strategy="equal", pool_limit_tokens=50_000, settings=DEFAULT).pool_tokens == 50_000
    assert allocate(steps, strategy="equal", pool_limit_tokens=99_000, settings=DEFAULT).pool_tokens == 20 * 3125


def test_priority_strategy_gives_critical_four_times_as_much_as_low() -> None:
    steps = [StepDemand(priority, "extract", priority) for priority in PRIORITY_WEIGHTS]
    plan = allocate(steps, strategy="priority", settings=DEFAULT, ais=0)
    assert tokens_of(plan) == [320, 640, 960, 1280]


def test_tokens_freed_by_a_step_cap_go_to_the_other_steps() -> None:
    steps = [
        StepDemand("a", "generate", "critical", cap_tokens=1000),
        StepDemand("b", "generate"),
        StepDemand("c", "generate"),
    ]
    plan = allocate(steps, strategy="priority", pool_limit_tokens=6000, settings=DEFAULT)
    assert tokens_of(plan) == [1000, 2500, 2500]
    assert plan.allocations[0].reason == (
        "priority: needs 3,125 (generate 2,500 × 1.25), capped at 1,000, priority critical"
    )
    assert plan.allocations[1].reason.endswith("priority normal; gets 2,500")


def test_no_step_gets_more_than_max_tokens_per_step() -> None:
    steps = [StepDemand("a", "generate", "critical"), StepDemand("b", "generate", "low", demand_tokens=99_999)]
    plan = allocate(steps, strategy="priority", settings=DEFAULT, ais=10)
    assert tokens_of(plan) == [4000, 3750]


def known(p95: int, samples: int = 10) -> StepHistory:
    return StepHistory(samples, p95)


def test_adaptive_strategy_weighs_steps_by_their_p95() -> None:
    steps = [StepDemand("a", "extract", history=known(200)), StepDemand("b", "extract", history=known(600))]
    plan = allocate(steps, strategy="adaptive", settings=DEFAULT, ais=0)
    assert tokens_of(plan) == [400, 1200]
    assert "p95 600 over 10 past runs" in plan.allocations[1].reason


def test_adaptive_pool_grows_for_a_step_that_uses_more_than_its_baseline() -> None:
    steps = [StepDemand("a", "extract", history=known(3000)), StepDemand("b", "extract", history=known(800))]
    plan = allocate(steps, strategy="adaptive", settings=DEFAULT, ais=0)
    assert plan.pool_tokens == 3800
    assert tokens_of(plan) == [3000, 800]


@pytest.mark.parametrize(
    ("known_steps", "samples", "strategy"),
    [
        (0, 10, "proportional"),
        (1, 10, "proportional"),
        (2, 9, "proportional"),
        (2, 10, "adaptive"),
        (4, 10, "adaptive"),
    ],
)
def test_adaptive_strategy_needs_ten_past_runs_of_half_of_the_steps(
    known_steps: int, samples: int, strategy: str
) -> None:
    steps = [
        StepDemand(str(number), "extract", history=known(400, samples) if number < known_steps else None)
        for number in range(4)
    ]
    plan = allocate(steps, strategy="adaptive", settings=DEFAULT, ais=0)
    assert plan.strategy == "adaptive"
    assert plan.allocations[0].reason.startswith(
        "adaptive" if strategy == "adaptive" else "too few past runs for adaptive, so proportional"
    )


@pytest.mark.parametrize(
    ("steps", "strategy", "limit", "message"),
    [
        ([StepDemand("a", "extract")], "fair", None, "'fair' is not a strategy"),
        ([StepDemand("a", "extract", "urgent")], "priority", None, "'urgent' is not a priority"),
        ([StepDemand("a", "extract"), StepDemand("a", "send")], "equal", None, "two steps have the same id"),
        ([StepDemand("a", "extract", demand_tokens=-1)], "equal", None, "negative"),
        ([StepDemand("a", "extract", cap_tokens=-1)], "equal", None, "negative"),
        ([StepDemand("a", "extract")], "equal", -1, "negative"),
        ([StepDemand("a", "ponder")], "equal", None, "not an intent"),
    ],
)
def test_invalid_allocation_arguments_are_refused(
    steps: list[StepDemand], strategy: str, limit: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(steps, strategy=strategy, pool_limit_tokens=limit, settings=DEFAULT)


def test_run_without_steps_has_an_empty_plan() -> None:
    assert allocate([], strategy="adaptive", settings=DEFAULT) == Allocation("adaptive", 0, ())


# --- properties

HISTORIES = st.none() | st.builds(StepHistory, st.integers(0, 40), st.integers(0, 30_000))
STEPS = st.lists(
    st.builds(
        StepDemand,
        st.text("abcdef", min_size=1, max_size=6),
        st.sampled_from([str(intent) for intent in Intent]),
        st.sampled_from(list(PRIORITY_WEIGHTS)),
        st.none() | st.integers(0, 20_000),
        HISTORIES,
        st.none() | st.integers(0, 20_000),
    ),
    max_size=9,
    unique_by=lambda step: step.id,
)
STRATEGY = st.sampled_from(ALLOCATION_STRATEGIES)
LIMIT = st.none() | st.integers(0, 60_000)
AIS = st.floats(0, 10)


@given(STEPS, STRATEGY, LIMIT, AIS)
def test_allocations_sum_to_the_pool_and_keep_every_bound(
    steps: list[StepDemand], strategy: str, limit: int | None, ais: float
) -> None:
    plan = allocate(steps, strategy=strategy, pool_limit_tokens=limit, settings=DEFAULT, ais=ais)
    assert sum(tokens_of(plan)) == plan.pool_tokens <= (20_000 if limit is None else limit)
    for step, allocation in zip(steps, plan.allocations, strict=True):
        assert allocation.step == step.id
        assert 0 <= allocation.tokens <= min(4000, 4000 if step.cap_tokens is None else step.cap_tokens)
        assert allocation.tokens <= allocation.hard_limit_tokens <= allocation.tokens * 1.2 + 1e-6
        assert allocation.reason


@given(STEPS, STRATEGY, LIMIT, AIS, st.randoms(use_true_random=False))
def test_order_of_steps_changes_no_allocation(
    steps: list[StepDemand], strategy: str, limit: int | None, ais: float, chance: Any
) -> None:
    shuffled = [*steps]
    chance.shuffle(shuffled)
    plan = allocate(steps, strategy=strategy, pool_limit_tokens=limit, settings=DEFAULT, ais=ais)
    other = allocate(shuffled, strategy=strategy, pool_limit_tokens=limit, settings=DEFAULT, ais=ais)
    assert sorted(plan.allocations, key=lambda allocation: allocation.step) == sorted(
        other.allocations, key=lambda allocation: allocation.step
    )


@given(STEPS.filter(bool), LIMIT)
def test_higher_priority_never_lowers_the_allocation(steps: list[StepDemand], limit: int | None) -> None:
    first = steps[0]
    shares = [
        tokens_of(
            allocate(
                [StepDemand(first.id, first.intent, priority, first.demand_tokens, None, first.cap_tokens), *steps[1:]],
                strategy="priority",
                pool_limit_tokens=limit,
                settings=DEFAULT,
            )
        )[0]
        for priority in PRIORITY_WEIGHTS
    ]
    assert shares == sorted(shares)


@given(STEPS, STRATEGY, st.integers(0, 30_000), AIS)
def test_larger_pool_never_lowers_an_allocation(steps: list[StepDemand], strategy: str, limit: int, ais: float) -> None:
    plans = [
        allocate(steps, strategy=strategy, pool_limit_tokens=limit + more, settings=DEFAULT, ais=ais) for more in (0, 1)
    ]
    assert all(after >= before for before, after in zip(*map(tokens_of, plans), strict=True))


# --- unplanned steps


@pytest.mark.parametrize(("left", "tokens"), [(20_000, 2500), (2500, 2500), (700, 700), (0, 0), (-5, 0)])
def test_unplanned_step_gets_its_demand_up_to_what_the_run_has_left(left: int, tokens: int) -> None:
    allocation = allocate_next(StepDemand("draft", "generate"), run_remaining_tokens=left, settings=DEFAULT, ais=0)
    assert (allocation.tokens, allocation.hard_limit_tokens) == (tokens, hard_limit(tokens, DEFAULT))
    assert allocation.reason.startswith("not planned: needs 2,500 (generate 2,500 × 1)")


def test_unplanned_step_uses_its_history_only_with_the_adaptive_strategy() -> None:
    step = StepDemand("draft", "extract", history=known(1900))
    adaptive = settings(adaptive_budget_enabled=True)
    assert allocate_next(step, run_remaining_tokens=9000, settings=adaptive, ais=0).tokens == 1900
    assert allocate_next(step, run_remaining_tokens=9000, settings=DEFAULT, ais=0).tokens == 800


# --- a first call that does not fit into the share of its step


@pytest.mark.parametrize(
    ("needed", "useful", "cap", "raised_to"),
    [
        pytest.param(300, 340, None, 340, id="room-for-a-useful-answer"),
        pytest.param(900, 1000, None, 960, id="at-most-the-hard-limit-of-the-demand"),
        pytest.param(961, 1000, None, None, id="too-large-for-a-run-with-room"),
        pytest.param(300, 600, 500, 500, id="at-most-the-budget-of-the-step"),
        pytest.param(501, 600, 500, None, id="too-large-for-the-budget-of-the-step"),
    ],
)
def test_first_call_may_exceed_a_share_that_a_tight_run_scaled_down(
    needed: int, useful: int, cap: int | None, raised_to: int | None
) -> None:
    step = StepDemand("read", "extract", cap_tokens=cap)
    raised = raise_share(StepAllocation("read", "extract", 100, 120, "tight"), step, needed, useful)
    assert (raised and raised.hard_limit_tokens) == raised_to
    assert raised is None or (raised.tokens, raised.reason) == (100, f"tight; at most {raised_to} for its first call")


def test_first_call_may_not_exceed_a_share_of_the_whole_demand() -> None:
    step = StepDemand("read", "extract")
    share = allocate([step], strategy="equal", settings=DEFAULT, ais=0).allocations[0]
    assert raise_share(share, step, share.hard_limit_tokens + 1, 2000) is None


def test_first_call_may_not_exceed_its_share_without_overage() -> None:
    share, without = StepAllocation("read", "extract", 100, 100, "tight"), settings(budget_overage_allowed=False)
    assert raise_share(share, StepDemand("read", "extract"), 300, 300, without) is None


def raise_share(
    share: StepAllocation, step: StepDemand, needed: int, useful: int, values: Settings = DEFAULT
) -> StepAllocation | None:
    return raised_for_first_call(
        share, step, needed_tokens=needed, answer_tokens=useful - needed, settings=values, ais=0
    )


# --- reallocation during a run


def plan_of_three(limit: int | None = None) -> Allocation:
    return allocate(THREE, strategy="proportional", pool_limit_tokens=limit, settings=DEFAULT, ais=0)


def after(completed: dict[str, int], limit: int | None = None) -> Allocation:
    return reallocate(plan_of_three(limit), completed, THREE, pool_limit_tokens=limit, settings=DEFAULT, ais=0)


def test_tokens_left_by_a_completed_step_go_to_the_open_steps() -> None:
    plan = after({"read": 240}, limit=1800)  # planned: 400, 1250, 150
    assert tokens_of(plan) == [240, 1250 + 143, 150 + 17]
    assert plan.allocations[0].reason == "completed with 240 of 400"
    assert plan.allocations[1].reason.endswith("+143 from completed steps")
    assert plan.allocations[1].hard_limit_tokens == hard_limit(1393, DEFAULT)


def test_reallocation_to_an_open_step_stops_at_its_cap() -> None:
    steps = [StepDemand("a", "generate"), StepDemand("b", "extract", cap_tokens=900)]
    plan = allocate(steps, strategy="proportional", settings=DEFAULT, ais=0)
    moved = reallocate(plan, {"a": 100}, steps, settings=DEFAULT, ais=0)
    assert tokens_of(moved) == [100, 900]


def test_overage_is_taken_from_unallocated_tokens_first() -> None:
    assert tokens_of(after({"draft": 3000}, limit=20_000)) == [800, 3000, 300]
    assert tokens_of(after({"draft": 1500}, limit=1800)) == [218, 1500, 82]


def test_reallocation_without_completed_steps_changes_nothing() -> None:
    assert after({}) == plan_of_three()


def test_unplanned_completed_step_is_charged_to_the_run() -> None:
    assert tokens_of(after({"surprise": 1000}, limit=20_000)) == [800, 2500, 300]
    assert sum(tokens_of(after({"surprise": 1000}, limit=3600))) == 2600


@given(STEPS, STRATEGY, LIMIT, st.data())
def test_reallocation_never_exceeds_the_budget_of_the_run(
    steps: list[StepDemand], strategy: str, limit: int | None, data: st.DataObject
) -> None:
    plan = allocate(steps, strategy=strategy, pool_limit_tokens=limit, settings=DEFAULT)
    room = 20_000 if limit is None else limit
    completed: dict[str, int] = {}
    for allocation in data.draw(st.permutations(plan.allocations)):
        used = data.draw(st.integers(0, allocation.hard_limit_tokens))
        if sum(completed.values()) + used > room or data.draw(st.booleans()):
            continue
        completed[allocation.step] = used
    moved = reallocate(plan, completed, steps, pool_limit_tokens=limit, settings=DEFAULT)
    assert sum(tokens_of(moved)) <= room
    left_over = sum(
        plan_tokens.tokens - completed[plan_tokens.step]
        for plan_tokens in plan.allocations
        if plan_tokens.step in completed
    )
    for before, now in zip(plan.allocations, moved.allocations, strict=True):
        assert now.tokens >= 0
        assert before.step in completed or left_over < 0 or now.tokens >= before.tokens


def test_order_of_completion_changes_no_allocation() -> None:
    used = {"read": 100, "route": 900}
    outcomes = {tuple(tokens_of(after(dict(order), limit=1800))) for order in itertools.permutations(used.items())}
    assert len(outcomes) == 1
