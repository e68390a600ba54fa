"""JSON as a provider would write it into a prompt: compact, with unescaped Unicode."""

import json
from collections.abc import Mapping
from typing import Any


def compact_json(value: Any) -> str:
    """The shortest JSON of a decoded value. Never raises, whatever the depth."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (RecursionError, ValueError):
        return _flat_text(value)


def as_object(value: Any) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one, so that callers read fields without checking types."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """A string unchanged, "" for null, and the JSON of anything else."""
    if isinstance(value, str):
        return value
    return "" if value is None else compact_json(value)


def _flat_text(value: Any) -> str:
    # Nested beyond the encoder's recursion limit: all leaves, each with four characters for its punctuation.
    pending, leaves = [value], []
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        else:
            leaves.append(str(item))
        leaves.append('"[]"')
    return ",".join(leaves)
