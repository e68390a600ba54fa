"""Measure the router. `make eval-routing` runs

    python -m bench.eval_routing

`bench/routing/steps.jsonl` holds steps that we wrote, each labelled with the tier that we would choose. They measure whether the
scores follow a reader's judgement, not whether a cheap model's answer is good enough: that takes real models. Long texts
are filled in from their stated length, since only their size counts. Prices are those of three real classes of models
(November 2026), so that the costs can be compared with each other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policies.complexity import effective_complexity, features_of, step_complexity
from policies.handlers import HANDLERS
from policies.intents import Intent
from policies.pricing import Price, Usage, cost_nano_usd, price_from_map
from policies.routing import (
    AUDIO,
    JSON_SCHEMA,
    TIERS,
    TOOLS,
    VISION,
    Candidate,
    Needs,
    NoRoute,
    Route,
    RouteRequest,
    Tier,
    needed_abilities,
    route,
    tier_for,
)
from policies.settings import Settings

STEPS = Path(__file__).parent / "routing" / "steps.jsonl"
SETTINGS = replace(Settings.from_values(), ais_routing_enabled=True)
# Characters per token, and tokens of an uncapped answer: only for comparing costs.
CHARACTERS_PER_TOKEN = 4
FILLER = "The quarterly figures of the northern branch were checked twice and filed on time. "


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled step as a chat request."""

    id: str
    tier: Tier
    intent: Intent
    ais: float | None
    body: dict[str, Any]

    @property
    def prompt_tokens(self) -> int:
        return len(json.dumps(self.body)) // CHARACTERS_PER_TOKEN

    @property
    def output_tokens(self) -> int:
        usual = HANDLERS[self.intent].output_tokens_expected(SETTINGS.token_budget[self.intent])
        return min(usual, int(self.body.get("max_tokens", usual)))


def load() -> list[Case]:
    """All labelled steps."""
    return [_case(json.loads(line)) for line in STEPS.read_text(encoding="utf-8").splitlines()]


