"""How a run's tokens are shared among its steps.

    pool    = min(limit of the run, Σ demand)
    demand  = baseline of the intent × (1 + intensity ÷ 20), or what was declared, or (adaptive) what was really used
    share   = pool × weight ÷ Σ weights, at most the step's cap; what a cap frees goes to the steps that are below theirs

Shares become whole tokens by largest remainder, so they add up exactly. Nothing here depends on the order of the steps.
An allocation is a soft limit: up to `hard_limit` a step is flagged, above it refused; the run's own limit holds always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from policies.intents import Intent
from policies.settings import ALLOCATION_STRATEGIES, Settings

NEUTRAL_INTENSITY = 5.0

# Halves, so that weights stay whole: low counts half of normal, high one and a half, critical double.
PRIORITY_WEIGHT: Mapping[str, int] = MappingProxyType({"low": 1, "normal": 2, "high": 3, "critical": 4})

# Below ten runs a 95th percentile is the maximum of a handful; the same count the original system asked for.
SAMPLES_MIN = 10
# A plan in which most steps are guesses is better made of guesses only: they are at least in proportion.
COVERAGE_MIN = Fraction(1, 2)
# What was learned stays within these, whatever happened in past runs (the original system's bounds).
_LEARNED_MIN_TOKENS, _LEARNED_MAX_TOKENS = 100, 100_000
# A run of two weeks ago counts half: agents change with every prompt edit, rarely daily.
HALF_LIFE_MS = 14 * 24 * 3_600_000
# So many runs make the step set of an undeclared workflow known.
RUNS_TO_LEARN = 3


@dataclass(frozen=True, slots=True)
class UsageSample:
    """Tokens that a step used in one past run, and how long ago that was."""

    tokens: int
    age_ms: int = 0


@dataclass(frozen=True, slots=True)
class StepHistory:
    """How many past runs there are, and the decayed 95th percentile of the tokens used in them."""

    samples: int
    p95_tokens: int


@dataclass(frozen=True, slots=True)
class StepDemand:
    """A step as it enters a plan. `intent_history` is that of all steps of its intent on its model, for a new step."""

    id: str
    intent: str
    priority: str = "normal"
    demand_tokens: int | None = None
    history: StepHistory | None = None
    cap_tokens: int | None = None
    intent_history: StepHistory | None = None


@dataclass(frozen=True, slots=True)
class StepAllocation:
    """`tokens` is the soft limit, `hard_limit_tokens` the refusing one, `cap_tokens` what replanning may not exceed."""

    step: str
    intent: str
    tokens: int
    hard_limit_tokens: int
    reason: str
    cap_tokens: int = 0
    completed: bool = False


@dataclass(frozen=True, slots=True)
class Allocation:
    """A plan. The tokens of its steps add up to the pool, or to all caps where those are less."""

    strategy: str
    pool_tokens: int
    allocations: tuple[StepAllocation, ...]

    def of(self, step: str) -> StepAllocation | None:
        return next((allocation for allocation in self.allocations if allocation.step == step), None)


def ais_multiplier(ais: float) -> float:
    """1.0 at intensity 0 to 1.5 at 10; scores outside are taken as the nearest of the two."""
    return float(_multiplier(ais))


def demand_tokens(intent: str, settings: Settings, ais: float = NEUTRAL_INTENSITY) -> int:
    """The intent's baseline × the multiplier, rounded to the nearest token. ValueError for an unknown intent."""
    return _rounded(settings.token_budget[Intent(intent)] * _multiplier(ais))


def hard_limit(tokens: int, settings: Settings) -> int:
    """Where a step with this allocation is refused: × the threshold, rounded down, while overage is allowed."""
    if not settings.budget_overage_allowed:
        return tokens
    return int(tokens * _exact(settings.budget_overage_threshold))


def allocate(
    steps: Sequence[StepDemand],
    *,
    strategy: str,
    pool_limit_tokens: int | None,
    settings: Settings,
    ais: float = NEUTRAL_INTENSITY,
) -> Allocation:
    """Plan a run. `pool_limit_tokens` is its budget; None: the setting for runs without one.

    `adaptive` weighs by what the steps really used, and is planned as `proportional` while less than half of them have
    a history. ValueError for an unknown strategy, priority or intent, two steps of one id, or negative tokens.
    """
    _check(steps, strategy, pool_limit_tokens)
    limit = settings.max_tokens_per_workflow if pool_limit_tokens is None else pool_limit_tokens
    learned = strategy == "adaptive" and _coverage(steps) >= COVERAGE_MIN
    demands = {step.id: _demand(step, settings, ais, learned) for step in steps}
    weights = {step.id: _weight(step, demands[step.id], strategy) for step in steps}
    caps = {step.id: _cap(step, settings) for step in steps}
    pool = min(limit, sum(demands.values()))
    shares = share(pool, weights, caps)
    named = "proportional" if strategy == "adaptive" and not learned else strategy
    return Allocation(
        strategy,
        pool,
        tuple(
            StepAllocation(
                step.id,
                step.intent,
                shares[step.id],
                hard_limit(shares[step.id], settings),
                _reason(step, strategy, named, demands[step.id], pool, shares[step.id] == caps[step.id]),
                caps[step.id],
            )
            for step in steps
        ),
    )


