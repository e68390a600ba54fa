"""The upper bound of what a request may cost, on its own model or another one, and what it has cost in the end."""

from __future__ import annotations

from dataclasses import replace

from gateway.wire.protocol import Request
from policies.pricing import (
    NO_HOSTED_TOOLS,
    Price,
    Usage,
    WorstCase,
    cost_nano_usd,
    worst_case,
    worst_media_nano_usd,
)
from policies.tokens import PromptCount


def worst_case_cost(request: Request, price: Price | None, count: PromptCount, output_tokens_max: int) -> WorstCase:
    """Zero without a price. Images and audio that are billed per unit are part of the prompt's cost."""
    if price is None:
        return WorstCase(0, 0)
    body = request.body
    tier = body.get("service_tier")
    if price.factors:
        price = price.with_factors(body.get("speed"), body.get("inference_geo"))
    worst = worst_case(price, count.reserve_tokens, output_tokens_max, tier, audio=request.has_audio)
    if request.hosted_max is not NO_HOSTED_TOOLS:
        hosted = request.hosted_max.cost_nano_usd(price.hosted)
        worst = replace(worst, prompt_nano_usd=worst.prompt_nano_usd + hosted)
    if not request.media_tokens and not request.has_units:
        return worst
    media = worst_media_nano_usd(price, request.media_tokens, request.units(), tier)
    return replace(worst, prompt_nano_usd=worst.prompt_nano_usd + media)


def booked_cost(request: Request, price: Price | None, usage: Usage) -> int:
    """The cost in nano-USD. Tier, speed and region are those that the answer reports, or else those of the request."""
    if price is None:
        return 0
    body = request.body
    if price.factors:
        price = price.with_factors(usage.speed or body.get("speed"), usage.region or body.get("inference_geo"))
    if request.hosted_min is not NO_HOSTED_TOOLS:
        usage = replace(usage, hosted=usage.hosted.unitwise_max(request.hosted_min))
    return cost_nano_usd(price, usage, usage.service_tier or body.get("service_tier"))


def plausible_usage(request: Request, price: Price | None, usage: Usage | None) -> Usage | None:
    """The provider's usage; None if it is many times what the model can read and write: our own count is used then."""
    if usage is None or price is None or not price.tokens_max or not request.has_output:
        return usage
    tokens_max = price.tokens_max * request.choices
    return usage if usage.input_tokens <= tokens_max and usage.output_tokens <= tokens_max else None
