"""Streams of OpenAI's older form: chunks that carry pieces of choices, a usage chunk on request, and `[DONE]`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.errors import BadRequest, GatewayError, StreamBroken
from gateway.wire import sse
from gateway.wire.events import DONE, index_of, object_of, split
from gateway.wire.openai_errors import error_body, upstream_event_error
from gateway.wire.protocol import OutputCounter, Request, token_count
from policies.pricing import Usage


class ChoiceRelay(ABC):
    """Chunks pass as they came. What is ours: the usage chunk only for who asked, the end, and the count."""

    def __init__(self, request: Request, counter: OutputCounter, choices: int) -> None:
        self.usage: Usage | None = None
        self._request = request
        self._counter = counter
        self._splitter = sse.EventSplitter()
        self._open = set(range(choices))
        self._head: dict[str, Any] = {}
        self._usage_event = b""

    @abstractmethod
    def _written(self, choice: Mapping[str, Any]) -> str:
        """What the model wrote in this piece of a choice."""

    @abstractmethod
    def _blank_head(self) -> dict[str, Any]:
        """The head of a chunk of ours, where the provider has sent none yet."""

    @abstractmethod
    def _length_end(self, index: int) -> dict[str, Any]:
        """The choice that says: ended because of its length."""

    @property
    def is_finished(self) -> bool:
        return not self._open

    @property
    def output_tokens(self) -> int:
        return self._counter.tokens

    def feed(self, piece: bytes) -> bytes:
        return b"".join([self._pass(event) for event in split(self._splitter, piece)])

    def _pass(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data is None:
            return b""  # a provider's keep-alive comments are between it and us
        if data == DONE:
            if self._head:
                self._open.clear()  # some servers leave out why a choice ended, but say that all is said
            return b""  # ours follows, after the budget comment
        chunk = object_of(data)
        if chunk.get("error"):
            raise upstream_event_error(chunk["error"])
        usage = chunk.get("usage")
        if usage:
            self.usage = usage_of(usage) or self.usage
        choices = chunk.get("choices")
        if not choices:
            if usage:
                self._usage_event = event + b"\n\n"
                return b""
            return event + b"\n\n"
        if not self._head:
            self._head = {key: chunk.get(key) for key in ("id", "object", "created", "model")}
        self._note(choices)
        return event + b"\n\n"

    def _note(self, choices: Any) -> None:
        if not isinstance(choices, list):
            raise StreamBroken("The provider sent choices that are no list.")
        for choice in choices:
            if not isinstance(choice, dict):
                raise StreamBroken("The provider sent a choice that is no object.")
            written = self._written(choice)
            if written:
                self._counter.add(written)
            if choice.get("finish_reason") is not None:
                self._open.discard(index_of(choice))

    def cut(self) -> bytes:
        head = self._blank_head() | {key: value for key, value in self._head.items() if value is not None}
        ends = [self._length_end(index) for index in sorted(self._open)]
        self._open.clear()
        return b"".join(sse.event(orjson.dumps({**head, "choices": [end]})) for end in ends)

    def close(self, budget: Mapping[str, Any] | None) -> bytes:
        usage = self._usage_event if self._request.wants_usage else b""
        note = b"" if budget is None else sse.comment(b"budget " + orjson.dumps(budget))
        return usage + note + sse.event(DONE)

    def fail(self, error: GatewayError) -> bytes:
        return sse.event(error_body(error)) + sse.event(DONE)


def usage_of(usage: Any) -> Usage | None:
    """A `usage` object of OpenAI's older shape. Cached and reasoning tokens are parts of prompt and completion tokens."""
    if not isinstance(usage, dict):
        return None
    prompt = token_count(usage.get("prompt_tokens"))
    completion = token_count(usage.get("completion_tokens", 0))
    if prompt is None or completion is None or prompt + completion == 0:
        return None
    details, produced = details_of(usage, "prompt_tokens_details"), details_of(usage, "completion_tokens_details")
    read = token_count(details.get("cached_tokens", usage.get("prompt_cache_hit_tokens"))) or 0
    written = token_count(usage.get("cache_creation_input_tokens", details.get("cache_creation_tokens"))) or 0
    read = min(read, prompt)
    return Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cache_read_tokens=read,
        cache_write_tokens=min(written, prompt - read),
        reasoning_tokens=min(token_count(produced.get("reasoning_tokens")) or 0, completion),
        audio_input_tokens=min(token_count(details.get("audio_tokens")) or 0, prompt - read),
        audio_output_tokens=min(token_count(produced.get("audio_tokens")) or 0, completion),
    )


def details_of(usage: Mapping[str, Any], key: str) -> dict[str, Any]:
    given = usage.get(key)
    return given if isinstance(given, dict) else {}


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Whether `stream_options.include_usage` is set. Raises `BadRequest`."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise BadRequest.field("stream_options", "must be an object")
    return bool(options.get("include_usage"))


def streamed(body: dict[str, Any]) -> None:
    """Asks for a stream, and for the usage chunk whatever the client wanted: it is how the call is settled."""
    body["stream"] = True
    options = body.get("stream_options")
    body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
