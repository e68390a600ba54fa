"""OpenAI chat completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import orjson

from gateway.errors import BadRequest, GatewayError, StreamBroken
from gateway.upstream.port import ProtocolName
from gateway.wire import sse
from gateway.wire.body import boolean, parse_object, text, whole_number
from gateway.wire.openai_errors import error_body, upstream_event_error
from gateway.wire.protocol import OutputCounter, Request, token_count
from policies.pricing import Usage

MESSAGES_MAX: Final = 20_000
CHOICES_MAX: Final = 128


class ChatProtocol:
    name: ProtocolName = "chat"
    counted_as: Literal["chat"] = "chat"

    def parse(self, raw: bytes) -> Request:
        body = parse_object(raw)
        model = text(body, "model")
        _check_messages(body)
        newer = whole_number(body, "max_completion_tokens", 1)
        older = whole_number(body, "max_tokens", 1)
        caps = [cap for cap in (newer, older) if cap is not None]
        return Request(
            body=body,
            model=model,
            stream=boolean(body, "stream"),
            choices=whole_number(body, "n", 1, CHOICES_MAX) or 1,
            output_tokens_max=min(caps) if caps else None,
            wants_usage=_wants_usage(body),
            metadata=body.get("metadata"),
        )

    def forwarded(self, request: Request, output_tokens: int | None, stream: bool) -> dict[str, Any]:
        body = dict(request.body)
        if output_tokens is not None:
            _cap(body, output_tokens)
        if stream:
            body["stream"] = True
            options = body.get("stream_options")
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return body

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return usage_of(answer.get("usage"))

    def output_text(self, answer: Mapping[str, Any]) -> str:
        choices = answer.get("choices")
        texts = (
            [_text_of(choice.get("message")) for choice in choices if isinstance(choice, dict)]
            if isinstance(choices, list)
            else []
        )
        return "\n".join(texts)

    def relay(self, request: Request, counter: OutputCounter) -> ChatRelay:
        return ChatRelay(request, counter)

    def assemble(self, pieces: bytes) -> dict[str, Any]:
        return _assembled(pieces)

    def error_body(self, error: GatewayError) -> bytes:
        return error_body(error)


class ChatRelay:
    """Chunks pass as they came. What is ours: the usage chunk only for who asked, the end, and the count."""

    def __init__(self, request: Request, counter: OutputCounter) -> None:
        self.usage: Usage | None = None
        self._request = request
        self._counter = counter
        self._splitter = sse.EventSplitter()
        self._open = set(range(request.choices))
        self._head: dict[str, Any] = {}
        self._usage_event = b""

    @property
    def is_finished(self) -> bool:
        return not self._open

    @property
    def output_tokens(self) -> int:
        return self._counter.tokens

    def feed(self, piece: bytes) -> bytes:
        try:
            events = self._splitter.feed(piece)
        except sse.EventTooLarge as error:
            raise StreamBroken(f"The provider sent {error}.") from error
        return b"".join([self._pass(event) for event in events])

    def _pass(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data is None:
            return b""  # a provider's keep-alive comments are between it and us
        if data == b"[DONE]":
            return b""  # ours follows, after the budget comment
        chunk = _chunk(data)
        if chunk.get("usage"):
            self.usage = usage_of(chunk["usage"]) or self.usage
        choices = chunk.get("choices")
        if not choices:
            if chunk.get("usage"):
                self._usage_event = event + b"\n\n"
                return b""
            return event + b"\n\n"
        if not self._head:
            self._head = {key: chunk.get(key) for key in ("id", "object", "created", "model")}
        for choice in choices:
            self._note(choice)
        return event + b"\n\n"

    def _note(self, choice: Any) -> None:
        if not isinstance(choice, dict):
            raise StreamBroken("The provider sent a choice that is no object.")
        delta = choice.get("delta")
        if isinstance(delta, dict):
            content = delta.get("content")
            if isinstance(content, str):
                self._counter.add(content)
            if len(delta) > 1 or content is None:
                self._counter.add(_text_beside_content(delta))
        if choice.get("finish_reason") is not None:
            self._open.discard(choice.get("index", 0))

    def cut(self) -> bytes:
        head = {
            "id": "chatcmpl-farebox",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": self._request.model,
        } | {key: value for key, value in self._head.items() if value is not None}
        ends = [{"index": index, "delta": {}, "finish_reason": "length"} for index in sorted(self._open)]
        self._open.clear()
        return b"".join(sse.event(orjson.dumps({**head, "choices": [end]})) for end in ends)

    def close(self, budget: Mapping[str, Any] | None) -> bytes:
        usage = self._usage_event if self._request.wants_usage else b""
        note = b"" if budget is None else sse.comment(b"budget " + orjson.dumps(budget))
        return usage + note + sse.event(b"[DONE]")

    def fail(self, error: GatewayError) -> bytes:
        return sse.event(error_body(error)) + sse.event(b"[DONE]")


def usage_of(usage: Any) -> Usage | None:
    """A `usage` object of OpenAI's chat shape. Cached and reasoning tokens are parts of prompt and completion tokens."""
    if not isinstance(usage, dict):
        return None
    prompt = token_count(usage.get("prompt_tokens"))
    completion = token_count(usage.get("completion_tokens", 0))
    if prompt is None or completion is None or prompt + completion == 0:
        return None
    given = usage.get("prompt_tokens_details")
    details: dict[str, Any] = given if isinstance(given, dict) else {}
    given = usage.get("completion_tokens_details")
    produced: dict[str, Any] = given if isinstance(given, dict) else {}
    return Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cache_read_tokens=min(token_count(details.get("cached_tokens")) or 0, prompt),
        cache_write_tokens=token_count(usage.get("cache_creation_input_tokens")) or 0,
        reasoning_tokens=min(token_count(produced.get("reasoning_tokens")) or 0, completion),
    )


