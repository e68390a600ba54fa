"""How demanding one step is, from 0 to 10, by what its request asks and carries. `routing` maps it to a tier.

    effective  =  0.6 × the agent's intensity + 0.4 × the step's complexity      for an unknown agent: the step's alone

Six parts are scored and weighted by the step's intent. Only sizes, counts and structure are read: a prompt that calls itself
simple, or asks for the best model, changes nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from policies.classify.instruction import instruction_part
from policies.intents import Intent, parse_intent
from policies.values import value_class

SCORE_MAX: Final = 10.0
_AIS_SHARE: Final = 0.6
# No ordinary step is high in all six parts at once, so the plain sum stays below the tiers that a human reader would choose.
# `bench/eval_routing.py`: agreement with labelled steps rises from 71 % to 90 % with this factor, with none routed too high.
_SCORE_FACTOR: Final = 1.25
# Enough to tell a long context from a short one; a request may have 20,000 messages.
_TEXTS_MAX: Final = 2_000
_FIELDS_MAX: Final = 200
_SCHEMA_DEPTH: Final = 12


@value_class
class StepFeatures:
    """Features of a request that can be read without understanding it. All are ≥ 0."""

    instruction_chars: int = 0  # what is asked, without the data it refers to
    data_chars: int = 0  # everything else: pasted text, tool results, history
    conditions: int = 0  # words such as "if", "unless", "depending on" in the instruction
    context_turns: int = 0  # messages before the last question
    demands: int = 0  # list items in the instruction
    output_fields: int = 0  # in the answer's schema
    output_tokens_max: int | None = None  # the client's cap on the answer
    reasoning_effort: str | None = None


@value_class
class StepComplexity:
    """`score` and the six `parts` are from 0 to 10."""

    score: float
    parts: Mapping[str, float]

    @property
    def reason(self) -> str:
        """The score and its two highest parts, in words."""
        largest_parts = sorted(self.parts.items(), key=lambda part: -part[1])[:2]
        return (
            f"step complexity {self.score:.1f} ("
            + ", ".join(f"{name} {score:.1f}" for name, score in largest_parts)
            + ")"
        )


PARTS: Final = ("prompt", "data", "conditions", "context", "reasoning", "output")
_DEFAULT_WEIGHTS: Final = (0.20, 0.15, 0.15, 0.15, 0.20, 0.15)
WEIGHTS: Final[Mapping[Intent, tuple[float, ...]]] = MappingProxyType(
    dict.fromkeys(Intent, _DEFAULT_WEIGHTS)
    | {
        Intent.GENERATE: (0.15, 0.10, 0.15, 0.15, 0.30, 0.15),
        Intent.TRANSFORM: (0.15, 0.30, 0.10, 0.15, 0.15, 0.15),
        Intent.CONDITIONAL: (0.15, 0.10, 0.30, 0.15, 0.20, 0.10),
    }
)
# How much thought an ordinary step of the intent takes, and how hard its answer is to write.
REASONING: Final[Mapping[Intent, float]] = MappingProxyType(
    {
        Intent.GENERATE: 8,
        Intent.CONDITIONAL: 6,
        Intent.VALIDATE: 6,
        Intent.AGGREGATE: 5,
        Intent.ENRICH: 5,
        Intent.TRANSFORM: 4,
        Intent.SUMMARIZE: 4,
        Intent.EXTRACT: 3,
        Intent.FILTER: 3,
        Intent.SEND: 2,
    }
)
OUTPUT: Final[Mapping[Intent, float]] = MappingProxyType(
    {
        Intent.GENERATE: 7,
        Intent.ENRICH: 6,
        Intent.VALIDATE: 6,
        Intent.AGGREGATE: 6,
        Intent.EXTRACT: 5,
        Intent.SUMMARIZE: 5,
        Intent.TRANSFORM: 5,
        Intent.FILTER: 4,
        Intent.SEND: 3,
        Intent.CONDITIONAL: 2,
    }
)

Curve = tuple[tuple[float, float], ...]
# The original system jumped at these points; we interpolate, so that one more character changes little.
_PROMPT_CURVE: Final[Curve] = ((0, 0), (200, 2), (500, 5), (1_000, 7), (2_500, 9), (5_000, 10))
_DATA_CURVE: Final[Curve] = ((0, 0), (1_000, 2), (10_000, 5), (50_000, 8), (200_000, 10))
_CONDITIONS_CURVE: Final[Curve] = ((0, 0), (2, 3), (5, 6), (10, 9), (20, 10))
_CONTEXT_CURVE: Final[Curve] = ((0, 0), (2, 2), (5, 5), (10, 7), (20, 9), (40, 10))
# A few words of instruction ask for less thought than the intent usually takes, a list of demands for more.
_REASONING_BY_CHARS: Final[Curve] = ((0, 0.4), (60, 0.5), (300, 0.85), (600, 1.0), (2_000, 1.15))
_REASONING_BY_DEMANDS: Final[Curve] = ((0, 0), (3, 0.05), (8, 0.2), (20, 0.35))
_EFFORT_FACTORS: Final = MappingProxyType({"none": 0.6, "minimal": 0.7, "low": 0.85, "high": 1.2, "xhigh": 1.3})
_OUTPUT_BY_TOKENS: Final[Curve] = ((0, 0.2), (16, 0.3), (256, 0.7), (1_024, 1.0), (4_096, 1.2), (16_384, 1.4))
_OUTPUT_BY_FIELDS: Final[Curve] = ((0, 0.0), (1, 0.3), (4, 0.7), (10, 1.1), (30, 1.6))

_CONDITION: Final = re.compile(
    r"\b(?:if|unless|otherwise|else|except|whether|depending on|in case|provided that|as long as|only when|instead of"
    r"|wenn|falls|sofern|sonst|außer|sinon|sauf|à moins|si|salvo|excepto|oppure|altrimenti)\b",
    re.IGNORECASE,
)
_LIST_ITEM: Final = re.compile(r"^[ \t]{0,8}(?:[-*•+]|\(?\d{1,2}[.)])[ \t]", re.MULTILINE)


def features_of(body: Mapping[str, Any]) -> StepFeatures:
    """Parse a request body of chat completions, messages, responses or completions. Fields of a wrong type count as missing."""
    system, earlier, newest = _split_texts(body)
    instructions = [instruction_part(text) for text in (system, newest) if text]
    instruction_chars = sum(map(len, instructions))
    return StepFeatures(
        instruction_chars=instruction_chars,
        data_chars=max(0, len(system) + len(newest) + sum(map(len, earlier)) - instruction_chars),
        conditions=sum(len(_CONDITION.findall(text)) for text in instructions),
        context_turns=len(earlier),
        demands=sum(len(_LIST_ITEM.findall(text)) for text in instructions),
        output_fields=_schema_field_count(body),
        output_tokens_max=_output_tokens_max(body),
        reasoning_effort=_effort(body),
    )


def step_complexity(features: StepFeatures, intent: str) -> StepComplexity:
    """The weighted score of the six parts, × 1.25. Raises IntentClassificationError for an unknown intent."""
    of = parse_intent(intent)
    parts = {
        "prompt": _interpolated(_PROMPT_CURVE, features.instruction_chars),
        "data": _interpolated(_DATA_CURVE, features.data_chars),
        "conditions": _interpolated(_CONDITIONS_CURVE, features.conditions),
        "context": _interpolated(_CONTEXT_CURVE, features.context_turns),
        "reasoning": min(SCORE_MAX, REASONING[of] * _reasoning_factor(features)),
        "output": min(SCORE_MAX, OUTPUT[of] * _output_factor(features)),
    }
    score = sum(weight * parts[name] for weight, name in zip(WEIGHTS[of], PARTS, strict=True))
    return StepComplexity(min(SCORE_MAX, _SCORE_FACTOR * score), MappingProxyType(parts))


def effective_complexity(ais: float | None, step: float) -> float:
    """0.6 × `ais` + 0.4 × `step`, both 0 to 10; `step` alone if the agent is unknown (None).

    With the neutral score instead, all calls of unknown agents would be between 3.0 and 7.0, mostly in the balanced tier.
    """
    return step if ais is None else _AIS_SHARE * ais + (1 - _AIS_SHARE) * step


def _reasoning_factor(features: StepFeatures) -> float:
    by_size = _interpolated(_REASONING_BY_CHARS, features.instruction_chars) + _interpolated(
        _REASONING_BY_DEMANDS, features.demands
    )
    return by_size * _EFFORT_FACTORS.get(features.reasoning_effort or "", 1.0)


def _output_factor(features: StepFeatures) -> float:
    """The answer's schema says most, then the client's cap, then the length of the instruction."""
    if features.output_fields:
        return _interpolated(_OUTPUT_BY_FIELDS, features.output_fields)
    if features.output_tokens_max is not None:
        return _interpolated(_OUTPUT_BY_TOKENS, features.output_tokens_max)
    return _interpolated(_REASONING_BY_CHARS, features.instruction_chars)


def _interpolated(curve: Curve, value: float) -> float:
    """Linear between the points of the curve, constant beyond its end."""
    index = bisect_right(curve, (value, float("inf")))
    if index == len(curve):
        return curve[-1][1]
    (low, low_score), (high, high_score) = curve[index - 1], curve[index]
    return low_score + (high_score - low_score) * (value - low) / (high - low)


def _split_texts(body: Mapping[str, Any]) -> tuple[str, list[str], str]:
    """The system prompt, the texts before the last question, and that question."""
    system = [content_text(body.get("system")), content_text(body.get("instructions"))]
    turns: list[tuple[str, str]] = []
    for role, text in _messages(body):
        if role in ("system", "developer"):
            system.append(text)
        else:
            turns.append((role, text))
    instruction_numbers = [number for number, (role, text) in enumerate(turns) if role == "user" and text]
    newest = instruction_numbers[-1] if instruction_numbers else len(turns)
    earlier = [text for number, (_, text) in enumerate(turns) if number != newest]
    return "\n\n".join(text for text in system if text), earlier, turns[newest][1] if instruction_numbers else ""


def _messages(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("messages", "input", "prompt"):
        items = body.get(name)
        if isinstance(items, str) and name != "messages":
            yield "user", items
        for item in items[-_TEXTS_MAX:] if isinstance(items, list) else ():
            if isinstance(item, Mapping):
                yield _role(item), content_text(item.get("content")) or content_text(item.get("output"))
            elif isinstance(item, str):
                yield "user", item


def _role(message: Mapping[str, Any]) -> str:
    """Tool results have the role `user` in Anthropic's protocol, and no role in Responses."""
    content = message.get("content")
    parts = content[:_TEXTS_MAX] if isinstance(content, list) else ()
    if any(isinstance(part, Mapping) and part.get("type") == "tool_result" for part in parts):
        return "tool"
    return str(message.get("role") or "tool")