def allocate_next(
    step: StepDemand, *, run_remaining_tokens: int, settings: Settings, ais: float = NEUTRAL_INTENSITY
) -> StepAllocation:
    """Give a step that no plan foresaw its demand, bounded by its cap and by what the run has left (never below 0)."""
    learned = settings.allocation_strategy == "adaptive" and _history(step) is not None
    demand, cap, left = _demand(step, settings, ais, learned), _cap(step, settings), max(0, run_remaining_tokens)
    tokens = min(demand, cap, left)
    why = f"as it appeared: {_source(step, learned)} {demand} tokens"
    if tokens < demand:
        why += f", cut to {tokens} by what the run has left" if left < cap else f", cut to the step cap of {cap}"
    return StepAllocation(step.id, step.intent, tokens, hard_limit(tokens, settings), why + ".", cap)


def reallocate(allocation: Allocation, used_tokens: Mapping[str, int], settings: Settings) -> Allocation:
    """The plan after some steps completed: what they left goes to the steps still to come, what they overdrew comes
    from them, in proportion to their allocations and within their caps.

    `used_tokens` is of all completed steps so far, planned or not. Applying it twice changes nothing more.
    """
    pending = [one for one in allocation.allocations if one.step not in used_tokens]
    left = max(0, allocation.pool_tokens - sum(used_tokens.values()))
    shares = share(left, {one.step: one.tokens for one in pending}, {one.step: one.cap_tokens for one in pending})
    return replace(
        allocation,
        allocations=tuple(
            _completed(one, used_tokens[one.step], settings)
            if one.step in used_tokens
            else _moved(one, shares[one.step], settings)
            for one in allocation.allocations
        ),
    )


def _completed(one: StepAllocation, used: int, settings: Settings) -> StepAllocation:
    if one.completed and one.tokens == used:
        return one
    reason = f"completed with {used} of {one.tokens} tokens."
    return replace(one, tokens=used, hard_limit_tokens=hard_limit(used, settings), reason=reason, completed=True)


def _moved(one: StepAllocation, tokens: int, settings: Settings) -> StepAllocation:
    if tokens == one.tokens:
        return one
    change = f"{tokens - one.tokens:+d} tokens from completed steps" if tokens > one.tokens else "overdrawn before it"
    reason = f"{one.tokens} planned, now {tokens}: {change}."
    return replace(one, tokens=tokens, hard_limit_tokens=hard_limit(tokens, settings), reason=reason)


def share(pool: int, weights: Mapping[str, int], caps: Mapping[str, int]) -> dict[str, int]:
    """Split `pool` by weight, each share at most its cap; the sum is min(pool, Σ caps) exactly.

    Water-filling: whoever reaches its cap leaves, and the others share what it could not take. All weights 0: equally.
    A weight of 0 beside others gets nothing. Ties of the largest remainder go to the smaller name, so that the result
    does not depend on the order.
    """
    if weights and not any(weights.values()):
        weights = dict.fromkeys(weights, 1)
    shares = dict.fromkeys(weights, 0)
    # In the order in which a rising level fills them, one pass is enough.
    filling = sorted((name for name in weights if weights[name]), key=lambda name: Fraction(caps[name], weights[name]))
    total = sum(weights.values())
    while filling and caps[filling[0]] * total <= pool * weights[filling[0]]:
        full = filling.pop(0)
        shares[full] = caps[full]
        pool, total = pool - caps[full], total - weights[full]
    for name in filling:
        shares[name] = pool * weights[name] // total
    rest = pool - sum(shares[name] for name in filling) if filling else 0
    for name in sorted(filling, key=lambda name: (-(pool * weights[name] % total), name))[:rest]:
        shares[name] += 1
    return shares


def decayed_p95(samples: Iterable[UsageSample], half_life_ms: int = HALF_LIFE_MS) -> int | None:
    """The 95th percentile of tokens in which a sample counts half per `half_life_ms` of age; None without samples.

    The smallest of the samples' tokens that at least 95 % of the weight does not exceed.
    """
    # Past thirty half-lives every sample is as good as forgotten; below that no weight may become 0.
    known = sorted((sample.tokens, 0.5 ** min(30.0, max(0, sample.age_ms) / half_life_ms)) for sample in samples)
    if not known:
        return None
    wanted = 0.95 * sum(weight for _, weight in known)
    seen = 0.0
    for tokens, weight in known:
        seen += weight
        if seen >= wanted:
            return tokens
    return known[-1][0]


