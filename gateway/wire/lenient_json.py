"""JSON that orjson refuses, but providers write and clients read: NaN, numbers beyond a double, and half a surrogate pair, which a
server sends that cuts a text between the halves of an emoji. Slow, and meant for what orjson has failed on."""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(data: bytes) -> Any:
    """Raises ValueError."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def dumps(value: Any) -> bytes:
    """By orjson if it can. Raises TypeError for what JSON cannot hold."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value).encode()
