"""Checks of an answer without a model: whether it is there, complete, in the wanted form, and based on its source.

A check returns a phrase that says what is wrong, or None. It never guesses: if the request does not say what it wants,
nothing can be wrong. All checks take linear time and look at bounded parts of the answer and its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from policies.values import value_class

# Longer texts are judged by this much of their beginning.
_SOURCE_CHARACTERS = 200_000
_ANSWER_CHARACTERS = 50_000
_SCHEMA_DEPTH_MAX = 64
_FENCE = "```"
_WORD = re.compile(r"\w+")
# An answer that chooses is a word or a short phrase; with an explanation it is still below this.
_CHOICE_WORDS_MAX = 40
_VERDICT = re.compile(
    r"\b(pass(es|ed)?|fail(s|ed)?|valid|invalid|correct|incorrect|true|false|yes|no|approve[ds]?|reject(s|ed)?|accept(s|ed)?"
    r"|accurate|inaccurate|compliant|consistent|inconsistent|ok|okay|good|bad|error|errors|issue|issues|score|rating|grade)\b|\d",
    re.IGNORECASE,
)
# The share of an answer's items or words that must occur in its source.
_FROM_SOURCE_MIN = 0.5


@value_class
class Answer:
    """An answer, with what is known about its request.

    `schema` is the requested JSON schema, `wants_json` whether any JSON was requested, `choices` a closed set to choose from,
    `source` the text to work on, `finish_reason` in OpenAI's terms.
    """

    text: str
    finish_reason: str = "stop"
    source: str = ""
    wants_json: bool = False
    schema: Mapping[str, Any] | None = None
    choices: Sequence[str] = ()
    is_tool_call: bool = False


def not_empty(answer: Answer) -> str | None:
    return None if answer.text.strip() else "the answer is empty"


def complete(answer: Answer) -> str | None:
    """Not cut off by the output limit or by a filter."""
    if answer.finish_reason == "length":
        return "the answer was cut off at its output limit"
    return "the answer was cut off by a content filter" if answer.finish_reason == "content_filter" else None


def matches_schema(answer: Answer) -> str | None:
    """JSON of the requested schema, if JSON was requested. A surrounding code fence is accepted, because clients strip it."""
    if not answer.wants_json and answer.schema is None:
        return None
    try:
        value = parsed_json(answer.text)
    except ValueError as error:
        return f"the answer is not JSON: {error}"
    return None if answer.schema is None else schema_fault(value, answer.schema)


def shorter_than_source(answer: Answer) -> str | None:
    """A summary must be shorter than its source. Short sources are not judged."""
    if len(answer.source) < 400 or len(answer.text) < len(answer.source):
        return None
    return f"the summary has {len(answer.text)} characters, its source {len(answer.source)}"


def names_a_verdict(answer: Answer) -> str | None:
    """A yes or no, a score or a grade: in JSON a boolean, a number or such a word as a value; in prose such a word."""
    try:
        value = parsed_json(answer.text)
    except ValueError:
        return None if _VERDICT.search(answer.text[:_ANSWER_CHARACTERS]) else "no verdict in the answer"
    return None if any(_is_verdict(leaf) for leaf in _leaves(value)) else "no verdict in the answer's JSON"


def names_a_choice(answer: Answer) -> str | None:
    """One of the choices if they are known; otherwise something short enough to be a choice."""
    text = answer.text[:_ANSWER_CHARACTERS].strip()
    if answer.choices:
        named_choices = [
            choice for choice in answer.choices if re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text, re.I)
        ]
        return None if named_choices else f"none of the {len(answer.choices)} choices is in the answer"
    if answer.schema is not None or answer.wants_json or len(_WORD.findall(text)) <= _CHOICE_WORDS_MAX:
        return None
    return f"the answer to a choice has more than {_CHOICE_WORDS_MAX} words"


def from_source(answer: Answer) -> str | None:
    """At least half of the answer's items (in prose: of its words) should occur in the source."""
    source = _normalized(answer.source[:_SOURCE_CHARACTERS])
    items = [item for item in (_normalized(raw_item) for raw_item in _items(answer.text[:_ANSWER_CHARACTERS])) if item]
    if not source or not items:
        return None
    items_in_source = sum(item in source for item in items)
    if items_in_source >= _FROM_SOURCE_MIN * len(items):
        return None
    return f"only {items_in_source} of {len(items)} items of the answer are in what was given"


