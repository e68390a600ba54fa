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
    request_body = call.request.body
    return Answer(
        text=text,
        finish_reason=finish_reason,
        source=_source_text(request_body.get("messages") or request_body.get("input")),
        wants_json=any(
            _object(response_format).get("type") == "json_object" for response_format in _formats(request_body)
        ),
        schema=answer_schema(request_body),
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
    texts: list[str] = []
    remaining_characters = _SOURCE_CHARACTERS_MAX
    for turn in reversed(_objects(turns)):
        if remaining_characters and turn.get("role") != "assistant":
            text = content_text(turn.get("content")) or content_text(turn.get("output"))
            texts.append(text[-remaining_characters:])
            remaining_characters -= len(texts[-1])
    return "\n".join(reversed(texts))


def _formats(body: Mapping[str, Any]) -> Sequence[object]:
    return body.get("response_format"), _object(body.get("text")).get("format")


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
