"""Wildcard entries of `model_list`, as in LiteLLM: one entry for all models of a provider.

openai/*      → openai/*         the client asks for openai/gpt-4o, and the provider is sent gpt-4o
*             → anthropic/*      the client asks for claude-sonnet-4-5
team-*        → openai/*         whatever the first star matches replaces the second one
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway.upstream.model_list import ModelListEntry, deployments_of
from gateway.upstream.port import Deployment
from gateway.upstream.price_map import PriceMap

STAR: Final = "*"
# Some providers put the model into the URL's path, so what clients write there must not escape it.
_NAME_PART: Final = r"((?:(?!\.\.)[A-Za-z0-9._:@/+-])+)"


@dataclass(frozen=True, slots=True)
class _ResolvedEntry:
    """A wildcard entry, resolved for the name that a client asked for."""

    model_name: str
    litellm_params: Mapping[str, Any]
    model_info: Mapping[str, Any]
    upstream: Literal["auto", "direct", "litellm"]


class Wildcards:
    """If several names match, the most specific one wins, with all of its entries."""

    def __init__(self, entries: Iterable[ModelListEntry], prices: PriceMap) -> None:
        self._prices = prices
        by_name: dict[str, list[ModelListEntry]] = {}
        for entry in entries:
            if STAR in entry.model_name:
                by_name.setdefault(entry.model_name, []).append(entry)
        longest_first = sorted(by_name, key=lambda name: len(name.replace(STAR, "")), reverse=True)
        self._patterns = [(_pattern(name), by_name[name]) for name in longest_first]

    def deployments(self, name: str) -> tuple[Deployment, ...]:
        """The deployments for a name; empty if no entry matches."""
        for pattern, entries in self._patterns:
            match = pattern.fullmatch(name)
            if match is not None:
                return deployments_of([_resolve_entry(entry, name, match.groups()) for entry in entries], self._prices)
        return ()


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(_NAME_PART.join(re.escape(part) for part in name.split(STAR)))


def _resolve_entry(entry: ModelListEntry, name: str, matched_parts: tuple[str, ...]) -> _ResolvedEntry:
    model = str(entry.litellm_params["model"])
    # Each star of the model takes what the corresponding star of the name matches. A model without a star stays as it is.
    for part in matched_parts:
        model = model.replace(STAR, part, 1)
    return _ResolvedEntry(name, {**entry.litellm_params, "model": model}, entry.model_info, entry.upstream)
