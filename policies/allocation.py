"""How a run's tokens are shared among its steps: the four strategies, overage, and reallocation during the run.

    demand of a step  =  baseline of its intent × AIS multiplier, at most the step's cap
    pool              =  min(limit of the run, sum of the demands)
    shares            =  pool, divided by the weights of the strategy; no step above its cap

    strategy       weight of a step
    equal          1
    proportional   its demand
    adaptive       its actual use: the p95 of past runs, newer runs counting more
    priority       its demand × 1, 2, 3, 4 for low, normal, high, critical

Demands never exceed caps, so the allocations always sum to the pool exactly. `docs/strategies.md` has worked examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal, Protocol

from policies.intents import parse_intent
from policies.settings import ALLOCATION_STRATEGIES, Settings
from policies.shares import proportional_shares
from policies.values import value_class

NEUTRAL_AIS: Final = 5.0
# Fewer past runs than this are too small a sample to plan by.
SAMPLES_MIN: Final = 10
# If fewer steps than this have a history, most would be weighted by a different measure than the rest.
COVERAGE_MIN: Final = Fraction(1, 2)
PRIORITY_WEIGHTS: Final[Mapping[str, int]] = MappingProxyType({"low": 1, "normal": 2, "high": 3, "critical": 4})
_PERCENTILE: Final = 0.95


class Overage(StrEnum):
    """The state of a step: within its allocation, above it but tolerated, or with nothing left."""

    WITHIN = "within"
    OVER_SOFT = "over_soft"
    EXHAUSTED = "exhausted"


def overage_of(used_tokens: int, soft_tokens: int | None, hard_tokens: int | None) -> Overage:
    """The state of a step that has used or holds so many tokens. None: the step has no such limit."""
    if hard_tokens is not None and used_tokens >= hard_tokens:
        return Overage.EXHAUSTED
    return Overage.WITHIN if soft_tokens is None or used_tokens <= soft_tokens else Overage.OVER_SOFT


class Sample(Protocol):
    """The tokens that a step used in one finished run. `weight` > 0 decays with age (the store halves it every week)."""

    @property
    def tokens(self) -> int: ...

    @property
    def weight(self) -> float: ...


@value_class
class StepHistory:
    """What past runs say about a step. `of` tells whether they are runs of the step itself, or of its intent and model."""

    samples: int
    p95_tokens: int
    of: Literal["step", "intent"] = "step"

    @property
    def is_enough(self) -> bool:
        return self.samples >= SAMPLES_MIN


@value_class
class StepDemand:
    """A step to be planned. `demand_tokens` None means the intent's, `cap_tokens` None only the settings' cap."""

    id: str
    intent: str
    priority: str = "normal"
    demand_tokens: int | None = None
    history: StepHistory | None = None
    cap_tokens: int | None = None


@value_class
class StepAllocation:
    """`tokens` is the soft limit. Above it a step is flagged; above `hard_limit_tokens` it is refused."""

    step: str
    intent: str
    tokens: int
    hard_limit_tokens: int
    reason: str


@value_class
class Allocation:
    """A plan. The allocations are in the order of the given steps; when first planned, they sum to `pool_tokens`."""

    strategy: str
    pool_tokens: int
    allocations: tuple[StepAllocation, ...]

    def of(self, step: str) -> StepAllocation | None:
        return next((allocation for allocation in self.allocations if allocation.step == step), None)


def ais_multiplier(ais: float) -> float:
    """From 1.0 for a score of 0 to 1.5 for 10: 1 + ais ÷ 20. Raises ValueError outside 0 to 10."""
    return float(_multiplier(ais))


def demand_tokens(intent: str, settings: Settings, ais: float = NEUTRAL_AIS) -> int:
    """The expected tokens of a step of this intent: baseline × multiplier, rounded half up, at most the step's cap.

    Raises IntentClassificationError for an unknown intent, ValueError for a score outside 0 to 10.
    """
    return min(_expected_tokens(intent, settings, ais), settings.max_tokens_per_step)


def hard_limit(tokens: int, settings: Settings) -> int:
    """Allocation × threshold while overage is allowed, rounded down; the allocation itself otherwise."""
    if not settings.budget_overage_allowed:
        return tokens
    threshold = _exact_fraction(settings.budget_overage_threshold)
    return tokens * threshold.numerator // threshold.denominator


def allocate(
    steps: Sequence[StepDemand],
    *,
    strategy: str,
    pool_limit_tokens: int | None = None,
    settings: Settings,
    ais: float = NEUTRAL_AIS,
) -> Allocation:
    """Plan a run. `pool_limit_tokens` None means `max_tokens_per_workflow`. The order of the steps does not affect their shares.

    Raises ValueError for an unknown strategy or priority, duplicate step ids, a negative number or an `ais` outside 0 to 10,
    and its subclass IntentClassificationError for an unknown intent.
    """
    limit = _pool_limit(pool_limit_tokens, settings)
    effective_strategy = _effective_strategy(strategy, steps)
    demands = _weighted_demands(steps, effective_strategy, settings, ais)
    pool = min(limit, sum(weighted_demand.demand for weighted_demand in demands.values()))
    shares = _shares_by_step(pool, demands, {name: weighted_demand.cap for name, weighted_demand in demands.items()})
    note = "" if effective_strategy == strategy else f"too few past runs for {strategy}, so "
    planned = tuple(
        _allocation(step, shares[step.id], settings, note + demands[step.id].reason(shares[step.id])) for step in steps
    )
    return Allocation(strategy, pool, planned)


def allocate_next(
    step: StepDemand, *, run_remaining_tokens: int, settings: Settings, ais: float = NEUTRAL_AIS
) -> StepAllocation:
    """The allocation of a step that is not in the plan: its demand, or what the run has left if that is less. Raises like `allocate`."""
    effective_strategy = "adaptive" if settings.allocation_strategy == "adaptive" else "proportional"
    weighted_demand = _weighted_demand(step, effective_strategy, settings, ais)
    tokens = max(0, min(weighted_demand.demand, run_remaining_tokens))
    remaining_note = f"; the run has {tokens:,} left" if tokens < weighted_demand.demand else ""
    return _allocation(step, tokens, settings, f"not planned: {weighted_demand.explanation}{remaining_note}")


def raised_for_first_call(
    share: StepAllocation,
    step: StepDemand,
    *,
    needed_tokens: int,
    answer_tokens: int,
    settings: Settings,
    ais: float = NEUTRAL_AIS,
) -> StepAllocation | None:
    """The share of a step whose first call does not fit into it; None if the call would not fit in a run with room either.

    A tight run scales shares down, and one that cannot hold a single call is of no use to its step or to any other. So the first
    call may use what it needs at least and `answer_tokens`, with which its answer is of use, but no more than the hard limit that the
    step's demand has in a run with room. What is above the allocation is overage, as always, and the run's own limit applies.
    """
    if not settings.budget_overage_allowed:
        return None
    # Only steps of adaptive plans have a history, so for all others this is the plain demand.
    tokens_max = hard_limit(_weighted_demand(step, "adaptive", settings, ais).demand, settings)
    if step.cap_tokens is not None:
        tokens_max = min(tokens_max, step.cap_tokens)
    if not share.hard_limit_tokens < needed_tokens <= tokens_max:
        return None
    tokens = min(needed_tokens + answer_tokens, tokens_max)
    return replace(share, hard_limit_tokens=tokens, reason=f"{share.reason}; at most {tokens:,} for its first call")


def reallocate(
    plan: Allocation,
    completed: Mapping[str, int],
    steps: Sequence[StepDemand],
    *,
    pool_limit_tokens: int | None = None,
    settings: Settings,
    ais: float = NEUTRAL_AIS,
) -> Allocation:
    """The plan after some steps completed; `completed` has the tokens that each of them actually used.

    Unused tokens go to the open steps by the weights of the strategy, up to their caps; the rest stays with the run. Use
    above the allocations is taken first from what the plan had not allocated, then from the open steps. Pass the first plan
    and all steps completed so far: the order of completion does not affect the result.
    """
    demands = _weighted_demands(steps, _effective_strategy(plan.strategy, steps), settings, ais)
    planned = {allocation.step: allocation.tokens for allocation in plan.allocations}
    open_steps = {
        name: weighted_demand for name, weighted_demand in demands.items() if name not in completed and name in planned
    }
    unused_tokens = sum(planned.get(name, 0) - used for name, used in completed.items())
    if unused_tokens >= 0:
        room = {name: max(0, weighted_demand.cap - planned[name]) for name, weighted_demand in open_steps.items()}
        reallocated = {
            name: planned[name] + extra_tokens
            for name, extra_tokens in _shares_by_step(unused_tokens, open_steps, room).items()
        }
    else:
        remaining_tokens = max(0, _pool_limit(pool_limit_tokens, settings) - sum(completed.values()))
        reallocated = _shares_by_step(remaining_tokens, open_steps, {name: planned[name] for name in open_steps})
    return replace(
        plan,
        allocations=tuple(
            _reallocated(allocation, reallocated, completed.get(allocation.step), settings)
            for allocation in plan.allocations
        ),
    )


def history_of(own_samples: Iterable[Sample], similar_samples: Iterable[Sample] = ()) -> StepHistory | None:
    """The step's own past runs if there are ten, else those of its intent and model; None if there are fewer of these, too."""
    of: Literal["step", "intent"] = "step"
    for samples in (tuple(own_samples), tuple(similar_samples)):
        p95 = decayed_p95(samples)
        if len(samples) >= SAMPLES_MIN and p95 is not None:
            return StepHistory(len(samples), p95, of)
        of = "intent"
    return None


