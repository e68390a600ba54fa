"""The cost of a call in whole nano-USD. Prices come from LiteLLM's price map, or from `model_info` with the same field names.

Rates are integers of nano-USD per million tokens, read from the decimal text of the file: 0.0375 USD per million tokens is
37,500,000. A cost is summed exactly and rounded up once, at the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import field, fields, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

from policies.errors import OrchestrationError
from policies.values import value_class

MILLION: Final = 1_000_000
# USD per token → nano-USD per million tokens.
_PER_MTOK: Final = Decimal(10) ** 15
_NANO: Final = Decimal(10) ** 9
# 1 USD per token: a thousand times the price of anything sold, so an entry above it is a typing error.
_RATE_MAX: Final = 10**15
_TIERED_PRICING: Final = "tiered_pricing"
_THRESHOLD_SUFFIX: Final = re.compile(r"_above_(\d+)k_tokens\Z")
# The values of `service_tier` that the map has prices for. The most expensive costs six times the default, so all must be known.
_SERVICE_TIERS: Final = ("priority", "flex", "balanced", "ultrafast")
# Factors on everything except hosted tools: `fast` is Anthropic's fast mode, the others are regions that a call is kept in.
_FACTORS: Final = ("fast", "us")
_FACTORS_SCALE: Final = 1000
# Hosted tools bill each of their rounds, so one call may use a model's context window several times.
_ROUNDS_MAX: Final = 16
_TIER_ALIASES: Final = MappingProxyType({"fast": "priority"})
# Modes whose answers are text: unless prompt and answer both have a price, tokens would seem free.
_TEXT_MODES: Final = (None, "chat", "completion", "responses")
# This provider bills the higher rates from the threshold on, all others only above it.
_INCLUSIVE_PROVIDER: Final = "xai"


class PriceError(OrchestrationError):
    """A price that is negative, not a number, or absurdly high. `name` is the field of the map's entry."""

    def __init__(self, name: str, fault: str) -> None:
        super().__init__(f"{name} {fault}")
        self.name = name
        self.fault = fault


@value_class
class Rates:
    """Nano-USD per million tokens. A rate that an entry does not state is the plain one of its direction."""

    input: int
    output: int
    cache_read: int
    cache_write: int
    cache_write_1h: int
    reasoning: int
    audio_input: int
    audio_output: int


@value_class
class HostedTools:
    """The use of the provider's own tools in a call; in a price, the nano-USD of one use of each."""

    searches: int = 0  # web searches
    maps: int = 0  # grounding in Google Maps
    file_searches: int = 0
    sessions: int = 0  # containers for running code

    def cost_nano_usd(self, price: HostedTools) -> int:
        return (
            self.searches * price.searches
            + self.maps * price.maps
            + self.file_searches * price.file_searches
            + self.sessions * price.sessions
        )

    def unitwise_max(self, other: HostedTools) -> HostedTools:
        if other is NO_HOSTED_TOOLS:  # nearly always
            return self
        return HostedTools(*(max(getattr(self, part.name), getattr(other, part.name)) for part in fields(HostedTools)))


NO_HOSTED_TOOLS: Final = HostedTools()


