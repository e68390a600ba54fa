"""Skips the OpenAI client's conversion of requests that are already plain JSON.

That client, through which LiteLLM reaches a hundred providers, matches every message against every message type it knows, to
find Python objects and fields with other names on the wire. A chat request has neither. The conversion takes a tenth of a small
call's time on the event loop, and more with every turn of a conversation.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import orjson

_PLAIN_JSON_ONLY: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def skip_conversion() -> None:
    """Call once per process, after LiteLLM is imported. Requests in which LiteLLM has put objects are still converted."""
    completions: Any = importlib.import_module("openai.resources.chat.completions.completions")
    transform = completions.async_maybe_transform
    if getattr(transform, "skips_plain_requests", False):
        return
    is_given: Callable[[Any], bool] = importlib.import_module("openai._utils").is_given

    async def transform_unless_plain(fields: Any, expected_type: Any) -> Any:
        set_fields = {name: value for name, value in fields.items() if is_given(value)}
        return set_fields if _is_plain(set_fields) else await transform(fields, expected_type)

    transform_unless_plain.skips_plain_requests = True  # type: ignore[attr-defined]
    completions.async_maybe_transform = transform_unless_plain


def _is_plain(fields: Any) -> bool:
    try:
        orjson.dumps(fields, option=_PLAIN_JSON_ONLY)
    except TypeError:  # raised by orjson for objects it cannot serialize
        return False
    return True