def content_text(content: Any) -> str:
    """The text of a message's content: a string, parts with `text`, or tool results with `content`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part for part in islice(content, _TEXTS_MAX) if isinstance(part, Mapping)]
    return "\n".join(text for part in parts if (text := _part_text(part)))


def _part_text(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    if isinstance(text, str):
        return text
    inner = part.get("content")
    if isinstance(inner, list):
        inner = "\n".join(
            str(inner_part.get("text", "")) for inner_part in inner[:_TEXTS_MAX] if isinstance(inner_part, Mapping)
        )
    return inner if isinstance(inner, str) else ""


def _output_tokens_max(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = body.get(name)
        if type(value) is int and value >= 0:
            return value
    return None


def _effort(body: Mapping[str, Any]) -> str | None:
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, Mapping) else body.get("reasoning_effort")
    return effort if isinstance(effort, str) else None


def answer_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON schema of the answer, as chat completions, Responses or Anthropic's `output_format` specify it."""
    inner = (body.get(name) for name in ("text", "output_config"))
    formats = (part.get("format") for part in inner if isinstance(part, Mapping))
    for response_format in (body.get("response_format"), *formats, body.get("output_format")):
        if isinstance(response_format, Mapping):
            wrapped = response_format.get("json_schema")
            schema = (wrapped if isinstance(wrapped, Mapping) else response_format).get("schema")
            if isinstance(schema, Mapping):
                return schema
    return None


def _schema_field_count(body: Mapping[str, Any]) -> int:
    schema = answer_schema(body)
    return (
        0
        if schema is None
        else min(_FIELDS_MAX, sum(1 for _ in islice(_field_names(schema, _SCHEMA_DEPTH), _FIELDS_MAX)))
    )


def _field_names(schema: Mapping[str, Any], depth: int) -> Iterator[str]:
    """The names of all properties, including those of nested objects and array items."""
    if depth == 0:
        return
    properties = schema.get("properties")
    fields = properties if isinstance(properties, Mapping) else {}
    yield from fields
    items = schema.get("items")
    inner: Sequence[Any] = [*fields.values(), items]
    for nested in inner:
        if isinstance(nested, Mapping):
            yield from _field_names(nested, depth - 1)
