"""The choice of the model for a call: the tier that suits its complexity, then the best capable model of that tier.

`model: auto` is always routed, and `auto:fast` within its tier; a named model only if the workflow allows it and routing is
on. A conversation keeps its model, because a change would lose the provider's prompt cache. If an answer fails its checks,
the next attempt goes one tier up. Every decision states its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from policies.pricing import Price, Usage, cost_nano_usd
from policies.settings import Settings
from policies.values import value_class

AUTO = "auto"
# The quality of a model without a stated one: the middle of 0 to 10.
QUALITY_UNKNOWN = 5.0


class Tier(StrEnum):
    """Classes of models, from cheap to capable."""

    FAST = "fast"
    BALANCED = "balanced"
    POWERFUL = "powerful"


TIERS = tuple(Tier)

# Abilities, named as in LiteLLM's `supports_…` fields.
TOOLS, VISION, JSON_SCHEMA, AUDIO, PDF = "function_calling", "vision", "response_schema", "audio_input", "pdf_input"
ABILITIES = (TOOLS, VISION, JSON_SCHEMA, AUDIO, PDF)
_ABILITY_WORDS = {TOOLS: "tools", VISION: "images", JSON_SCHEMA: "JSON schemas", AUDIO: "audio", PDF: "PDFs"}
_PART_ABILITY = {
    "image_url": VISION,
    "input_image": VISION,
    "image": VISION,
    "computer_screenshot": VISION,
    "input_audio": AUDIO,
    "file": PDF,
    "input_file": PDF,
}
_PROMPT_FIELDS = ("system", "instructions", "prompt", "messages", "input", "tools", "functions")
# Parts and items whose strings are not text that a model reads.
_NON_TEXT_TYPES = frozenset({*_PART_ABILITY, "base64", "reasoning", "redacted_thinking"})


@value_class
class Candidate:
    """A configured model of a tier. An ability in neither `abilities` nor `lacks` is unknown.

    `quality` is from 0 to 10; `order` is the position in the tier's list, which breaks ties.
    """

    name: str
    tier: Tier
    abilities: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    prompt_tokens_max: int | None = None
    output_tokens_max: int | None = None
    price: Price | None = None
    quality: float | None = None
    order: int = 0


@value_class
class Needs:
    """What a call requires of a model. `output_tokens` is the caller's cap or the expected length; 0: unknown."""

    abilities: frozenset[str] = frozenset()
    prompt_tokens: int = 0
    output_tokens: int = 0
    is_money_limited: bool = False


@value_class
class RouteRequest:
    """A call, as input to the choice of a model.

    `score` is its effective complexity (0–10), `sticky_model` the last model of this conversation, `failed_tier` the tier of
    the last of `failed_attempts` answers that failed their checks, `tier_floor` the lowest tier that the step's handler
    accepts.
    """

    model: str
    score: float
    needs: Needs = Needs()
    may_reroute: bool = False
    sticky_model: str | None = None
    failed_attempts: int = 0
    failed_tier: Tier | None = None
    tier_floor: Tier | None = None


@value_class
class Route:
    """The model to call. `tier` is None for a named model that is in no tier."""

    model: str
    tier: Tier | None
    is_changed: bool
    reason: str


@value_class
class NoRoute:
    """No configured model can take the call."""

    reason: str


def is_auto(model: str) -> bool:
    """Whether the name of a model leaves the choice to Farebox."""
    return model == AUTO or model.startswith(AUTO + ":")


def tier_for(score: float, settings: Settings) -> Tier:
    """The tier for an effective complexity, by the thresholds of the settings.

    Below the fast threshold: fast. From the powerful threshold on: powerful. Between them: balanced. If the powerful
    threshold is below the balanced one, either tier will do between these two, and the larger of the quality and cost weights
    decides.
    """
    if score < settings.ais_fast_tier_max_score:
        return Tier.FAST
    if score < settings.ais_powerful_tier_min_score:
        return Tier.BALANCED
    both = score < settings.ais_balanced_tier_max_score
    return Tier.BALANCED if both and settings.ais_quality_weight < settings.ais_cost_weight else Tier.POWERFUL


def next_tier_up(tier: Tier) -> Tier:
    return TIERS[min(TIERS.index(tier) + 1, len(TIERS) - 1)]


def route(request: RouteRequest, candidates: Sequence[Candidate], settings: Settings) -> Route | NoRoute:
    """Choose a model. Only models that can take the call qualify: capable, with enough context, and priced if money is limited.

    A replacement for a named model must be known to have the needed abilities; `auto` accepts models with unknown abilities
    if there is no model with known ones.
    """
    candidate_by_name = {candidate.name: candidate for candidate in candidates}
    named_route = _named_route(request, candidate_by_name, settings)
    if named_route is not None:
        return named_route
    fixed_tier = request.model.removeprefix(AUTO).removeprefix(":") if is_auto(request.model) else ""
    if fixed_tier and fixed_tier not in TIERS:
        return NoRoute(
            f"'{request.model[:60]}' names no tier; there are {', '.join(f'auto:{tier}' for tier in TIERS)}."
        )
    sticky = candidate_by_name.get(request.sticky_model or "")
    if (
        sticky is not None
        and not request.failed_attempts
        and fixed_tier in ("", sticky.tier)
        and _can_take(sticky, request.needs)
    ):
        reason = f"{sticky.name} has this conversation, and its prompt cache."
        return Route(sticky.name, sticky.tier, sticky.name != request.model, reason)
    wanted_tier, reason = _wanted_tier(request, Tier(fixed_tier) if fixed_tier else None, settings)
    return _best_route(request, wanted_tier, reason, candidates, settings)


