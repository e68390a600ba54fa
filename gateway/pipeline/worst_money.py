"""What a request may cost at most, on the model that was chosen for it or on another one."""

from __future__ import annotations

from dataclasses import replace

from gateway.wire.protocol import Request
from policies.pricing import Price, WorstCase, worst_case, worst_media_nano_usd
from policies.tokens import PromptCount


def worst_money(request: Request, price: Price | None, count: PromptCount, output_tokens_max: int) -> WorstCase:
    """Nothing where there is no price. Images and sounds that are billed as such are in the prompt's share."""
    if price is None:
        return WorstCase(0, 0)
    tier = request.body.get("service_tier")
    worst = worst_case(price, count.reserve_tokens, output_tokens_max, tier, audio=request.has_audio)
    if not request.media_tokens and not request.has_units:
        return worst
    media = worst_media_nano_usd(price, request.media_tokens, request.units(), tier)
    return replace(worst, prompt_nano_usd=worst.prompt_nano_usd + media)
