"""What the schema of an answer says about the intent: its keys, its types, and whether it is a closed choice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from policies.classify.lexicon import Lexicon

SCHEMA_CHARS = 20_000
FIELDS_MAX = 60
_WRAPPERS = ("schema", "json_schema", "properties", "structured")
_BOOLEANS = ("bool", "boolean")
_NUMBERS = ("int", "integer", "number", "float")


def schema_features(response_format: str | None, words: Lexicon) -> dict[str, float]:
    """Features of a response format: a JSON schema, or a plain mapping of names to types; empty without one."""
    if not response_format:
        return {}
    if not response_format.lstrip().startswith("{"):
        return {"~json": 1.0}
    fields = _fields(response_format[:SCHEMA_CHARS])
    if not fields:
        return {"~json": 1.0}
    return {"~schema": 1.0} | _key_features(fields, words) | _shape_features(fields)


def _key_features(fields: list[tuple[str, str, bool]], words: Lexicon) -> dict[str, float]:
    features: dict[str, float] = {}
    for name, _, _ in fields[:20]:
        key = name.lower()
        whole_key_intents = words.keys.get(key)
        intents = whole_key_intents or words.keys.get(key.rsplit("_", 1)[-1]) or ()
        for intent in intents:
            features[f"j:{intent}"] = min(
                1.5, features.get(f"j:{intent}", 0.0) + (1.0 if whole_key_intents else 0.6) / len(fields) ** 0.5
            )
        features[f"jk={key[:30]}"] = 0.7
    return features


def _shape_features(fields: list[tuple[str, str, bool]]) -> dict[str, float]:
    kinds = [kind for _, kind, _ in fields]
    features = {f"j#{'1' if len(fields) == 1 else '2-3' if len(fields) < 4 else '4+'}": 1.0}
    if any(closed for _, _, closed in fields):
        features["j_enum"] = 1.0
    if any(kind in _BOOLEANS for kind in kinds):
        features["j_bool_only" if all(kind in _BOOLEANS for kind in kinds) else "j_bool"] = 1.0
    if any(kind in _NUMBERS for kind in kinds):
        features["j_number"] = 1.0
    if any(kind.startswith(("list", "array")) for kind in kinds):
        features["j_list"] = 1.0
    return features


def _fields(text: str) -> list[tuple[str, str, bool]]:
    """Name, type and whether it is a closed set, for each field; empty if the text is not JSON."""
    try:
        schema = json.loads(text)
    except ValueError:
        return []
    except RecursionError:  # thousands of nested brackets are not a schema
        return []
    fields: list[tuple[str, str, bool]] = []
    for field in _walk(schema, 0):
        fields.append(field)
        if len(fields) == FIELDS_MAX:
            break
    return fields


def _walk(node: Any, depth: int) -> Iterator[tuple[str, str, bool]]:
    if depth > 5 or not isinstance(node, dict):
        return
    wrapped = next((node[wrapper] for wrapper in _WRAPPERS if isinstance(node.get(wrapper), dict | list)), None)
    if isinstance(wrapped, list):
        for item in wrapped[:FIELDS_MAX]:
            if isinstance(item, dict) and isinstance(item.get("key"), str):
                yield item["key"], str(item.get("type", "")).lower(), bool(item.get("enumValues"))
        return
    if wrapped is not None:
        yield from _walk(wrapped, depth + 1)
        return
    for name, kind in list(node.items())[:FIELDS_MAX]:
        if isinstance(kind, str):
            if name not in ("type", "name", "description", "title", "$schema") or depth:
                yield str(name), kind.lower(), kind.lower().startswith(("enum", "literal"))
        elif isinstance(kind, dict):
            yield from _field(str(name), kind, depth)


def _field(name: str, kind: dict[str, Any], depth: int) -> Iterator[tuple[str, str, bool]]:
    yield name, str(kind.get("type", "object")).lower(), "enum" in kind or "const" in kind
    inner = kind.get("items")
    if isinstance(inner, dict) and isinstance(inner.get("properties"), dict):
        yield from _walk(inner, depth + 2)