def _case(row: dict[str, Any]) -> Case:
    messages = [{"role": "system", "content": row["system"]}] if "system" in row else []
    for turn in range(row.get("turns", 0)):
        messages.append({"role": "assistant" if turn % 2 else "user", "content": FILLER})
    data = (FILLER * (row.get("data_chars", 0) // len(FILLER) + 1))[: row.get("data_chars", 0)]
    asked = row["prompt"] + (f'\n\n"""\n{data}\n"""' if data else "")
    picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    content = [{"type": "text", "text": asked}, *picture] if row.get("vision") else asked
    body: dict[str, Any] = {"model": "auto", "messages": [*messages, {"role": "user", "content": content}]}
    if "tools" in row:
        body["tools"] = [{"type": "function", "function": {"name": f"tool_{n}"}} for n in range(row["tools"])]
    if "fields" in row:
        properties = {f"field_{n}": {"type": "string"} for n in range(row["fields"])}
        schema = {"type": "object", "properties": properties}
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body |= {name: row[key] for key, name in (("max_tokens",) * 2, ("effort", "reasoning_effort")) if key in row}
    return Case(row["id"], Tier(row["tier"]), Intent(row["intent"]), row.get("ais"), body)


def _price(input_usd: float, output_usd: float) -> Price:
    """Per million tokens; cached tokens cost a tenth, as with OpenAI and Anthropic."""
    entry = {
        "input_cost_per_token": f"{input_usd}e-6",
        "output_cost_per_token": f"{output_usd}e-6",
        "cache_read_input_token_cost": f"{input_usd / 10}e-6",
    }
    price = price_from_map(entry)
    if price is None:
        raise ValueError("the prices of the evaluation are incomplete")
    return price


_ALL = frozenset({TOOLS, JSON_SCHEMA, VISION, AUDIO})
FLEET = (
    Candidate(
        "small", Tier.FAST, frozenset({TOOLS, JSON_SCHEMA}), frozenset({VISION}), 128_000, None, _price(0.15, 0.6)
    ),
    Candidate("medium", Tier.BALANCED, _ALL, frozenset(), 400_000, None, _price(2.5, 10)),
    Candidate("large", Tier.POWERFUL, _ALL, frozenset(), 1_000_000, None, _price(5, 25)),
)
PRICE_OF = {model.tier: model.price for model in FLEET if model.price is not None}


def score(case: Case) -> float:
    """The effective complexity, as the gateway computes it."""
    return effective_complexity(case.ais, step_complexity(features_of(case.body), case.intent).score)


def by_router(case: Case) -> Tier:
    """The router's decision with everything on: score, the handler's minimum tier, capabilities, prices."""
    choice = routed(case)
    if isinstance(choice, NoRoute) or choice.tier is None:
        raise ValueError(f"{case.id}: {choice.reason}")
    return choice.tier


def routed(case: Case) -> Route | NoRoute:
    needs = Needs(needed_abilities(case.body), case.prompt_tokens, case.output_tokens)
    return route(RouteRequest("auto", score(case), needs, tier_floor=_floor(case)), FLEET, SETTINGS)


def _floor(case: Case) -> Tier | None:
    return HANDLERS[case.intent].tier_floor


def by_intent_alone(case: Case) -> Tier:
    """The choice without looking at the request."""
    return Tier.BALANCED if case.intent in (Intent.GENERATE, Intent.VALIDATE) else Tier.FAST


def by_length_alone(case: Case) -> Tier:
    """The most common rule of thumb: long prompts go to large models."""
    return TIERS[(case.prompt_tokens > 1_000) + (case.prompt_tokens > 16_000)]


WAYS: dict[str, Callable[[Case], Tier]] = {
    "router": by_router,
    "score alone": lambda case: tier_for(score(case), SETTINGS),
    "intent alone": by_intent_alone,
    "prompt length alone": by_length_alone,
    "always balanced": lambda case: Tier.BALANCED,
    "always powerful": lambda case: Tier.POWERFUL,
}


def cost(case: Case, tier: Tier) -> int:
    """Nano-USD of the step at the tier's price."""
    return cost_nano_usd(PRICE_OF[tier], Usage(case.prompt_tokens, case.output_tokens))


def print_ways(cases: Sequence[Case]) -> None:
    """Agreement with the labels, and what it costs."""
    dearest = sum(cost(case, Tier.POWERFUL) for case in cases)
    labelled_cost = sum(cost(case, case.tier) for case in cases)
    print(f"{'':20} {'agrees':>7} {'too low':>8} {'too high':>9} {'off by 2':>9} {'cost':>7}")
    for name, way in WAYS.items():
        steps = [TIERS.index(way(case)) - TIERS.index(case.tier) for case in cases]
        spent = sum(cost(case, way(case)) for case in cases)
        shares = [
            steps.count(0),
            sum(off < 0 for off in steps),
            sum(off > 0 for off in steps),
            sum(abs(off) > 1 for off in steps),
        ]
        print(f"{name:20}", *(f"{share / len(cases):>8.0%}" for share in shares), f"{spent / dearest:>8.0%}")
    print(f"{'(as labelled)':20} {'':35} {labelled_cost / dearest:>8.0%}")


def print_confusion(cases: Sequence[Case]) -> None:
    """Rows: the label; columns: the router."""
    counts = Counter((case.tier, by_router(case)) for case in cases)
    print(f"\n{'label':10}", *(f"{tier:>9}" for tier in TIERS))
    for row in TIERS:
        print(f"{row:10}", *(f"{counts[row, column]:>9}" for column in TIERS))


def print_by_intent(cases: Sequence[Case]) -> None:
    """Scores per intent and label: they should rise with the label."""
    print(f"\n{'mean score':12}", *(f"{tier:>9}" for tier in TIERS))
    for intent in Intent:
        cells = []
        for tier in TIERS:
            scores = [score(case) for case in cases if case.intent is intent and case.tier is tier]
            cells.append(f"{sum(scores) / len(scores):>9.1f}" if scores else f"{'–':>9}")
        print(f"{intent:12}", *cells)


def print_thresholds(cases: Sequence[Case]) -> None:
    """Agreement and cost with other thresholds."""
    dearest = sum(cost(case, Tier.POWERFUL) for case in cases)
    print(f"\n{'fast < / powerful ≥':20} {'agrees':>7} {'cost':>6}")
    for fast in (2.5, 3.0, 3.5, 4.0):
        for powerful in (5.5, 6.5, 7.5):
            moved = replace(
                SETTINGS,
                ais_fast_tier_max_score=fast,
                ais_balanced_tier_max_score=powerful,
                ais_powerful_tier_min_score=powerful,
            )
            tiers = [tier_for(score(case), moved) for case in cases]
            right = sum(tier is case.tier for tier, case in zip(tiers, cases, strict=True))
            spent = sum(cost(case, tier) for tier, case in zip(tiers, cases, strict=True))
            print(f"{fast:>8} / {powerful:<9} {right / len(cases):>7.0%} {spent / dearest:>6.0%}")


def print_conversations(cases: Sequence[Case], turns: int = 8) -> None:
    """The loss from routing every turn of a growing conversation separately, which is why conversations keep their model."""
    lost, spent, changes, talks = 0, 0, 0, 0
    for start in range(0, len(cases) - turns, turns):
        paid, cached, switches = _conversation(cases[start : start + turns])
        lost, spent, changes, talks = lost + paid - cached, spent + paid, changes + switches, talks + 1
    print(
        f"\nwithout sticking, {talks} conversations of {turns} turns change their model {changes} times, "
        f"and {lost / spent:.0%} of their cost is history that was in the cache of another model"
    )


def _conversation(turns: Sequence[Case]) -> tuple[int, int, int]:
    """The cost with a cold cache after each change of model, the cost with a warm cache, and the number of changes."""
    history, paid, kept_cost, switches, last = 0, 0, 0, 0, ""
    for turn in turns:
        needs = Needs(needed_abilities(turn.body), history + turn.prompt_tokens, turn.output_tokens)
        choice = route(RouteRequest("auto", score(turn), needs), FLEET, SETTINGS)
        if isinstance(choice, NoRoute) or choice.tier is None:
            raise ValueError(f"{turn.id}: {choice.reason}")
        warm = Usage(history + turn.prompt_tokens, turn.output_tokens, cache_read_tokens=history)
        used = warm if choice.model == last else replace(warm, cache_read_tokens=0)
        paid += cost_nano_usd(PRICE_OF[choice.tier], used)
        kept_cost += cost_nano_usd(PRICE_OF[choice.tier], warm)
        switches += bool(last) and choice.model != last
        history, last = history + turn.prompt_tokens + turn.output_tokens, choice.model
    return paid, kept_cost, switches


def print_disagreements(cases: Sequence[Case]) -> None:
    """Where the router and the label differ, with the router's reason."""
    print("\ndisagreements")
    for case in cases:
        choice = routed(case)
        if isinstance(choice, Route) and choice.tier is not case.tier:
            print(f"  {case.id} {case.intent:11} label {case.tier:9} {choice.reason}")


def main() -> None:
    """Print everything."""
    cases = load()
    labels = Counter(case.tier for case in cases)
    print(f"{len(cases)} labelled steps:", ", ".join(f"{labels[tier]} {tier}" for tier in TIERS), "\n")
    print_ways(cases)
    print_confusion(cases)
    print_by_intent(cases)
    print_thresholds(cases)
    print_conversations(cases)
    print_disagreements(cases)


if __name__ == "__main__":
    main()
