"""Checks of `model_list` entries. LiteLLM's many own keys may have any value; those that are read here may not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gateway.config.faults import Fault
from gateway.upstream.price_map import is_price
from policies.pricing import price_faults

_TOKENS: Final = ("max_input_tokens", "max_output_tokens", "max_tokens")
_QUALITY_MAX: Final = 10


def faults_of_params(params: Mapping[str, Any]) -> list[Fault]:
    """Faults of `litellm_params`."""
    model = params.get("model")
    has_model = isinstance(model, str) and bool(model)
    missing: list[Fault] = [(("model",), "is missing: the provider's model, such as openai/gpt-4o-mini")]
    return [*([] if has_model else missing), *_prices(params)]


def faults_of_info(info: Mapping[str, Any]) -> list[Fault]:
    """Faults of `model_info`. Null counts as missing."""
    stated = {key: value for key, value in info.items() if value is not None}
    return [*_prices(stated), *_abilities(stated)]


def _prices(entry: Mapping[str, Any]) -> Iterator[Fault]:
    for fault in price_faults({key: value for key, value in entry.items() if is_price(str(key))}):
        yield (fault.name,), fault.fault


def _abilities(info: Mapping[str, Any]) -> Iterator[Fault]:
    for key in _TOKENS:
        if key in info and not _is_number(info[key], 1):
            yield (key,), f"must be a number of tokens, not {info[key]!r}"
    ttl = info.get("cache_ttl_seconds", 0)
    if not _is_number(ttl, 0) or not isinstance(ttl, int):
        yield ("cache_ttl_seconds",), f"must be a whole number of seconds, not {ttl!r}"
    quality = info.get("quality", 0)
    if not _is_number(quality, 0) or quality > _QUALITY_MAX:
        yield ("quality",), f"must be a number from 0 to {_QUALITY_MAX}, not {quality!r}"
    for key, value in info.items():
        if str(key).startswith("supports_") and not isinstance(value, bool):
            yield (key,), f"must be true or false, not {value!r}"


def _is_number(value: Any, minimum: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value < math.inf
