"""Reads a complete answer, and the request behind it, in the form that the checks of `policies.answer_checks` need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.pipeline.call import Call
from policies.answer_checks import Answer
from policies.complexity import answer_schema, content_text

# How much of a request an answer is compared with; more would block the event loop for too long.
_SOURCE_CHARACTERS_MAX: Final = 20_000
# What the other protocols call the finish reasons of chat completions; all others are `stop`.
_FINISH_REASONS: Final = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "max_output_tokens": "length",
    "content_filter": "content_filter",
}


def answer_of(call: Call, body: Mapping[str, Any]) -> Answer:
    """The answer to a call of chat completions, messages or responses. Fields of a wrong type count as missing."""
    text, finish_reason, is_tool_call = _READERS[call.protocol.name](body)
    asked = call.request.body
    return Answer(
        text=text,
        finish_reason=finish_reason,
        source=_source_text(asked.get("messages") or asked.get("input")),
        wants_json=any(_object(one).get("type") == "json_object" for one in _formats(asked)),
        schema=answer_schema(asked),
        is_tool_call=is_tool_call,
    )


def is_readable(call: Call) -> bool:
    return call.protocol.name in _READERS


def _of_chat(body: Mapping[str, Any]) -> tuple[str, str, bool]:
    first = next(iter(_objects(body.get("choices"))), {})
    message = _object(first.get("message"))
    finish_reason = str(first.get("finish_reason") or "stop")
    return content_text(message.get("content")), finish_reason, bool(message.get("tool_calls"))


def _of_message(body: Mapping[str, Any]) -> tuple[str, str, bool]:
    blocks = _objects(body.get("content"))
    text = content_text([block for block in blocks if block.get("type") == "text"])
    is_tool_call = any(block.get("type") == "tool_use" for block in blocks)
    return text, _FINISH_REASONS.get(str(body.get("stop_reason")), "stop"), is_tool_call


def _of_response(body: Mapping[str, Any]) -> tuple[str, str, bool]:
    items = _objects(body.get("output"))
    text = "\n".join(content_text(item.get("content")) for item in items if item.get("type") == "message")
    reason = _object(body.get("incomplete_details")).get("reason")
    is_tool_call = any(item.get("type") in ("function_call", "custom_tool_call") for item in items)
    return text, _FINISH_REASONS.get(str(reason), "stop"), is_tool_call


_READERS: Final = {"chat": _of_chat, "messages": _of_message, "responses": _of_response}


def _source_text(turns: object) -> str:
    """The texts that an answer can be based on: all but earlier answers, truncated to the newest."""
    if isinstance(turns, str):
        return turns[-_SOURCE_CHARACTERS_MAX:]
    found: list[str] = []
    left = _SOURCE_CHARACTERS_MAX
    for turn in reversed(_objects(turns)):
        if left and turn.get("role") != "assistant":
            text = content_text(turn.get("content")) or content_text(turn.get("output"))
            found.append(text[-left:])
            left -= len(found[-1])
    return "\n".join(reversed(found))


def _formats(asked: Mapping[str, Any]) -> Sequence[object]:
    return asked.get("response_format"), _object(asked.get("text")).get("format")


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