def decayed_p95(samples: Iterable[Sample]) -> int | None:
    """The smallest use, in tokens, that covers 95 % of the samples' weight; None if the total weight is 0."""
    ranked = sorted((sample.tokens, sample.weight) for sample in samples if sample.weight > 0)
    reached, enough = 0.0, _PERCENTILE * sum(weight for _, weight in ranked)
    for tokens, weight in ranked:
        reached += weight
        if reached >= enough:
            return tokens
    return ranked[-1][0] if ranked else None  # the rounded sum of floats may end just below the threshold


@value_class
class _WeightedDemand:
    """What one step asks of the pool, and why (a phrase for the reason)."""

    demand: int
    cap: int
    weight: int
    explanation: str
    strategy: str

    def reason(self, tokens: int) -> str:
        if tokens == self.demand:
            return f"{self.strategy}: {self.explanation}"
        return f"{self.strategy}: {self.explanation}; gets {tokens:,}"


def _weighted_demands(
    steps: Sequence[StepDemand], strategy: str, settings: Settings, ais: float
) -> dict[str, _WeightedDemand]:
    """By id, sorted by id, so that ties between remainders do not depend on the order of the given steps."""
    demands = {
        step.id: _weighted_demand(step, strategy, settings, ais) for step in sorted(steps, key=lambda step: step.id)
    }
    if len(demands) != len(steps):
        raise ValueError("two steps have the same id")
    return demands


