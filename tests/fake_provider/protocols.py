"""The forms in which OpenAI and Anthropic give an answer: one object, or events.

`Form` of a protocol: `whole` is the buffered object, `events` the stream as (content, event text) pairs; `content` is
True for the events that faults count.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fake_provider.answer import Answer, Count, usage_of
from tests.fake_provider.directive import Directive, texts_of

CREATED_S = 1_790_000_000  # a fixed time of creation keeps answers equal from run to run
Events = Iterator[tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class Form:
    whole: Callable[[Answer, Directive], dict[str, Any]]
    events: Callable[[Answer, Directive, Mapping[str, Any]], Events]


def _data(value: Any) -> str:
    return "data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _named(name: str, value: dict[str, Any]) -> str:
    return f"event: {name}\n" + _data({"type": name, **value})


def _pieces(answer: Answer, directive: Directive) -> list[str]:
    size = max(1, directive.words_per_chunk)
    return ["".join(answer.words[i : i + size]) for i in range(0, len(answer.words), size)]


# ── chat and completions ────────────────────────────────────────────────────────────────────────────────────────────


def chat_usage(answer: Answer, directive: Directive) -> dict[str, Any] | None:
    correct = {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning_tokens, "audio_tokens": 0},
    }
    return usage_of(directive, correct)


def _tool_call(answer: Answer) -> dict[str, Any]:
    function = {"name": answer.tool, "arguments": answer.arguments}
    return {"id": f"call_{answer.id}", "type": "function", "function": function}


def chat_whole(answer: Answer, directive: Directive) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None if answer.tool else answer.text, "refusal": None}
    if answer.tool:
        message["tool_calls"] = [_tool_call(answer)]
    choices = [
        {"index": i, "message": message, "logprobs": None, "finish_reason": answer.finish}
        for i in range(answer.choices)
    ]
    usage = chat_usage(answer, directive)
    return {
        "id": f"chatcmpl-{answer.id}",
        "object": "chat.completion",
        "created": CREATED_S,
        "model": answer.model,
        "choices": choices,
        **({"usage": usage} if usage is not None else {}),
        "service_tier": "default",
        "system_fingerprint": "fp_fake",
    }


def chat_events(answer: Answer, directive: Directive, body: Mapping[str, Any]) -> Events:
    wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    head = {
        "id": f"chatcmpl-{answer.id}",
        "object": "chat.completion.chunk",
        "created": CREATED_S,
        "model": answer.model,
        "system_fingerprint": "fp_fake",
    }
    tail = {"usage": None} if wants_usage else {}

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**head, "choices": [choice], **tail})

    for index in range(answer.choices):
        yield False, chunk(index, {"role": "assistant", "content": None if answer.tool else "", "refusal": None})
        for piece in _pieces(answer, directive):
            yield True, chunk(index, {"content": piece})
        if answer.tool:
            yield True, chunk(index, {"tool_calls": [{"index": 0, **_tool_call(answer)}]})
        yield False, chunk(index, {}, answer.finish)
    usage = chat_usage(answer, directive)
    if wants_usage and usage is not None:
        yield False, _data({**head, "choices": [], "usage": usage})


def completions_whole(answer: Answer, directive: Directive) -> dict[str, Any]:
    usage = chat_usage(answer, directive)
    choices = [
        {"index": i, "text": answer.text, "logprobs": None, "finish_reason": answer.finish}
        for i in range(answer.choices)
    ]
    return {
        "id": f"cmpl-{answer.id}",
        "object": "text_completion",
        "created": CREATED_S,
        "model": answer.model,
        "choices": choices,
        **({"usage": usage} if usage is not None else {}),
    }


def completions_events(answer: Answer, directive: Directive, body: Mapping[str, Any]) -> Events:
    head = {"id": f"cmpl-{answer.id}", "object": "text_completion", "created": CREATED_S, "model": answer.model}

    def chunk(index: int, text: str, finish: str | None = None) -> str:
        return _data({**head, "choices": [{"index": index, "text": text, "logprobs": None, "finish_reason": finish}]})

    for index in range(answer.choices):
        for piece in _pieces(answer, directive):
            yield True, chunk(index, piece)
        yield False, chunk(index, "", answer.finish)
    usage = chat_usage(answer, directive)
    if (body.get("stream_options") or {}).get("include_usage") and usage is not None:
        yield False, _data({**head, "choices": [], "usage": usage})


# ── responses ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _response_object(answer: Answer, directive: Directive, status: str) -> dict[str, Any]:
    done = status != "in_progress"
    usage = usage_of(
        directive,
        {
            "input_tokens": answer.input_tokens,
            "input_tokens_details": {"cached_tokens": answer.cached_tokens},
            "output_tokens": answer.output_tokens,
            "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
            "total_tokens": answer.input_tokens + answer.output_tokens,
        },
    )
    return {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": CREATED_S,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {},
        "model": answer.model,
        "output": [_output_item(answer)] if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage if done else None,
    }


def _output_item(answer: Answer) -> dict[str, Any]:
    if answer.tool:
        call = {"name": answer.tool, "arguments": answer.arguments, "call_id": f"call_{answer.id}"}
        return {"id": f"fc_{answer.id}", "type": "function_call", "status": "completed", **call}
    part = {"type": "output_text", "text": answer.text, "annotations": []}
    item = {"id": f"msg_{answer.id}", "type": "message", "status": "completed", "role": "assistant"}
    return {**item, "content": [part]}


def _response_status(answer: Answer) -> str:
    return "incomplete" if answer.finish == "length" else "completed"


def responses_whole(answer: Answer, directive: Directive) -> dict[str, Any]:
    return _response_object(answer, directive, _response_status(answer))


def responses_events(answer: Answer, directive: Directive, body: Mapping[str, Any]) -> Events:
    sequence = iter(range(10**9))

    def event(name: str, **fields: Any) -> str:
        return _named(name, {**fields, "sequence_number": next(sequence)})

    for name in ("response.created", "response.in_progress"):
        yield False, event(name, response=_response_object(answer, directive, "in_progress"))
    item = _output_item(answer)
    unspoken: dict[str, Any] = {"arguments": ""} if answer.tool else {"content": []}
    opened = {**item, "status": "in_progress", **unspoken}
    yield False, event("response.output_item.added", output_index=0, item=opened)
    at: dict[str, Any] = {"item_id": item["id"], "output_index": 0}
    if answer.tool:
        yield True, event("response.function_call_arguments.delta", **at, delta=answer.arguments)
        yield False, event("response.function_call_arguments.done", **at, arguments=answer.arguments)
    else:
        at["content_index"] = 0
        empty = {"type": "output_text", "text": "", "annotations": []}
        yield False, event("response.content_part.added", **at, part=empty)
        for piece in _pieces(answer, directive):
            yield True, event("response.output_text.delta", **at, delta=piece, logprobs=[])
        yield False, event("response.output_text.done", **at, text=answer.text, logprobs=[])
        yield False, event("response.content_part.done", **at, part={**empty, "text": answer.text})
    yield False, event("response.output_item.done", output_index=0, item=item)
    status = _response_status(answer)
    yield False, event(f"response.{status}", response=_response_object(answer, directive, status))


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────

_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def _message_usage(answer: Answer, directive: Directive, output_tokens: int) -> dict[str, Any] | None:
    correct = {
        "input_tokens": answer.input_tokens - answer.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.cached_tokens,
        "output_tokens": output_tokens,
    }
    return usage_of(directive, correct)


def _content_block(answer: Answer) -> dict[str, Any]:
    if answer.tool:
        return {
            "type": "tool_use",
            "id": f"toolu_{answer.id}",
            "name": answer.tool,
            "input": json.loads(answer.arguments),
        }
    return {"type": "text", "text": answer.text}


def messages_whole(answer: Answer, directive: Directive) -> dict[str, Any]:
    usage = _message_usage(answer, directive, answer.output_tokens)
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [_content_block(answer)],
        "stop_reason": _STOP[answer.finish],
        "stop_sequence": None,
        **({"usage": usage} if usage is not None else {}),
    }


def messages_events(answer: Answer, directive: Directive, body: Mapping[str, Any]) -> Events:
    opening_usage = _message_usage(answer, directive, 1)
    message = {**messages_whole(answer, directive), "content": [], "stop_reason": None}
    message.pop("usage", None)
    yield (
        False,
        _named("message_start", {"message": {**message, **({"usage": opening_usage} if opening_usage else {})}}),
    )
    block = _content_block(answer)
    unspoken: dict[str, Any] = {"input": {}} if answer.tool else {"text": ""}
    opened = {**block, **unspoken}
    yield False, _named("content_block_start", {"index": 0, "content_block": opened})
    yield False, _named("ping", {})
    if answer.tool:
        partial = {"type": "input_json_delta", "partial_json": answer.arguments}
        yield True, _named("content_block_delta", {"index": 0, "delta": partial})
    for piece in _pieces(answer, directive):
        yield True, _named("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": piece}})
    yield False, _named("content_block_stop", {"index": 0})
    usage = _message_usage(answer, directive, answer.output_tokens)
    delta = {"stop_reason": _STOP[answer.finish], "stop_sequence": None}
    yield False, _named("message_delta", {"delta": delta, **({"usage": usage} if usage is not None else {})})
    yield False, _named("message_stop", {})


# ── the rest ────────────────────────────────────────────────────────────────────────────────────────────────────────


def embeddings_whole(directive: Directive, body: Mapping[str, Any], model: str, count: Count) -> dict[str, Any]:
    inputs = body.get("input")
    values = inputs if isinstance(inputs, list) and inputs and not isinstance(inputs[0], int) else [inputs]
    tokens = sum(count(value) if isinstance(value, str) else len(value or []) for value in values)
    size = min(int(body.get("dimensions") or 8), 4_096)  # fuzzers ask for billions
    data = [{"object": "embedding", "index": i, "embedding": _vector(value, size)} for i, value in enumerate(values)]
    usage = usage_of(directive, {"prompt_tokens": tokens, "total_tokens": tokens})
    return {"object": "list", "data": data, "model": model, **({"usage": usage} if usage is not None else {})}


def _vector(value: Any, size: int) -> list[float]:
    seed = hashlib.sha256(repr(value).encode()).digest()
    raw = [seed[i % 32] - 128 + i / 7 for i in range(size)]
    length = math.sqrt(sum(x * x for x in raw)) or 1.0
    return [round(x / length, 6) for x in raw]


def count_tokens_whole(body: Mapping[str, Any], count: Count) -> dict[str, Any]:
    return {"input_tokens": sum(count(text) for text in texts_of(body)) + 4 * len(body.get("messages", [])) + 3}


FORMS: dict[str, Form] = {
    "chat/completions": Form(chat_whole, chat_events),
    "completions": Form(completions_whole, completions_events),
    "responses": Form(responses_whole, responses_events),
    "messages": Form(messages_whole, messages_events),
}
ENDS_WITH_DONE = ("chat/completions", "completions")