def history_of(samples: Sequence[UsageSample]) -> StepHistory | None:
    """What is known of a step from its past runs; None without any."""
    p95 = decayed_p95(samples)
    return None if p95 is None else StepHistory(len(samples), p95)


def learned_steps(runs: Sequence[Sequence[StepDemand]]) -> tuple[StepDemand, ...] | None:
    """The steps of an undeclared workflow, to be planned like a declaration; None before three runs.

    `runs` holds the steps of each past run, oldest first. A step belongs when at least two of the last three runs had
    it (a branch taken once is no plan), as the newest of them had it.
    """
    if len(runs) < RUNS_TO_LEARN:
        return None
    recent = [{step.id: step for step in run} for run in runs[-RUNS_TO_LEARN:]]
    newest: dict[str, StepDemand] = {}
    for run in recent:
        newest.update(run)
    return tuple(newest[name] for name in sorted(newest) if sum(name in run for run in recent) >= 2)


def flattened(steps: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Nested steps (branches, loops) in reading order, without the containers, which call no model themselves."""
    flat: list[Mapping[str, Any]] = []
    waiting = list(steps)[::-1]
    while waiting:  # not recursive: how deep a request nests is the caller's choice
        step = waiting.pop()
        children = step.get("steps")
        if not children or step.get("prompt"):
            flat.append(step)
        waiting.extend(list(children or ())[::-1])
    return flat


def _check(steps: Sequence[StepDemand], strategy: str, limit: int | None) -> None:
    if strategy not in ALLOCATION_STRATEGIES:
        raise ValueError(f"'{strategy[:40]}' is not a strategy; there are {', '.join(ALLOCATION_STRATEGIES)}.")
    if limit is not None and limit < 0:
        raise ValueError(f"A run cannot have {limit} tokens.")
    seen: set[str] = set()
    for step in steps:
        if step.id in seen:
            raise ValueError(f"Two steps are called '{step.id[:60]}'.")
        if step.priority not in PRIORITY_WEIGHT:
            raise ValueError(f"'{step.priority[:40]}' is not a priority; there are {', '.join(PRIORITY_WEIGHT)}.")
        if min(step.demand_tokens or 0, step.cap_tokens or 0) < 0:
            raise ValueError(f"Step '{step.id[:60]}' cannot have negative tokens.")
        seen.add(step.id)


def _exact(value: float) -> Fraction:
    """1.2 is meant as 12/10: its nearest double would cost a token here and there."""
    return Fraction(str(value))


def _rounded(value: Fraction) -> int:
    return int(value + Fraction(1, 2))


def _multiplier(ais: float) -> Fraction:
    return 1 + min(max(_exact(ais), Fraction(0)), Fraction(10)) / 20


def _cap(step: StepDemand, settings: Settings) -> int:
    most = settings.max_tokens_per_step
    return most if step.cap_tokens is None else min(step.cap_tokens, most)


def _history(step: StepDemand) -> StepHistory | None:
    known = (step.history, step.intent_history)
    return next((history for history in known if history is not None and history.samples >= SAMPLES_MIN), None)


def _coverage(steps: Sequence[StepDemand]) -> Fraction:
    return Fraction(sum(_history(step) is not None for step in steps), max(1, len(steps)))


def _demand(step: StepDemand, settings: Settings, ais: float, learned: bool) -> int:
    if step.demand_tokens is not None:
        return step.demand_tokens
    history = _history(step) if learned else None
    if history is not None:
        return min(max(history.p95_tokens, _LEARNED_MIN_TOKENS), _LEARNED_MAX_TOKENS)
    return demand_tokens(step.intent, settings, ais)


def _weight(step: StepDemand, demand: int, strategy: str) -> int:
    if strategy == "equal":
        return 1
    return demand * PRIORITY_WEIGHT[step.priority] if strategy == "priority" else demand


def _source(step: StepDemand, learned: bool) -> str:
    if step.demand_tokens is not None:
        return "declared"
    history = _history(step) if learned else None
    if history is None:
        return f"{step.intent} needs"
    whose = "its own" if history is step.history else f"{step.intent}'s"
    return f"{whose} last {history.samples} runs used (p95)"


def _reason(step: StepDemand, asked: str, strategy: str, demand: int, pool: int, capped: bool) -> str:
    source = _source(step, strategy == "adaptive")
    how = {
        "equal": "an equal share",
        "proportional": f"in proportion: {source} {demand} tokens",
        "adaptive": f"by past use: {source} {demand} tokens",
        "priority": f"priority {step.priority}: {source} {demand} tokens × {PRIORITY_WEIGHT[step.priority] / 2:g}",
    }[strategy]
    fallback = "too few past runs to adapt; " if asked != strategy else ""
    return f"{fallback}{how}, of a pool of {pool}{', cut to the step cap' if capped else ''}."
