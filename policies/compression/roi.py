"""Whether compression pays: the savings, less the compressor's cost and the lost benefit of the provider's prompt cache."""

from policies.values import value_class

_MILLION = 1_000_000


@value_class
class Roi:
    """All in nano-USD; `net` is `saved` − `cache_lost` − `cost` and may be negative.

    `cache_lost` is negative if the provider has more of the shorter prompt in its cache.
    """

    saved_nano_usd: int
    cache_lost_nano_usd: int
    cost_nano_usd: int

    @property
    def net_nano_usd(self) -> int:
        return self.saved_nano_usd - self.cache_lost_nano_usd - self.cost_nano_usd

    @property
    def is_worth_it(self) -> bool:
        """Whether there is a gain. A call without a price is always worth it for its tokens, unless the compressor costs money."""
        return self.net_nano_usd > 0 or (self.net_nano_usd == 0 and self.saved_nano_usd == 0)


def compression_roi(
    tokens_saved: int,
    price_input_nano_usd_per_mtok: int,
    price_cached_nano_usd_per_mtok: int | None = None,
    *,
    cached_tokens_before: int = 0,
    cached_tokens_after: int = 0,
    compressor_cost_nano_usd: int = 0,
) -> Roi:
    """The gain of compressing one prompt.

    The provider would serve `cached_tokens_before` of the original from its cache, and `cached_tokens_after` of the shorter
    prompt. Each costs `price_cached…` (None: no discount) instead of the full price, so the loss is that difference for each
    token that is no longer served from the cache. Savings are rounded down, losses up. Raises ValueError for negative
    figures.
    """
    cached = price_input_nano_usd_per_mtok if price_cached_nano_usd_per_mtok is None else price_cached_nano_usd_per_mtok
    inputs = (tokens_saved, price_input_nano_usd_per_mtok, cached, compressor_cost_nano_usd)
    if min(*inputs, cached_tokens_before, cached_tokens_after) < 0:
        raise ValueError("tokens, prices and cost must not be negative")
    discount = max(0, price_input_nano_usd_per_mtok - cached)
    saved = tokens_saved * price_input_nano_usd_per_mtok // _MILLION
    lost = -(-(cached_tokens_before - cached_tokens_after) * discount // _MILLION)
    return Roi(saved, lost, compressor_cost_nano_usd)