@value_class
class Price:
    """`above` has the higher rates for prompts above a number of tokens, which then apply to the whole call."""

    rates: Rates
    above: tuple[tuple[int, Rates], ...] = ()
    service_tiers: Mapping[str, tuple[Rates, tuple[tuple[int, Rates], ...]]] = field(default_factory=dict)
    image_nano_usd: int = 0  # each
    second_nano_usd: int = 0
    million_characters_nano_usd: int = 0  # per million characters
    query_nano_usd: int = 0
    hosted: HostedTools = NO_HOSTED_TOOLS
    # A provider that reports more than this in or out, for each choice, is in error; 0: no maximum is known.
    tokens_max: int = 0
    factors: Mapping[str, int] = field(default_factory=dict)  # in thousandths, by the name of the speed or region

    def with_factors(self, *names: object) -> Price:
        """The price at this speed and in this region; a name without a factor changes nothing."""
        factor = _FACTORS_SCALE
        for name in names:
            if isinstance(name, str):
                factor = -(-factor * self.factors.get(name.lower(), _FACTORS_SCALE) // _FACTORS_SCALE)
        if factor == _FACTORS_SCALE:
            return self
        tiers = {
            tier: (_scaled_rates(rates, factor), _scaled_thresholds(above, factor))
            for tier, (rates, above) in self.service_tiers.items()
        }
        return replace(
            self,
            rates=_scaled_rates(self.rates, factor),
            above=_scaled_thresholds(self.above, factor),
            service_tiers=tiers,
        )

    def rates_for_tier(self, service_tier: object) -> tuple[Rates, tuple[tuple[int, Rates], ...]]:
        """The rates of a service tier; the default rates if it has no price of its own."""
        if not isinstance(service_tier, str):
            return self.rates, self.above
        name = service_tier.lower()
        return self.service_tiers.get(_TIER_ALIASES.get(name, name), (self.rates, self.above))


@value_class
class Usage:
    """What a call used. `input_tokens` includes cache reads and writes, `output_tokens` includes reasoning and audio."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0  # of any lifetime
    cache_write_1h_tokens: int = 0  # of these, the ones kept for an hour
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    images: int = 0
    audio_ms: int = 0
    characters: int = 0
    queries: int = 0
    hosted: HostedTools = NO_HOSTED_TOOLS
    # The terms on which the provider says it served the call; empty if it does not say.
    service_tier: str = ""
    speed: str = ""
    region: str = ""
    # The ids under which the provider stored the conversation, for later calls to continue.
    stored_ids: tuple[str, ...] = ()


@value_class
class WorstCase:
    prompt_nano_usd: int
    output_nano_usd_per_token: int  # rounded up to whole nano-USD


def price_from_map(entry: Mapping[str, Any]) -> Price | None:
    """The price that an entry states; None if it states none. A stated 0 is a price: local models are free.

    A text model needs a price per token for prompts and for answers. With only one of them, or only a price per second, it
    has no price, because its tokens would cost nothing. Raises `PriceError` for a value that cannot be a price.
    """
    tiered = _tiered_rates(entry)
    other_fields: dict[str, Any] = {
        "hosted": _hosted_prices(entry),
        "factors": _read_factors(entry),
        "tokens_max": _tokens_max(entry),
    }
    if tiered:
        return Price(tiered[0][1], tiered[1:], **other_fields)
    if entry.get("mode") == "image_generation" and entry.get("output_cost_per_image_token") is not None:
        # The output of such a model is images; the few words with them cost less.
        entry = {**entry, "output_cost_per_token": entry["output_cost_per_image_token"]}
    base = _rates(entry, "")
    if entry.get("mode") in _TEXT_MODES and not _has_text_prices(entry):
        return None
    tier_rates = {
        "image_nano_usd": _nano_usd(entry, ("output_cost_per_image", "input_cost_per_image")),
        "second_nano_usd": _nano_usd(entry, ("input_cost_per_second", "output_cost_per_second", "cost_per_second")),
        "query_nano_usd": _nano_usd(entry, ("input_cost_per_query",)),
        "million_characters_nano_usd": _highest_value(
            entry, ("input_cost_per_character", "output_cost_per_character"), _PER_MTOK
        ),
    }
    if base is None and all(value is None for value in tier_rates.values()):
        return None
    rates = base or Rates(0, 0, 0, 0, 0, 0, 0, 0)
    above = _rates_above_thresholds(entry, rates, "")
    tiers = {}
    for tier in _SERVICE_TIERS:
        rates_of_tier = _rates(entry, f"_{tier}", rates)
        if rates_of_tier is not None and rates_of_tier != rates:
            tiers[tier] = (
                rates_of_tier,
                _rates_above_thresholds(entry, rates_of_tier, f"_{tier}") or _raised_to_floor(above, rates_of_tier),
            )
    other_fields |= {name: value or 0 for name, value in tier_rates.items()}
    return Price(rates, above, tiers, **other_fields)


def price_faults(entry: Mapping[str, Any]) -> list[PriceError]:
    """All fields of an entry that `price_from_map` would refuse, not only the first."""
    remaining, faults = dict(entry), []
    while True:
        try:
            price_from_map(remaining)
        except PriceError as error:
            faults.append(error)
            if remaining.pop(error.name, None) is None:
                return faults
        else:
            return faults


def cost_nano_usd(price: Price, usage: Usage, service_tier: object = None) -> int:
    """Nano-USD, at least 0, rounded up. Images are billed by token if the tokens have a price, otherwise per image."""
    base, above = price.rates_for_tier(service_tier)
    rates = _rates_for(base, above, usage.input_tokens)
    written_1h = min(usage.cache_write_1h_tokens, usage.cache_write_tokens)
    plain_input = max(
        0, usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens - usage.audio_input_tokens
    )
    plain_output = max(0, usage.output_tokens - usage.reasoning_tokens - usage.audio_output_tokens)
    per_million = (
        plain_input * rates.input
        + usage.cache_read_tokens * rates.cache_read
        + (usage.cache_write_tokens - written_1h) * rates.cache_write
        + written_1h * rates.cache_write_1h
        + usage.audio_input_tokens * rates.audio_input
        + plain_output * rates.output
        + usage.reasoning_tokens * rates.reasoning
        + usage.audio_output_tokens * rates.audio_output
        + usage.characters * price.million_characters_nano_usd
    )
    per_thousand = usage.audio_ms * price.second_nano_usd
    images = 0 if usage.output_tokens and rates.output else usage.images
    unit_nano_usd = images * price.image_nano_usd + usage.queries * price.query_nano_usd
    if usage.hosted is not NO_HOSTED_TOOLS:
        unit_nano_usd += usage.hosted.cost_nano_usd(price.hosted)
    return -(-(per_million + per_thousand * 1000 + unit_nano_usd * MILLION) // MILLION)


def worst_media_nano_usd(price: Price, tokens: int, units: Usage, service_tier: object = None) -> int:
    """An upper bound for images and audio, which models bill by token, as input or as output, or by unit."""
    worst = worst_case(price, tokens, tokens, service_tier, audio=True)
    by_token = max(worst.prompt_nano_usd, tokens * worst.output_nano_usd_per_token)
    return max(by_token, cost_nano_usd(price, units, service_tier))


def worst_case(
    price: Price, prompt_tokens: int, output_tokens_max: int, service_tier: object = None, *, audio: bool = False
) -> WorstCase:
    """An upper bound of `cost_nano_usd` for any usage within these tokens: all of the prompt may be written to a cache, all
    of the output may be reasoning, and the prompt may exceed any threshold below its size."""
    base, above = price.rates_for_tier(service_tier)
    highest_input, highest_output = _highest_input_rate(base, audio), _highest_output_rate(base, audio)
    for threshold, rates in above:
        if prompt_tokens > threshold:
            highest_input = max(highest_input, _highest_input_rate(rates, audio))
            highest_output = max(highest_output, _highest_output_rate(rates, audio))
    if not output_tokens_max:
        highest_output = 0
    return WorstCase(-(-prompt_tokens * highest_input // MILLION), -(-highest_output // MILLION))


def _highest_input_rate(rates: Rates, audio: bool) -> int:
    highest = max(rates.input, rates.cache_read, rates.cache_write, rates.cache_write_1h)
    return max(highest, rates.audio_input) if audio else highest


def _highest_output_rate(rates: Rates, audio: bool) -> int:
    highest = max(rates.output, rates.reasoning)
    return max(highest, rates.audio_output) if audio else highest


def _scaled_rates(rates: Rates, factor: int) -> Rates:
    return Rates(*(-(-getattr(rates, part.name) * factor // _FACTORS_SCALE) for part in fields(Rates)))


def _scaled_thresholds(above: tuple[tuple[int, Rates], ...], factor: int) -> tuple[tuple[int, Rates], ...]:
    return tuple((threshold, _scaled_rates(rates, factor)) for threshold, rates in above)


def _read_factors(entry: Mapping[str, Any]) -> dict[str, int]:
    """The numbers in `provider_specific_entry`; its other values are not prices."""
    entries = entry.get("provider_specific_entry")
    if not isinstance(entries, dict):
        return {}
    numbers = {name: value for name, value in entries.items() if type(value) in (int, float)}
    return {
        name.lower(): _scaled_integer(name, value, Decimal(_FACTORS_SCALE))
        for name, value in numbers.items()
        if name in _FACTORS
    }


def _hosted_prices(entry: Mapping[str, Any]) -> HostedTools:
    """Web searches cost as much as with the largest context size: few entries differ by it, and answers do not tell the size."""
    by_context = entry.get("search_context_cost_per_query")
    return HostedTools(
        searches=(_nano_usd(by_context, by_context) or 0) if isinstance(by_context, dict) else 0,
        maps=_nano_usd(entry, ("google_maps_grounding_cost_per_query",)) or 0,
        file_searches=_highest_value(entry, ("file_search_cost_per_1k_calls",), _NANO / 1000) or 0,
        sessions=_nano_usd(entry, ("code_interpreter_cost_per_session",)) or 0,
    )


def _tokens_max(entry: Mapping[str, Any]) -> int:
    input_max, output_max = entry.get("max_input_tokens"), entry.get("max_output_tokens", entry.get("max_tokens"))
    if type(input_max) is not int or input_max <= 0:
        return 0
    return (input_max + (output_max if type(output_max) is int and output_max > 0 else input_max)) * _ROUNDS_MAX


def _rates_for(base: Rates, above: Iterable[tuple[int, Rates]], prompt_tokens: int) -> Rates:
    applicable = base
    for threshold, rates in above:
        if prompt_tokens > threshold:
            applicable = rates
    return applicable


def _rates(entry: Mapping[str, Any], suffix: str, base: Rates | None = None) -> Rates | None:
    """The entry's rates with this suffix; missing ones come from `base`."""
    costs = {
        "input": _rate(entry, "input_cost_per_token" + suffix),
        "output": _rate(entry, "output_cost_per_token" + suffix),
        "cache_read": _rate(entry, "cache_read_input_token_cost" + suffix),
        "cache_write": _rate(entry, "cache_creation_input_token_cost" + suffix),
        "cache_write_1h": _rate(entry, _one_hour_cache_field(suffix)),
        "reasoning": _rate(entry, "output_cost_per_reasoning_token" + suffix),
        "audio_input": _rate(entry, "input_cost_per_audio_token" + suffix),
        "audio_output": _rate(entry, "output_cost_per_audio_token" + suffix),
    }
    if all(rate is None for rate in costs.values()):
        return None
    if base is not None:
        return _with_replaced_rates(base, costs)
    input_rate, output_rate = costs["input"] or 0, costs["output"] or 0
    cache_write_rate = costs["cache_write"]
    return Rates(
        input=input_rate,
        output=output_rate,
        cache_read=_value_or(costs["cache_read"], input_rate),
        cache_write=_value_or(cache_write_rate, input_rate),
        cache_write_1h=_value_or(costs["cache_write_1h"], _value_or(cache_write_rate, input_rate)),
        reasoning=_value_or(costs["reasoning"], output_rate),
        audio_input=_value_or(costs["audio_input"], input_rate),
        audio_output=_value_or(costs["audio_output"], output_rate),
    )


def _has_text_prices(entry: Mapping[str, Any]) -> bool:
    return all(entry.get(name) is not None for name in ("input_cost_per_token", "output_cost_per_token"))


def _tiered_rates(entry: Mapping[str, Any]) -> tuple[tuple[int, Rates], ...]:
    """The rows of a `tiered_pricing` table, ascending: the row that its prompt reaches applies to the whole call."""
    tiers = []
    for row in _table_rows(entry):
        # A row without a price for answers does not make them free: the entry's own price applies.
        merged_row = {"output_cost_per_token": entry.get("output_cost_per_token"), **row}
        try:
            rates = _rates(merged_row, "") if _has_text_prices(merged_row) else None
        except PriceError as error:
            raise PriceError(_TIERED_PRICING, f"has a row in which {error}") from None
        limits = row.get("range")
        if rates is None or not isinstance(limits, list) or not limits:
            return ()
        if isinstance(limits[0], bool) or not isinstance(limits[0], int | float) or not math.isfinite(limits[0]):
            raise PriceError(
                _TIERED_PRICING, f"has a row whose range begins with {limits[0]!r}, which is no number of tokens"
            )
        tiers.append((int(limits[0]), rates))
    return tuple(sorted(tiers, key=lambda row: row[0]))


def _table_rows(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = entry.get(_TIERED_PRICING) or []
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise PriceError(_TIERED_PRICING, "must be a list of rows, each with its prices and its range")
    return rows


def _with_replaced_rates(base: Rates, replacements: Mapping[str, int | None]) -> Rates:
    """A rate of `base` that equals its plain rate follows that rate's replacement, too."""
    changed: dict[str, int] = {name: rate for name, rate in replacements.items() if rate is not None}
    for field_name, followers in (
        ("input", ("cache_read", "cache_write", "cache_write_1h", "audio_input")),
        ("output", ("reasoning", "audio_output")),
    ):
        rate = replacements[field_name]
        for name in followers:
            if rate is not None and name not in changed and getattr(base, name) == getattr(base, field_name):
                changed[name] = rate
    return replace(base, **changed)


def _rates_above_thresholds(entry: Mapping[str, Any], base: Rates, tier: str) -> tuple[tuple[int, Rates], ...]:
    """The rates above each threshold, ascending. Names look like `input_cost_per_token_above_200k_tokens` (+ `_priority`)."""
    thresholds: set[int] = set()
    for name in entry:
        match = _THRESHOLD_SUFFIX.search(name.removesuffix(tier) if tier else name)
        if match and (not tier or name.endswith(tier)):
            thresholds.add(int(match[1]))
    rates_by_threshold = []
    for threshold in sorted(thresholds):
        rates = _rates(entry, f"_above_{threshold}k_tokens{tier}", base)
        if rates is not None:
            rates_by_threshold.append(
                (threshold * 1000 - (entry.get("litellm_provider") == _INCLUSIVE_PROVIDER), rates)
            )
    return tuple(rates_by_threshold)


def _raised_to_floor(above: tuple[tuple[int, Rates], ...], floor: Rates) -> tuple[tuple[int, Rates], ...]:
    """For a service tier without long-prompt rates: the higher of both rates, so that nothing is booked too low."""
    return tuple(
        (threshold, Rates(*(max(getattr(rates, part.name), getattr(floor, part.name)) for part in fields(Rates))))
        for threshold, rates in above
    )


def _one_hour_cache_field(suffix: str) -> str:
    """`cache_creation_input_token_cost_above_1hr` plus a threshold; service tiers have no such rate."""
    return "cache_creation_input_token_cost_above_1hr" + suffix


def _rate(entry: Mapping[str, Any], name: str) -> int | None:
    value = entry.get(name)
    return None if value is None else _scaled_integer(name, value, _PER_MTOK)


def _nano_usd(entry: Mapping[str, Any], names: Iterable[str]) -> int | None:
    return _highest_value(entry, names, _NANO)


def _highest_value(entry: Mapping[str, Any], names: Iterable[str], scale: Decimal) -> int | None:
    values = [_scaled_integer(name, entry[name], scale) for name in names if entry.get(name) is not None]
    return max(values) if values else None


def _scaled_integer(name: str, value: object, scale: Decimal) -> int:
    """Rounded up to an integer, so that a price is never booked too low."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise PriceError(name, f"must be a number of USD, not {value!r}")
    try:
        scaled = Decimal(str(value)) * scale
    except ArithmeticError:  # not a number, or one of a billion digits
        raise PriceError(name, f"must be a number of USD, not {value!r}") from None
    if not scaled.is_finite() or scaled < 0 or scaled > _RATE_MAX:
        raise PriceError(name, f"is {value!r}: a price must be from 0 to 1 USD a token")
    return int(scaled.to_integral_value(rounding="ROUND_CEILING"))


def _value_or(value: int | None, default: int) -> int:
    return default if value is None else value
