"""A mock model's answer in every protocol, as one object or as server-sent events. Pure functions without I/O."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.upstream.port import ProtocolName
from gateway.wire import sse

_WORDS: Final = re.compile(r"\s*\S+|\s+")
_EMBEDDING_DIMENSIONS: Final = 1_536
_EMBEDDING_DIMENSIONS_MAX: Final = 4_096
_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens"}

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it takes a protocol's form. All `choices` have the same text; the token counts are their total."""

    id: str
    model: str
    created_s: int
    text: str
    finish: str  # stop or length
    input_tokens: int
    output_tokens: int
    choices: int = 1


def truncate_to_tokens(text: str, tokens_max: int | None, count: Count) -> tuple[str, str]:
    """The longest prefix of `text` with at most `tokens_max` tokens, cut at a word boundary if possible, and `finish`."""
    if tokens_max is None or count(text) <= tokens_max:
        return text, "stop"
    ends = [match.end() for match in _WORDS.finditer(text)]
    prefix = _longest(text, ends, tokens_max, count)
    return (prefix or _longest(text, range(1, len(text)), tokens_max, count)), "length"


def _longest(text: str, ends: Sequence[int], tokens_max: int, count: Count) -> str:
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if count(text[: ends[middle - 1]]) <= tokens_max:
            low = middle
        else:
            high = middle - 1
    return text[: ends[low - 1]] if low else ""


def answer_body(protocol: ProtocolName, reply: Reply) -> bytes:
    """The buffered answer in a text protocol."""
    makers: dict[str, Callable[[Reply], dict[str, Any]]] = {
        "chat": _chat,
        "completions": _completion,
        "responses": lambda answer: _response(answer, _response_status(answer)),
        "messages": _message,
    }
    return orjson.dumps(makers[protocol](reply))


def events(protocol: ProtocolName, reply: Reply, *, include_usage: bool) -> Iterator[bytes]:
    """The answer as server-sent events, one word each, ending as the protocol requires."""
    if protocol == "chat":
        return _chat_events(reply, include_usage)
    if protocol == "completions":
        return _completion_events(reply, include_usage)
    return _response_events(reply) if protocol == "responses" else _message_events(reply)


def embeddings(body: Mapping[str, Any], model: str, fixed: Sequence[float] | None, count: Count) -> bytes:
    """Unit vectors derived from the text: equal texts have equal vectors. `fixed` replaces them."""
    value = body.get("input")
    inputs = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    dimensions = body.get("dimensions")
    size = (
        min(dimensions, _EMBEDDING_DIMENSIONS_MAX)
        if type(dimensions) is int and dimensions > 0
        else _EMBEDDING_DIMENSIONS
    )
    is_base64 = body.get("encoding_format") == "base64"
    data = []
    for index, item in enumerate(inputs):
        vector = list(fixed) if fixed is not None else _vector(repr(item).encode(), size)
        embedding: Any = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if is_base64 else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    tokens = sum(len(item) if isinstance(item, list) else count(str(item)) for item in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, "model": model, "usage": usage})


def _vector(seed: bytes, size: int) -> list[float]:
    stream = hashlib.shake_256(seed).digest(size)
    raw = [byte - 127.5 for byte in stream]
    length = math.sqrt(sum(value * value for value in raw))
    return [value / length for value in raw]


def _pieces(reply: Reply) -> list[str]:
    return _WORDS.findall(reply.text)


# ── chat and completions ──


def _chat_usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": reply.output_tokens,
        "total_tokens": reply.input_tokens + reply.output_tokens,
    }


def _chat(reply: Reply) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text}
    return {
        "id": f"chatcmpl-{reply.id}",
        "object": "chat.completion",
        "created": reply.created_s,
        "model": reply.model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": reply.finish}
            for index in range(reply.choices)
        ],
        "usage": _chat_usage(reply),
    }


