"""Requests that are plain JSON already, and need not be made so.

The OpenAI client, by which LiteLLM reaches a hundred providers, holds every message of a request against every kind of message
that it knows, to find Python's objects in it and fields that are spelled otherwise on the wire, of which a chat request has
none. That takes the event loop a tenth of a small call, and more with every turn of a conversation.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import orjson

_NO_OBJECTS: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def leave_alone() -> None:
    """Once a process, after LiteLLM is imported. What LiteLLM made objects of is still transformed."""
    completions: Any = importlib.import_module("openai.resources.chat.completions.completions")
    transform = completions.async_maybe_transform
    if getattr(transform, "is_sparing", False):
        return
    is_given: Callable[[Any], bool] = importlib.import_module("openai._utils").is_given

    async def sparing_transform(fields: Any, expected_type: Any) -> Any:
        given = {name: value for name, value in fields.items() if is_given(value)}
        return given if _is_plain(given) else await transform(fields, expected_type)

    sparing_transform.is_sparing = True  # type: ignore[attr-defined]
    completions.async_maybe_transform = sparing_transform


def _is_plain(fields: Any) -> bool:
    try:
        orjson.dumps(fields, option=_NO_OBJECTS)
    except TypeError:  # orjson's for what it does not know
        return False
    return True
