"""Streams in OpenAI's older format: chunks with pieces of choices, a usage chunk on request, and `[DONE]`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.errors import BadRequest, GatewayError
from gateway.wire import sse
from gateway.wire.event_relay import EventRelay, budget_comment
from gateway.wire.events import DONE, index_of, objects_in
from gateway.wire.openai_errors import error_body, upstream_event_error
from gateway.wire.protocol import OutputCounter, Request, billing_term, plausible_tool_uses, token_count
from policies.pricing import NO_HOSTED_TOOLS, HostedTools, Usage


class ChoiceRelay(EventRelay):
    """Passes chunks on unchanged. It sends the usage chunk only to clients that want it, writes the end, and counts the output."""

    def __init__(self, request: Request, counter: OutputCounter, choices: int) -> None:
        super().__init__(request, counter)
        self._unfinished = set(range(choices))
        self._open = set(range(choices))  # unfinished, as far as the client has seen
        self._head: dict[str, Any] = {}
        self._usage_event = b""
        self._tier: Any = None

    @abstractmethod
    def _text_of_choice(self, choice: Mapping[str, Any]) -> str:
        """The text that the model wrote in this piece of a choice."""

    @abstractmethod
    def _blank_head(self) -> dict[str, Any]:
        """The head for chunks of our own, in case the provider has not sent any chunk yet."""

    @abstractmethod
    def _length_finish(self, index: int) -> dict[str, Any]:
        """The piece of a choice that ends it because of its length."""

    @property
    def is_finished(self) -> bool:
        return not self._unfinished

    def _on_done(self) -> None:
        if self._head:
            self._unfinished.clear()  # some servers omit the finish reason, but do send [DONE]

    def _relay_event(self, event: bytes, value: dict[str, Any]) -> bytes:
        if value.get("error"):
            raise upstream_event_error(value["error"])
        usage, choices = value.get("usage"), value.get("choices")
        if not choices:
            if usage:
                self._keep_usage(usage, value)
                self._usage_event = event + b"\n\n"
                return b""
            return event + b"\n\n"
        if not self._head:
            self._head = {key: value[key] for key in ("id", "object", "created", "model") if value.get(key) is not None}
            self._tier = value.get("service_tier")
        if self._count(choices):
            self._undelivered.append(value)
        if usage:
            self._keep_usage(usage, value)
        return event + b"\n\n"

    def _keep_usage(self, usage: Any, value: Mapping[str, Any]) -> None:
        reported = usage_of(usage, value.get("service_tier") or self._tier)
        if reported is not None:
            self.usage, self.usage_lags = reported, False

    def _count(self, choices: Any) -> bool:
        """Count what was written. Returns whether a choice ended. Raises `StreamBroken`."""
        ended = False
        for choice in objects_in(choices, "choices"):
            written = self._text_of_choice(choice)
            if written:
                self._counter.add(written)
                self.usage_lags = True
            if choice.get("finish_reason") is not None:
                self._unfinished.discard(index_of(choice))
                ended = True
        return ended

    def _mark_delivered(self, value: dict[str, Any]) -> None:
        ended = [choice.get("index", 0) for choice in value["choices"] if choice.get("finish_reason") is not None]
        self._open.difference_update(ended)

    def cut(self) -> bytes:
        head = self._blank_head() | self._head
        ends = [self._length_finish(index) for index in sorted(self._open)]
        self._open.clear()
        self._unfinished.clear()
        return b"".join(sse.event(orjson.dumps({**head, "choices": [end]})) for end in ends)

    def close(self, budget: Mapping[str, Any] | None) -> bytes:
        usage = self._usage_event if self._request.wants_usage else b""
        return usage + budget_comment(budget) + sse.event(DONE)

    def fail(self, error: GatewayError, budget: Mapping[str, Any] | None = None) -> bytes:
        return self._take_passed() + budget_comment(budget) + sse.event(error_body(error)) + sse.event(DONE)


def usage_of(usage: Any, service_tier: Any = None) -> Usage | None:
    """Parse `usage` in OpenAI's older format, where prompt and completion tokens include cached and reasoning tokens."""
    if not isinstance(usage, dict):
        return None
    prompt = token_count(usage.get("prompt_tokens"))
    completion = token_count(usage.get("completion_tokens", 0))
    if prompt is None or completion is None or prompt + completion == 0:
        return None
    details, output_details = details_of(usage, "prompt_tokens_details"), details_of(usage, "completion_tokens_details")
    read = token_count(details.get("cached_tokens", usage.get("prompt_cache_hit_tokens"))) or 0
    written = token_count(usage.get("cache_creation_input_tokens", details.get("cache_creation_tokens"))) or 0
    read = min(read, prompt)
    searches = details_of(usage, "server_tool_use").get("web_search_requests", details.get("web_search_requests"))
    maps = details.get("google_maps_grounding_requests")
    return Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cache_read_tokens=read,
        cache_write_tokens=min(written, prompt - read),
        reasoning_tokens=min(token_count(output_details.get("reasoning_tokens")) or 0, completion),
        audio_input_tokens=min(token_count(details.get("audio_tokens")) or 0, prompt - read),
        audio_output_tokens=min(token_count(output_details.get("audio_tokens")) or 0, completion),
        hosted=NO_HOSTED_TOOLS
        if searches is maps is None
        else HostedTools(plausible_tool_uses(searches), plausible_tool_uses(maps)),
        service_tier=billing_term(service_tier),
        speed=billing_term(usage.get("speed")),
        region=billing_term(usage.get("inference_geo")),
    )


def usage_in(answer: bytes) -> Usage | None:
    """The usage that a whole answer in OpenAI's older format reports."""
    try:
        return usage_of(orjson.loads(answer).get("usage"))
    except (orjson.JSONDecodeError, AttributeError):
        return None


def details_of(usage: Mapping[str, Any], key: str) -> dict[str, Any]:
    details = usage.get(key)
    return details if isinstance(details, dict) else {}


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Whether to include usage: if `stream_options.include_usage` asks for it, and always in a buffered answer, which may have to
    be assembled from a stream. Raises `BadRequest`."""
    options = body.get("stream_options")
    if options is None:
        return not body.get("stream")
    if not isinstance(options, dict):
        raise BadRequest.field("stream_options", "must be an object")
    return bool(options.get("include_usage")) or not body.get("stream")


def request_stream(body: dict[str, Any]) -> None:
    """Ask for a stream with a usage chunk, whether or not the client wants one: the call is settled by it."""
    body["stream"] = True
    options = body.get("stream_options")
    body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
