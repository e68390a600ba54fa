"""Prices and limits of the configured models, each looked up once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.upstream.port import Deployment
from gateway.upstream.price_map import ModelEntry, PriceMap
from policies.pricing import Price, PriceError, price_from_map

# Far more than anybody configures. Only entries with a `*` reach it, because clients choose their names.
_KNOWN_MAX: Final = 20_000


@dataclass(frozen=True, slots=True)
class _CachedEntry:
    entry: ModelEntry
    price: Price | None
    output_tokens_max: int | None


class PriceBook:
    """Caches by the deployment's id, which is stable within a configuration."""

    def __init__(self, price_map: PriceMap) -> None:
        self._map = price_map
        self._cache: dict[str, _CachedEntry] = {}

    def check(self, deployments: Sequence[Deployment], *, has_stars: bool = False) -> list[str]:
        """Faults in prices, one sentence each: a bad price stops the start, not a call. `has_stars`: clients may name models
        that are not listed, so the map is kept for later."""
        faults = []
        for deployment in deployments:
            try:
                self._look_up(deployment)
            except PriceError as error:
                faults.append(f"model_list {deployment.name!r}: {error}")
        if not has_stars:
            self._map.forget()
        return faults

    def price(self, deployment: Deployment) -> Price | None:
        """None: the model has no known price."""
        return self._look_up(deployment).price

    def output_tokens_max(self, deployment: Deployment) -> int | None:
        return self._look_up(deployment).output_tokens_max

    def entry(self, deployment: Deployment) -> ModelEntry:
        return self._look_up(deployment).entry

    def _look_up(self, deployment: Deployment) -> _CachedEntry:
        cached = self._cache.get(deployment.id)
        if cached is None:
            if len(self._cache) >= _KNOWN_MAX:
                self._cache.clear()
            entry = self._map.entry(deployment)
            cached = self._cache[deployment.id] = _CachedEntry(
                entry, price_from_map(entry.raw), entry.max_output_tokens
            )
        return cached