def cheaper(model: str, needs: Needs, candidates: Sequence[Candidate], settings: Settings) -> tuple[Route, ...]:
    """Models that could take a call for less money than `model`, the best first: the candidates under pressure.

    Only priced models that are known to have every needed ability; the nearest tier below first, and within it the most
    expensive first, to lose as little quality as possible. Empty if `model` itself has no price.
    """
    candidate_by_name = {candidate.name: candidate for candidate in candidates}
    current = candidate_by_name.get(model)
    if current is None or current.price is None:
        return ()
    limit = _cost(current, needs)
    cheaper_candidates = [
        candidate
        for candidate in candidates
        if candidate.price is not None and _is_known_to_take(candidate, needs) and _cost(candidate, needs) < limit
    ]
    cheaper_candidates.sort(
        key=lambda candidate: (
            -TIERS.index(candidate.tier),
            -_cost(candidate, needs),
            -_quality(candidate),
            candidate.order,
            candidate.name,
        )
    )
    return tuple(
        Route(
            candidate.name,
            candidate.tier,
            True,
            f"{candidate.name} costs {_cost_percent(candidate, limit, needs)} % of {model} for this call.",
        )
        for candidate in cheaper_candidates
    )


def needed_abilities(body: Mapping[str, Any]) -> frozenset[str]:
    """The abilities that a request (chat, Responses or Messages) needs: tools, images, audio, PDFs, a JSON schema. Linear time."""
    needed = {ability for part in _parts(body) if (ability := _ability(part))}
    if body.get("tools") or body.get("functions"):
        needed.add(TOOLS)
    inner = (_get(body.get(name), "format") for name in ("text", "output_config"))
    formats = (body.get("response_format"), body.get("output_format"), *inner)
    if any(_get(response_format, "type") == "json_schema" for response_format in formats):
        needed.add(JSON_SCHEMA)
    return frozenset(needed)


def estimated_prompt_tokens(body: Mapping[str, Any]) -> int:
    """An estimate of a prompt's tokens (chat, Responses or Messages) before they are counted: a third of its characters,
    which is more than English and code come to. Ignores content that is not text. Linear time."""
    unvisited = [body.get(name) for name in _PROMPT_FIELDS]
    characters = 0
    while unvisited:
        node = unvisited.pop()
        if isinstance(node, str):
            characters += len(node)
        elif isinstance(node, list):
            unvisited.extend(node)
        elif isinstance(node, Mapping) and str(node.get("type")) not in _NON_TEXT_TYPES:
            unvisited.extend(node.values())
    return characters // 3