def _check_messages(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest.field(
            "messages", "must be a non-empty list of messages", "missing_field" if messages is None else "invalid_value"
        )
    if len(messages) > MESSAGES_MAX:
        raise BadRequest.field("messages", f"has {len(messages)} entries, more than {MESSAGES_MAX}")
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest.field(f"messages[{position}]", "must be an object with a role")


def _wants_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise BadRequest.field("stream_options", "must be an object")
    return bool(options.get("include_usage"))


def _cap(body: dict[str, Any], output_tokens: int) -> None:
    """Caps the field that the client used. Reasoning models know only the newer one, older servers only the older one."""
    used = [key for key in ("max_completion_tokens", "max_tokens") if body.get(key) is not None]
    if not used:
        used = ["max_completion_tokens"] if _knows_only_newer_cap(str(body["model"])) else ["max_tokens"]
    for key in used:
        body[key] = min(output_tokens, body.get(key) or output_tokens)


def _knows_only_newer_cap(model: str) -> bool:
    return model.rpartition("/")[2].startswith(("o1", "o3", "o4", "gpt-5"))


def _text_beside_content(delta: Mapping[str, Any]) -> str:
    """Tool calls, refusals and reasoning are output too, and are paid for."""
    texts = [delta[key] for key in ("refusal", "reasoning_content", "reasoning") if isinstance(delta.get(key), str)]
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            texts += [function[key] for key in ("name", "arguments") if isinstance(function.get(key), str)]
    legacy = delta.get("function_call")
    if isinstance(legacy, dict):
        texts += [legacy[key] for key in ("name", "arguments") if isinstance(legacy.get(key), str)]
    return "".join(texts)


def _text_of(message: Any) -> str:
    if not isinstance(message, dict):
        return ""
    content = message.get("content")
    return (content if isinstance(content, str) else "") + _text_beside_content(message)


def _chunk(data: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise StreamBroken("The provider sent an event that is not JSON.") from error
    if not isinstance(chunk, dict):
        raise StreamBroken("The provider sent an event that is no object.")
    if chunk.get("error"):
        raise upstream_event_error(chunk["error"])
    return chunk


def _chunks(pieces: bytes) -> Iterator[dict[str, Any]]:
    for event in sse.EventSplitter().feed(pieces):
        data = sse.data_of(event)
        if data is not None and data != b"[DONE]":
            yield _chunk(data)


def _assembled(pieces: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in _chunks(pieces):
        answer |= {key: value for key, value in chunk.items() if key != "choices" and value is not None}
        for choice in chunk.get("choices") or ():
            _merge_choice(choices, choice)
    answer["object"] = "chat.completion"
    answer["choices"] = [choices[index] for index in sorted(choices)]
    return answer


def _merge_choice(choices: dict[int, dict[str, Any]], choice: dict[str, Any]) -> None:
    index = choice.get("index", 0)
    whole = choices.setdefault(
        index,
        {"index": index, "message": {"role": "assistant", "content": None}, "logprobs": None, "finish_reason": None},
    )
    _merge_delta(whole["message"], choice.get("delta") or {})
    if choice.get("finish_reason") is not None:
        whole["finish_reason"] = choice["finish_reason"]
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        kept = whole["logprobs"] = whole["logprobs"] or {}
        for key, value in logprobs.items():
            kept[key] = (kept.get(key) or []) + value if isinstance(value, list) else value


def _merge_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            _merge_tool_calls(message.setdefault("tool_calls", []), value or ())
        elif key == "function_call" and isinstance(value, dict):
            _join_strings(message.setdefault("function_call", {}), value)
        elif key == "role":
            message["role"] = value or message["role"]
        elif isinstance(value, str):
            message[key] = (message.get(key) or "") + value
        elif value is not None:
            message[key] = value


def _merge_tool_calls(calls: list[dict[str, Any]], deltas: Any) -> None:
    for delta in deltas:
        index = delta.get("index", len(calls))
        while len(calls) <= index:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call = calls[index]
        call |= {key: value for key, value in delta.items() if key not in ("index", "function") and value is not None}
        _join_strings(call["function"], delta.get("function") or {})


def _join_strings(whole: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, str):
            whole[key] = whole.get(key, "") + value
