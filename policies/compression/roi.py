"""Does compressing pay? What is saved, less what the compressor costs and what the provider's prompt cache loses."""

from dataclasses import dataclass
from typing import Final

_PARTS: Final = 1_000_000  # shares as integer millionths, so that money stays integer
_TOKENS_PER_PRICE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Roi:
    """All in nano-USD; `net` is `saved` − `cache_lost` − `cost` and may be negative."""

    saved_nano_usd: int
    cache_lost_nano_usd: int
    cost_nano_usd: int

    @property
    def net_nano_usd(self) -> int:
        return self.saved_nano_usd - self.cache_lost_nano_usd - self.cost_nano_usd

    @property
    def is_worth_it(self) -> bool:
        """Something must be left over; a call without a price is worth it for its tokens, unless the compressor costs."""
        return self.net_nano_usd > 0 or (self.net_nano_usd == 0 and self.saved_nano_usd == 0)


def worth_it(
    tokens_saved: int,
    price_input_nano_usd_per_mtok: int,
    cached_share: float,
    cache_discount: float,
    compressor_cost_nano_usd: int,
    *,
    tokens_past_change: int = 0,
) -> Roi:
    """What compressing one prompt gains.

    `cached_share` (0–1) is the share of the prompt that the provider would have served from its cache at `cache_discount`
    (0–1) off: that share of the saved tokens was cheap anyway, and that share of the `tokens_past_change` that remain
    behind the first change now costs the full price. Saved money is rounded down, lost money up. Raises ValueError for
    shares outside 0–1 and negative counts.
    """
    if min(tokens_saved, price_input_nano_usd_per_mtok, compressor_cost_nano_usd, tokens_past_change) < 0:
        raise ValueError("tokens, price and cost must not be negative")
    if not (0 <= cached_share <= 1 and 0 <= cache_discount <= 1):
        raise ValueError("cached_share and cache_discount must be between 0 and 1")
    discount = round(cached_share * _PARTS) * round(cache_discount * _PARTS)
    whole = _PARTS * _PARTS
    scale = _TOKENS_PER_PRICE * whole
    saved = tokens_saved * price_input_nano_usd_per_mtok * (whole - discount) // scale
    lost = -(-tokens_past_change * price_input_nano_usd_per_mtok * discount // scale)
    return Roi(saved, lost, compressor_cost_nano_usd)