def parsed_json(text: str) -> Any:
    """The JSON of an answer, with or without a code fence. Raises ValueError."""
    bare = text.strip()
    if bare.startswith(_FENCE) and bare.endswith(_FENCE) and "\n" in bare:
        bare = bare[bare.index("\n") : -len(_FENCE)]
    try:
        return json.loads(bare)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def schema_fault(value: object, schema: Mapping[str, Any], path: str = "answer", depth: int = 0) -> str | None:
    """The first place where a value does not match a JSON schema; None if there is none.

    Supports what providers' structured outputs allow: type, enum, const, properties, required, additionalProperties, items,
    anyOf. Other keywords are ignored, and so are the targets of `$ref`.
    """
    if depth > _SCHEMA_DEPTH_MAX or "$ref" in schema:
        return None
    options = schema.get("anyOf")
    if isinstance(options, list) and options:
        faults = [schema_fault(value, option, path, depth + 1) for option in options if isinstance(option, Mapping)]
        if faults and None not in faults:
            return f"{path} is none of what may stand there"
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        return f"{path} is none of the allowed values"
    if "const" in schema and value != schema["const"]:
        return f"{path} is not the one allowed value"
    if not _is_type(value, schema.get("type")):
        return f"{path} is not of type {_type_words(schema['type'])}"
    if isinstance(value, dict):
        return _object_fault(value, schema, path, depth)
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        faults = [
            schema_fault(item, schema["items"], f"{path}[{index}]", depth + 1) for index, item in enumerate(value)
        ]
        return next((fault for fault in faults if fault is not None), None)
    return None


def _object_fault(value: Mapping[str, Any], schema: Mapping[str, Any], path: str, depth: int) -> str | None:
    required, properties = schema.get("required"), schema.get("properties")
    missing = [name for name in required if name not in value] if isinstance(required, list) else []
    if missing:
        return f"{path} lacks {missing[0]}"
    if not isinstance(properties, Mapping):
        return None
    unknown = [name for name in value if name not in properties]
    if unknown and schema.get("additionalProperties") is False:
        return f"{path} has {unknown[0]}, which the schema does not"
    for name, property_schema in properties.items():
        if name in value and isinstance(property_schema, Mapping):
            fault = schema_fault(value[name], property_schema, f"{path}.{name}", depth + 1)
            if fault is not None:
                return fault
    return None


def _is_type(value: object, type_names: object) -> bool:
    if type_names is None:
        return True
    return any(
        _is_one_type(value, type_name) for type_name in (type_names if isinstance(type_names, list) else [type_names])
    )


def _is_one_type(value: object, type_name: object) -> bool:
    if type_name == "null":
        return value is None
    if isinstance(value, bool):  # a bool is an int in Python
        return type_name == "boolean"
    if type_name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    kinds: Mapping[object, Any] = {"number": int | float, "string": str, "object": dict, "array": list}
    return type_name != "boolean" and (type_name not in kinds or isinstance(value, kinds[type_name]))


def _type_words(type_names: object) -> str:
    return " or ".join(map(str, type_names)) if isinstance(type_names, list) else str(type_names)


def _leaves(value: Any) -> list[Any]:
    leaves, waiting = [], [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
        else:
            leaves.append(node)
    return leaves


def _is_verdict(leaf: object) -> bool:
    return isinstance(leaf, bool | int | float) or (isinstance(leaf, str) and _VERDICT.search(leaf) is not None)


def _items(text: str) -> list[str]:
    """The values of a JSON answer, the lines of a list, or the longer words of prose."""
    try:
        leaves = _leaves(parsed_json(text))
        return [str(leaf) for leaf in leaves if isinstance(leaf, str | int) and not isinstance(leaf, bool)]
    except ValueError:
        lines = [line.strip(" \t-*•0123456789.)") for line in text.splitlines()]
        non_empty_lines = [line for line in lines if line]
        return non_empty_lines if len(non_empty_lines) > 1 else [word for word in _WORD.findall(text) if len(word) > 3]


def _normalized(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