def _chat_events(reply: Reply, include_usage: bool) -> Iterator[bytes]:
    head = {
        "id": f"chatcmpl-{reply.id}",
        "object": "chat.completion.chunk",
        "created": reply.created_s,
        "model": reply.model,
    }

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse.json_event({**head, "choices": [choice]})

    for index in range(reply.choices):
        yield chunk(index, {"role": "assistant", "content": ""})
        for piece in _pieces(reply):
            yield chunk(index, {"content": piece})
        yield chunk(index, {}, reply.finish)
    if include_usage:
        yield sse.json_event({**head, "choices": [], "usage": _chat_usage(reply)})
    yield b"data: [DONE]\n\n"


def _completion(reply: Reply) -> dict[str, Any]:
    return {
        "id": f"cmpl-{reply.id}",
        "object": "text_completion",
        "created": reply.created_s,
        "model": reply.model,
        "choices": [
            {"index": index, "text": reply.text, "logprobs": None, "finish_reason": reply.finish}
            for index in range(reply.choices)
        ],
        "usage": _chat_usage(reply),
    }


def _completion_events(reply: Reply, include_usage: bool) -> Iterator[bytes]:
    head = {"id": f"cmpl-{reply.id}", "object": "text_completion", "created": reply.created_s, "model": reply.model}
    for index in range(reply.choices):
        for piece in _pieces(reply):
            choice = {"index": index, "text": piece, "logprobs": None, "finish_reason": None}
            yield sse.json_event({**head, "choices": [choice]})
        last = {"index": index, "text": "", "logprobs": None, "finish_reason": reply.finish}
        yield sse.json_event({**head, "choices": [last]})
    if include_usage:
        yield sse.json_event({**head, "choices": [], "usage": _chat_usage(reply)})
    yield b"data: [DONE]\n\n"


# ── responses ──


def _response_status(reply: Reply) -> str:
    return "incomplete" if reply.finish == "length" else "completed"


def _response_item(reply: Reply) -> dict[str, Any]:
    part = {"type": "output_text", "text": reply.text, "annotations": []}
    item = {"id": f"msg_{reply.id}", "type": "message", "status": "completed", "role": "assistant"}
    return {**item, "content": [part]}


def _response(reply: Reply, status: str) -> dict[str, Any]:
    is_done = status != "in_progress"
    usage = {
        "input_tokens": reply.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": reply.input_tokens + reply.output_tokens,
    }
    return {
        "id": f"resp_{reply.id}",
        "object": "response",
        "created_at": reply.created_s,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {},
        "model": reply.model,
        "output": [_response_item(reply)] if is_done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage if is_done else None,
    }


def _response_events(reply: Reply) -> Iterator[bytes]:
    item = _response_item(reply)
    part = item["content"][0]
    position = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    status = _response_status(reply)
    initial = _response(reply, "in_progress")
    typed_events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": initial}),
        ("response.in_progress", {"response": initial}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress", "content": []}}),
        ("response.content_part.added", {**position, "part": {**part, "text": ""}}),
        *(("response.output_text.delta", {**position, "delta": piece, "logprobs": []}) for piece in _pieces(reply)),
        ("response.output_text.done", {**position, "text": reply.text, "logprobs": []}),
        ("response.content_part.done", {**position, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        (f"response.{status}", {"response": _response(reply, status)}),
    ]
    for number, (name, fields) in enumerate(typed_events):
        yield sse.typed_event(name, sequence_number=number, **fields)


# ── messages ──


def _message(reply: Reply) -> dict[str, Any]:
    return {
        "id": f"msg_{reply.id}",
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [{"type": "text", "text": reply.text}],
        "stop_reason": _STOP_REASONS[reply.finish],
        "stop_sequence": None,
        "usage": {
            "input_tokens": reply.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": reply.output_tokens,
        },
    }


def _message_events(reply: Reply) -> Iterator[bytes]:
    message = _message(reply)
    usage = message["usage"]
    initial = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield sse.typed_event("message_start", message=initial)
    yield sse.typed_event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for piece in _pieces(reply):
        yield sse.typed_event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
    yield sse.typed_event("content_block_stop", index=0)
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield sse.typed_event("message_delta", delta=delta, usage=usage)
    yield sse.typed_event("message_stop")
