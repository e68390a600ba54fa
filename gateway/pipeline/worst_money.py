"""What a request may cost at most, on the model that was chosen for it or on another one, and what it did cost."""

from __future__ import annotations

from dataclasses import replace

from gateway.wire.protocol import Request
from policies.pricing import (
    NOTHING_HOSTED,
    Price,
    Usage,
    WorstCase,
    cost_nano_usd,
    worst_case,
    worst_media_nano_usd,
)
from policies.tokens import PromptCount


def worst_money(request: Request, price: Price | None, count: PromptCount, output_tokens_max: int) -> WorstCase:
    """Nothing where there is no price. Images and sounds that are billed as such are in the prompt's share."""
    if price is None:
        return WorstCase(0, 0)
    body = request.body
    tier = body.get("service_tier")
    if price.factors:
        price = price.at(body.get("speed"), body.get("inference_geo"))
    worst = worst_case(price, count.reserve_tokens, output_tokens_max, tier, audio=request.has_audio)
    if request.hosted_max is not NOTHING_HOSTED:
        hosted = request.hosted_max.cost_nano_usd(price.hosted)
        worst = replace(worst, prompt_nano_usd=worst.prompt_nano_usd + hosted)
    if not request.media_tokens and not request.has_units:
        return worst
    media = worst_media_nano_usd(price, request.media_tokens, request.units(), tier)
    return replace(worst, prompt_nano_usd=worst.prompt_nano_usd + media)


def booked_money(request: Request, price: Price | None, usage: Usage) -> int:
    """Nano-USD, on the terms that the answer names; on those of the request where it names none."""
    if price is None:
        return 0
    body = request.body
    if price.factors:
        price = price.at(usage.speed or body.get("speed"), usage.region or body.get("inference_geo"))
    if request.hosted_least is not NOTHING_HOSTED:
        usage = replace(usage, hosted=usage.hosted.at_least(request.hosted_least))
    return cost_nano_usd(price, usage, usage.service_tier or body.get("service_tier"))


def believed(request: Request, price: Price | None, usage: Usage | None) -> Usage | None:
    """A provider's figures; None where they are many times what the model can read and write: our own count stands then."""
    if usage is None or price is None or not price.tokens_max or not request.has_output:
        return usage
    most = price.tokens_max * request.choices
    return usage if usage.input_tokens <= most and usage.output_tokens <= most else None
