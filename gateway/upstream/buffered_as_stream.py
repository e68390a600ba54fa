"""Turns a whole answer into the stream that was requested. Some servers answer a streaming request with a single object, in which
clients find no events: the answer would be paid for and silently lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import orjson

from gateway.upstream.error_bodies import error_event
from gateway.upstream.port import ProtocolName
from gateway.wire import sse

# The fields of a content block that are streamed, and the delta type of each.
_BLOCK_DELTAS: Final = {"text": "text_delta", "thinking": "thinking_delta", "signature": "signature_delta"}


def events_of(protocol: ProtocolName, body: bytes) -> bytes:
    """The events that carry the content of `body`; an error event if it is not an answer in the protocol."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        return error_event(
            protocol, 502, "The provider answered a request for a stream with something that is no answer."
        )
    if answer.get("error"):
        return sse.json_event(answer)
    return b"".join(_MAKERS[protocol](answer))


def _chat(answer: dict[str, Any]) -> Iterator[bytes]:
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    for choice in _objects(answer.get("choices")):
        message = choice.pop("message", None)
        delta = dict(message) if isinstance(message, dict) else {}
        if "tool_calls" in delta:
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(_objects(delta["tool_calls"]))]
        yield sse.json_event({**head, "choices": [{**choice, "delta": delta}]})
    yield from _usage_and_end(head, answer)


def _completion(answer: dict[str, Any]) -> Iterator[bytes]:
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    yield sse.json_event({**head, "choices": _objects(answer.get("choices"))})
    yield from _usage_and_end(head, answer)


def _usage_and_end(head: Mapping[str, Any], answer: Mapping[str, Any]) -> Iterator[bytes]:
    if answer.get("usage"):
        yield sse.json_event({**head, "choices": [], "usage": answer["usage"]})
    yield sse.event(b"[DONE]")


def _response(answer: dict[str, Any]) -> Iterator[bytes]:
    numbers = iter(range(2**31))

    def event(name: str, **fields: Any) -> bytes:
        return sse.typed_event(name, sequence_number=next(numbers), **fields)

    yield event("response.created", response={**answer, "status": "in_progress", "output": [], "usage": None})
    for index, item in enumerate(_objects(answer.get("output"))):
        position = {"item_id": item.get("id"), "output_index": index}
        parts = _objects(item.get("content")) if item.get("type") == "message" else []
        initial = {**item, "content": []} if parts else item
        yield event("response.output_item.added", output_index=index, item={**initial, "status": "in_progress"})
        for part_index, part in enumerate(parts):
            position["content_index"] = part_index
            shows_text = part.get("type") == "output_text" and isinstance(part.get("text"), str)
            initial = {**part, "text": ""} if shows_text else part
            yield event("response.content_part.added", **position, part=initial)
            if shows_text:
                yield event("response.output_text.delta", **position, delta=part["text"], logprobs=[])
                yield event("response.output_text.done", **position, text=part["text"], logprobs=[])
            yield event("response.content_part.done", **position, part=part)
        yield event("response.output_item.done", output_index=index, item=item)
    yield event(f"response.{answer.get('status') or 'completed'}", response=answer)


def _message(answer: dict[str, Any]) -> Iterator[bytes]:
    yield sse.typed_event(
        "message_start", message={**answer, "content": [], "stop_reason": None, "stop_sequence": None}
    )
    for index, block in enumerate(_objects(answer.get("content"))):
        deltas = [{"type": kind, name: block[name]} for name, kind in _BLOCK_DELTAS.items() if block.get(name)]
        initial = block | {name: "" for name in _BLOCK_DELTAS if name in block}
        if isinstance(block.get("input"), dict):
            deltas.append({"type": "input_json_delta", "partial_json": orjson.dumps(block["input"]).decode()})
            initial["input"] = {}
        yield sse.typed_event("content_block_start", index=index, content_block=initial)
        for delta in deltas:
            yield sse.typed_event("content_block_delta", index=index, delta=delta)
        yield sse.typed_event("content_block_stop", index=index)
    delta = {name: answer.get(name) for name in ("stop_reason", "stop_sequence")}
    yield sse.typed_event("message_delta", delta=delta, usage=answer.get("usage") or {"output_tokens": 0})
    yield sse.typed_event("message_stop")


_MAKERS: Final[Mapping[ProtocolName, Callable[[dict[str, Any]], Iterator[bytes]]]] = {
    "chat": _chat,
    "completions": _completion,
    "responses": _response,
    "messages": _message,
}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
