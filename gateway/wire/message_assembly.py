"""Assembles an Anthropic message from the events of its stream."""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.errors import StreamBroken
from gateway.wire.events import append_text, index_of, kind_of, object_in, objects_of
from gateway.wire.openai_errors import upstream_event_error

# The delta types that append text, and the field of the block that each appends to.
_GROWING: Final = {"text_delta": "text", "thinking_delta": "thinking", "compaction_delta": "content"}
_OUTSIDE_MESSAGE: Final = frozenset({"type", "delta", "usage"})


def assemble_answer(pieces: bytes) -> dict[str, Any]:
    """The buffered answer that is equivalent to the stream. Raises `StreamBroken`."""
    message: dict[str, Any] = {"type": "message", "role": "assistant", "stop_reason": None, "stop_sequence": None}
    blocks: dict[int, dict[str, Any]] = {}
    inputs: dict[int, list[str]] = {}
    for event in objects_of(pieces):
        kind = event.get("type")
        if kind == "error" or event.get("error"):
            raise upstream_event_error(event.get("error") or event)
        if kind == "message_start":
            message |= object_in(event, "message")
        elif kind == "content_block_start":
            blocks[index_of(event)] = object_in(event, "content_block")
        elif kind == "content_block_delta":
            _apply_delta(blocks, inputs, event)
        elif kind == "message_delta":
            _apply_message_delta(message, event)
    for index, parts in inputs.items():
        blocks[index]["input"] = _input_of("".join(parts))
    message["content"] = [blocks[index] for index in sorted(blocks)]
    return message


def _apply_delta(blocks: dict[int, dict[str, Any]], inputs: dict[int, list[str]], event: dict[str, Any]) -> None:
    index, delta = index_of(event), object_in(event, "delta")
    if index not in blocks:
        raise StreamBroken("The provider sent a delta of a block that it had not begun.")
    block, kind = blocks[index], kind_of(delta)
    if kind == "input_json_delta":
        inputs.setdefault(index, []).append(_text(delta, "partial_json"))
    elif kind in _GROWING:
        field = _GROWING[kind]
        block[field] = append_text(block.get(field), _text(delta, field))
    elif kind == "citations_delta":
        citations = block.get("citations")
        block["citations"] = [*(citations if isinstance(citations, list) else []), delta.get("citation")]
    else:
        # A signature, or a delta type of the future: the last value of each field counts.
        block |= {key: value for key, value in delta.items() if key != "type"}


def _apply_message_delta(message: dict[str, Any], event: dict[str, Any]) -> None:
    message |= object_in(event, "delta")
    message |= {key: value for key, value in event.items() if key not in _OUTSIDE_MESSAGE and value is not None}
    usage = event.get("usage")
    if isinstance(usage, dict):
        start_usage = message.get("usage")
        message["usage"] = {
            **(start_usage if isinstance(start_usage, dict) else {}),
            **{key: figure for key, figure in usage.items() if figure is not None},
        }


def _input_of(text: str) -> Any:
    """A tool call's arguments. If they were cut off, they are not valid JSON: the answer then ends with `max_tokens`, without them."""
    try:
        return orjson.loads(text) if text.strip() else {}
    except orjson.JSONDecodeError:
        return {}


def _text(delta: dict[str, Any], key: str) -> str:
    value = delta.get(key)
    return value if isinstance(value, str) else ""