def _parts(body: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Turns and their parts, also those inside the results of tools. The arguments of tool calls are not searched."""
    unvisited = [body.get("messages"), body.get("input")]
    while unvisited:
        node = unvisited.pop()
        if isinstance(node, list):
            unvisited.extend(node)
        elif isinstance(node, Mapping):
            yield node
            unvisited += [node.get("content"), node.get("output")]


def _ability(part: Mapping[str, Any]) -> str | None:
    kind = part.get("type")
    if kind == "document":  # may also hold plain text
        return PDF if _get(part.get("source"), "type") in ("base64", "url", "file") else None
    return _PART_ABILITY.get(kind) if isinstance(kind, str) else None


def _get(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else None


def _named_route(request: RouteRequest, candidate_by_name: Mapping[str, Candidate], settings: Settings) -> Route | None:
    """The route of a named model that is kept; None if there is a choice."""
    if is_auto(request.model):
        return None
    requested = candidate_by_name.get(request.model)
    tier = None if requested is None else requested.tier
    if requested is None:
        reason = "is in no tier, so it cannot be compared with others"
    elif not request.may_reroute:
        reason = "was asked for by name, and rerouting is not allowed here"
    elif not settings.ais_routing_enabled:
        reason = "was asked for by name, and routing is off"
    else:
        return None
    return Route(request.model, tier, False, f"{request.model} {reason}.")


def _wanted_tier(request: RouteRequest, fixed_tier: Tier | None, settings: Settings) -> tuple[Tier, str]:
    tier, reason = (
        _tier_by_score(request, settings) if fixed_tier is None else (fixed_tier, f"{fixed_tier} was asked for")
    )
    if not request.failed_attempts:
        return tier, reason
    failed = request.failed_tier or tier
    if request.failed_attempts > settings.max_retry_attempts:
        return failed, f"{request.failed_attempts} answers failed their checks, and no more attempts move up"
    if failed is Tier.POWERFUL:
        return failed, "the last answer failed its checks, and no tier is above powerful"
    return next_tier_up(failed), f"the last answer, from {failed}, failed its checks"


def _tier_by_score(request: RouteRequest, settings: Settings) -> tuple[Tier, str]:
    tier = tier_for(request.score, settings)
    if request.tier_floor is not None and TIERS.index(request.tier_floor) > TIERS.index(tier):
        return request.tier_floor, f"this kind of step takes {request.tier_floor} at least"
    return tier, f"complexity {request.score:.1f} asks for {tier}"


def _best_route(
    request: RouteRequest, wanted_tier: Tier, reason: str, candidates: Sequence[Candidate], settings: Settings
) -> Route | NoRoute:
    """The best of the wanted tier; if none of it can take the call, of the nearest tier above, and failing that, below."""
    tier_index = TIERS.index(wanted_tier)
    for tier in (*TIERS[tier_index:], *TIERS[:tier_index][::-1]):
        capable = [
            candidate for candidate in candidates if candidate.tier is tier and _can_take(candidate, request.needs)
        ]
        known_capable = [candidate for candidate in capable if _is_known_to_take(candidate, request.needs)]
        usable = known_capable or (capable if is_auto(request.model) else [])
        if usable:
            best = _best_candidate(usable, request.needs, settings)
            words = (
                [reason] if tier is wanted_tier else [reason, f"none of {wanted_tier} can take this call, so {tier}"]
            )
            words.append(_comparison(best, usable, settings))
            return Route(best.name, best.tier, best.name != request.model, "; ".join(words) + ".")
    if is_auto(request.model):
        return NoRoute(f"No configured model can take this call: {_why_none(request.needs, candidates)}.")
    requested = next(candidate for candidate in candidates if candidate.name == request.model)
    return Route(
        request.model, requested.tier, False, f"{reason}; no model is known to be able to, so {request.model} stays."
    )


def _can_take(candidate: Candidate, needs: Needs) -> bool:
    fits_prompt = candidate.prompt_tokens_max is None or needs.prompt_tokens <= candidate.prompt_tokens_max
    fits_output = candidate.output_tokens_max is None or needs.output_tokens <= candidate.output_tokens_max
    is_priced = candidate.price is not None or not needs.is_money_limited
    return fits_prompt and fits_output and is_priced and not (needs.abilities & candidate.lacks)


def _is_known_to_take(candidate: Candidate, needs: Needs) -> bool:
    return _can_take(candidate, needs) and needs.abilities <= candidate.abilities


def _cost(candidate: Candidate, needs: Needs) -> int:
    """For comparisons. Unknown lengths are assumed: 1,000 tokens of prompt, and a quarter of the prompt (at least 250) as output."""
    if candidate.price is None:
        return 0
    prompt, output = needs.prompt_tokens, needs.output_tokens
    return cost_nano_usd(candidate.price, Usage(prompt or 1000, output or max(250, prompt // 4)))


def _quality(candidate: Candidate) -> float:
    return QUALITY_UNKNOWN if candidate.quality is None else candidate.quality


def _best_candidate(usable: Sequence[Candidate], needs: Needs, settings: Settings) -> Candidate:
    """The highest of weight × quality ÷ 10 + weight × (cheapest cost ÷ own cost).

    The ratio means that a model at twice the cheapest cost loses half of the cost weight, whatever the other models cost. A
    model without a price counts as the most expensive: unknown is not cheap.
    """
    costs = {candidate.name: _cost(candidate, needs) for candidate in usable if candidate.price is not None}
    cheapest_cost = min(costs.values(), default=0)

    def score(candidate: Candidate) -> float:
        cost = costs.get(candidate.name)
        cheapness = 0.0 if cost is None else 1.0 if cost == cheapest_cost else cheapest_cost / cost
        return settings.ais_quality_weight * _quality(candidate) / 10 + settings.ais_cost_weight * cheapness

    return min(usable, key=lambda candidate: (-score(candidate), candidate.order, candidate.name))


def _comparison(best: Candidate, usable: Sequence[Candidate], settings: Settings) -> str:
    if len(usable) == 1:
        return f"{best.name} is the one that can take it"
    quality, cost = settings.ais_quality_weight, settings.ais_cost_weight
    return f"{best.name} is the best of {len(usable)} by quality × {quality:g} and price × {cost:g}"


def _why_none(needs: Needs, candidates: Sequence[Candidate]) -> str:
    if not candidates:
        return "no model is in a tier"
    words = [_ABILITY_WORDS.get(ability, ability) for ability in sorted(needs.abilities)]
    asks = [f"{needs.prompt_tokens} prompt tokens", f"{needs.output_tokens} tokens of answer", *words]
    return "it needs " + ", ".join(asks) + (" and a known price" if needs.is_money_limited else "")


def _cost_percent(candidate: Candidate, limit: int, needs: Needs) -> int:
    return -(-100 * _cost(candidate, needs) // limit)
