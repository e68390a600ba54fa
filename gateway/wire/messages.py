"""Anthropic's Messages, and its endpoint that counts tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import orjson

from gateway.errors import BadRequest, GatewayError, StreamBroken
from gateway.upstream.port import ProtocolName
from gateway.wire import sse
from gateway.wire.anthropic_errors import error_body
from gateway.wire.body import boolean, parse_object, text, whole_number
from gateway.wire.chat import check_messages
from gateway.wire.choices import details_of
from gateway.wire.event_relay import EventRelay, budget_comment, typed_event
from gateway.wire.message_assembly import assemble_answer
from gateway.wire.openai_errors import upstream_event_error
from gateway.wire.protocol import (
    OutputCounter,
    Request,
    billing_term,
    hosted_tools_bound,
    joined_texts,
    plausible_tool_uses,
    token_count,
)
from policies.pricing import NO_HOSTED_TOOLS, HostedTools, Usage

# "thinking.budget_tokens: must be at least 1024 and less than max_tokens"
THINKING_TOKENS_MIN: Final = 1_024
_STOP: Final = sse.event(b'{"type":"message_stop"}', "message_stop")
_DELTA_TEXTS: Final = ("text", "partial_json", "thinking")


class MessagesProtocol:
    name: ProtocolName = "messages"
    counted_as: Literal["messages"] = "messages"
    answer_field: Final = "content"
    streams = True
    is_binary = False

    def parse(self, raw: bytes) -> Request:
        request = self.parse_count(raw)
        body = request.body
        cap = whole_number(body, "max_tokens", 0)  # 0 writes the prompt to the cache without generating an answer
        if cap is None:
            raise BadRequest.field("max_tokens", "Field required", "missing_field")
        request.has_output = True
        request.stream = boolean(body, "stream")
        request.output_tokens_max = cap
        if "tools" in body:
            request.hosted_max = hosted_tools_bound(body["tools"], None)
        # With thinking, the provider refuses a smaller cap, and turning thinking off would change the request.
        request.output_tokens_min_useful = min(cap, THINKING_TOKENS_MIN + 1) if _thinking_tokens(body) else min(cap, 1)
        return request

    def parse_count(self, raw: bytes) -> Request:
        """The request of `/v1/messages/count_tokens`: a message request without a cap. Raises `BadRequest`."""
        body = parse_object(raw)
        model = text(body, "model")
        check_messages(body)
        return Request(body=body, model=model, has_output=False, metadata=body.get("metadata"))

    def count_answer(self, tokens: int) -> bytes:
        """The answer of `/v1/messages/count_tokens`."""
        return orjson.dumps({"input_tokens": tokens})

    def upstream_body(self, request: Request, output_tokens: int | None, stream: bool) -> dict[str, Any]:
        body = dict(request.body)
        requested_max = request.output_tokens_max
        if output_tokens is not None and (requested_max is None or output_tokens < requested_max):
            body["max_tokens"] = output_tokens
            _shorten_thinking(body, requested_max, output_tokens)
        if stream:
            body["stream"] = True
        return body

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return usage_of(answer.get("usage"))

    def output_text(self, answer: Mapping[str, Any]) -> str:
        return joined_texts(answer.get("content"), _block_text)

    def relay(self, request: Request, counter: OutputCounter) -> MessagesRelay:
        return MessagesRelay(request, counter)

    def assemble(self, pieces: bytes) -> dict[str, Any]:
        return assemble_answer(pieces)

    def error_body(self, error: GatewayError) -> bytes:
        return error_body(error)


class MessagesRelay(EventRelay):
    """Passes events on unchanged, but withholds `message_stop` until the budget's figures have been sent."""

    def __init__(self, request: Request, counter: OutputCounter) -> None:
        super().__init__(request, counter)
        self._figures: dict[str, Any] = {}
        self._is_finished = False
        self._is_begun = False  # this and the next two as far as the client has seen
        self._has_reason = False
        self._open: set[int] = set()
        self._stop = b""

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    def _relay_event(self, event: bytes, value: dict[str, Any]) -> bytes:
        kind = value.get("type")
        if kind == "content_block_delta":
            self._count(value.get("delta"))
            return event + b"\n\n"
        if kind == "message_stop":
            self._stop = event + b"\n\n"
            self._is_finished = True
            return b""
        if kind == "error" or value.get("error"):
            raise upstream_event_error(value.get("error") or value)
        self._read_event(kind, value)
        self._undelivered.append(value)
        return event + b"\n\n"

    def _count(self, delta: Any) -> None:
        if not isinstance(delta, dict):
            raise StreamBroken("The provider sent a delta that is no object.")
        for key in _DELTA_TEXTS:
            written = delta.get(key)
            if isinstance(written, str):
                self._counter.add(written)

    def _read_event(self, kind: Any, value: dict[str, Any]) -> None:
        if kind == "content_block_start":
            self._counter.add(_name_in(value.get("content_block")))
        elif kind == "message_start":
            self._keep_usage(details_of(value, "message").get("usage"))
            start_usage = usage_of(self._figures)
            # Some servers report 0 here and the input only at the end.
            self.prompt_usage = start_usage if start_usage is not None and start_usage.input_tokens else None
        elif kind == "message_delta":
            self._keep_usage(value.get("usage"))
            self.usage = usage_of(self._figures) or self.usage
            # Without it only the output so far is known, from the start of the message.
            self.usage_lags = details_of(value, "usage").get("output_tokens") is None
            if details_of(value, "delta").get("stop_reason") is not None:
                self._is_finished = True

    def _keep_usage(self, usage: Any) -> None:
        """The start reports the input, the end the output. A figure that the end repeats is newer (searches add input)."""
        if isinstance(usage, dict):
            self._figures |= {key: figure for key, figure in usage.items() if figure is not None}

    def _mark_delivered(self, value: dict[str, Any]) -> None:
        kind, index = value.get("type"), value.get("index")
        if kind == "message_start":
            self._is_begun = True
        elif kind == "message_delta":
            self._has_reason = self._has_reason or details_of(value, "delta").get("stop_reason") is not None
        elif kind == "content_block_start" and isinstance(index, int):
            self._open.add(index)
        elif kind == "content_block_stop" and isinstance(index, int):
            self._open.discard(index)

    def cut(self) -> bytes:
        events: list[dict[str, Any]] = [] if self._is_begun else [self._start_event()]
        events += [{"type": "content_block_stop", "index": index} for index in sorted(self._open)]
        if not self._has_reason:
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": self.output_tokens}})
        self._open.clear()
        self._is_begun = self._has_reason = self._is_finished = True
        return b"".join([typed_event(event) for event in events])

    def _start_event(self) -> dict[str, Any]:
        blank: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        usage = {"input_tokens": 0, "output_tokens": 0}
        head = {"id": "msg_farebox", "type": "message", "role": "assistant", "model": self._request.model}
        return {"type": "message_start", "message": {**head, **blank, "usage": usage}}

    def close(self, budget: Mapping[str, Any] | None) -> bytes:
        return budget_comment(budget) + (self._stop or _STOP)

    def fail(self, error: GatewayError, budget: Mapping[str, Any] | None = None) -> bytes:
        """In this protocol an error event ends the stream."""
        return self._take_passed() + budget_comment(budget) + sse.event(error_body(error), "error")