def _weighted_demand(step: StepDemand, strategy: str, settings: Settings, ais: float) -> _WeightedDemand:
    if min(step.demand_tokens or 0, step.cap_tokens or 0) < 0:
        raise ValueError(f"step '{step.id}': tokens must not be negative")
    own_cap = settings.max_tokens_per_step if step.cap_tokens is None else step.cap_tokens
    cap = min(own_cap, settings.max_tokens_per_step)
    demand, explanation = _demand(step, settings, ais)
    if demand > cap:
        demand, explanation = cap, f"{explanation}, capped at {cap:,}"
    if strategy == "adaptive" and step.history is not None and step.history.is_enough:
        return _adaptive_demand(step.history, demand, cap, explanation)
    weight = {"equal": 1, "priority": demand * _priority_weight(step)}.get(strategy, demand)
    if strategy == "priority":
        explanation += f", priority {step.priority}"
    return _WeightedDemand(demand, cap, weight, explanation, strategy)


def _demand(step: StepDemand, settings: Settings, ais: float) -> tuple[int, str]:
    if step.demand_tokens is not None:
        return step.demand_tokens, f"asks for {step.demand_tokens:,}"
    intent = parse_intent(step.intent)
    tokens = _expected_tokens(intent, settings, ais)
    return tokens, f"needs {tokens:,} ({intent} {settings.token_budget[intent]:,} × {ais_multiplier(ais):g})"