def usage_of(usage: Any) -> Usage | None:
    """Parse `usage` of Messages. Anthropic's `input_tokens` excludes tokens read from or written to the cache; ours includes them."""
    if not isinstance(usage, dict):
        return None
    keys = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    uncached, read, written, output = (token_count(usage.get(key) or 0) for key in keys)
    if uncached is None or read is None or written is None or output is None or uncached + read + written + output == 0:
        return None
    output_details, cache_creation = details_of(usage, "output_tokens_details"), details_of(usage, "cache_creation")
    searches = details_of(usage, "server_tool_use").get("web_search_requests")
    return Usage(
        input_tokens=uncached + read + written,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=min(token_count(cache_creation.get("ephemeral_1h_input_tokens")) or 0, written),
        reasoning_tokens=min(token_count(output_details.get("thinking_tokens")) or 0, output),
        hosted=HostedTools(plausible_tool_uses(searches)) if searches is not None else NO_HOSTED_TOOLS,
        service_tier=billing_term(usage.get("service_tier")),
        speed=billing_term(usage.get("speed")),
        region=billing_term(usage.get("inference_geo")),
    )


def _thinking_tokens(body: Mapping[str, Any]) -> int | None:
    """The budget of extended thinking, if the request sets one."""
    thinking = body.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    return budget if type(budget) is int and budget > 0 else None


def _shorten_thinking(body: dict[str, Any], requested_max: int | None, output_tokens: int) -> None:
    """Keep the thinking budget below the new cap, or the provider refuses. If it exceeded the client's own cap, that was
    intended (interleaved thinking)."""
    budget = _thinking_tokens(body)
    if (
        budget is not None
        and (requested_max is None or budget < requested_max)
        and budget >= output_tokens > THINKING_TOKENS_MIN
    ):
        body["thinking"] = {**body["thinking"], "budget_tokens": output_tokens - 1}


def _name_in(block: Any) -> str:
    name = block.get("name") if isinstance(block, dict) else None
    return name if isinstance(name, str) else ""


def _block_text(block: Mapping[str, Any]) -> str:
    """What the model wrote in one block: text, thinking, or the name and arguments of a tool call."""
    texts = [block.get(key) for key in ("text", "thinking", "name")]
    if isinstance(block.get("input"), dict):
        texts.append(orjson.dumps(block["input"]).decode())
    return "".join([part for part in texts if isinstance(part, str)])