def _expected_tokens(intent: str, settings: Settings, ais: float) -> int:
    return _scaled_baseline(settings.token_budget[parse_intent(intent)], ais)


@lru_cache(maxsize=1024)
def _scaled_baseline(baseline: int, ais: float) -> int:
    """Cached, because exact arithmetic takes microseconds and a plan of fifty steps needs the same ten products."""
    return int(baseline * _multiplier(ais) + Fraction(1, 2))


def _adaptive_demand(history: StepHistory, demand: int, cap: int, explanation: str) -> _WeightedDemand:
    """A p95 above the demand raises it; otherwise the plan would refuse the use that it has learned."""
    capped_p95_tokens = min(history.p95_tokens, cap)
    whose = "" if history.of == "step" else " of its intent and model"
    explanation_with_history = f"p95 {history.p95_tokens:,} over {history.samples} past runs{whose}; {explanation}"
    return _WeightedDemand(max(demand, capped_p95_tokens), cap, capped_p95_tokens, explanation_with_history, "adaptive")


def _priority_weight(step: StepDemand) -> int:
    try:
        return PRIORITY_WEIGHTS[step.priority]
    except KeyError:
        raise ValueError(f"'{step.priority[:40]}' is not a priority; there are {', '.join(PRIORITY_WEIGHTS)}") from None


def _effective_strategy(strategy: str, steps: Sequence[StepDemand]) -> str:
    """The strategy; `proportional` instead of `adaptive` while fewer than half of the steps have a history."""
    if strategy not in ALLOCATION_STRATEGIES:
        raise ValueError(f"'{strategy[:40]}' is not a strategy; there are {', '.join(ALLOCATION_STRATEGIES)}")
    steps_with_history = sum(step.history is not None and step.history.is_enough for step in steps)
    if strategy == "adaptive" and steps_with_history < COVERAGE_MIN * max(1, len(steps)):
        return "proportional"
    return strategy


def _shares_by_step(total: int, demands: Mapping[str, _WeightedDemand], caps: Mapping[str, int]) -> dict[str, int]:
    shares = proportional_shares(
        total, [weighted_demand.weight for weighted_demand in demands.values()], [caps[name] for name in demands]
    )
    return dict(zip(demands, shares, strict=True))


def _allocation(step: StepDemand, tokens: int, settings: Settings, reason: str) -> StepAllocation:
    return StepAllocation(step.id, parse_intent(step.intent), tokens, hard_limit(tokens, settings), reason)


def _reallocated(
    allocation: StepAllocation, tokens_by_step: Mapping[str, int], used_tokens: int | None, settings: Settings
) -> StepAllocation:
    if used_tokens is not None:
        reason = f"completed with {used_tokens:,} of {allocation.tokens:,}"
        return replace(allocation, tokens=used_tokens, hard_limit_tokens=used_tokens, reason=reason)
    tokens = tokens_by_step.get(allocation.step, allocation.tokens)
    if tokens == allocation.tokens:
        return allocation
    moved = f"{tokens - allocation.tokens:+,} from completed steps"
    return replace(
        allocation,
        tokens=tokens,
        hard_limit_tokens=hard_limit(tokens, settings),
        reason=f"{allocation.reason}; {moved}",
    )


def _pool_limit(pool_limit_tokens: int | None, settings: Settings) -> int:
    if pool_limit_tokens is None:
        return settings.max_tokens_per_workflow
    if pool_limit_tokens < 0:
        raise ValueError("the limit of a run must not be negative")
    return pool_limit_tokens


@lru_cache(maxsize=1024)
def _multiplier(ais: float) -> Fraction:
    if not 0 <= ais <= 10:
        raise ValueError(f"an intensity score is from 0 to 10, not {ais!r}")
    return 1 + _exact_fraction(ais) / 20


@lru_cache(maxsize=1024)
def _exact_fraction(number: float) -> Fraction:
    """The decimal number as written, not the nearest binary one: 1.2 × 5 is 6, not 5.999…"""
    return Fraction(repr(float(number)))
