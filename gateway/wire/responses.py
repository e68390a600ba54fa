"""OpenAI's Responses: items instead of messages, and named events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

from gateway.errors import BadRequest, GatewayError, StreamBroken
from gateway.upstream.port import ProtocolName
from gateway.wire.body import boolean, parse_object, text, whole_number
from gateway.wire.choices import details_of
from gateway.wire.event_relay import EventRelay, budget_comment, typed_event
from gateway.wire.events import kind_of, objects_of
from gateway.wire.openai_errors import error_body, error_object, upstream_event_error
from gateway.wire.protocol import (
    OutputCounter,
    Request,
    billing_term,
    hosted_tools_bound,
    joined_texts,
    plausible_tool_uses,
    token_count,
)
from gateway.wire.response_draft import DELTAS, ResponseDraft
from policies.pricing import NO_HOSTED_TOOLS, HostedTools, Usage

ITEMS_MAX: Final = 20_000
# "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16"
OUTPUT_TOKENS_MIN: Final = 16
# Of an answer or a conversation. Longer ones are not remembered; real ones have a few hundred characters at most.
_ID_CHARACTERS_MAX: Final = 1_000
_ENDS: Final = frozenset({"response.completed", "response.incomplete"})
_FAILURES: Final = frozenset({"response.failed", "response.cancelled"})
_STORED_INPUT: Final = ("previous_response_id", "conversation", "prompt")


class ResponsesProtocol:
    name: ProtocolName = "responses"
    counted_as: Literal["responses"] = "responses"
    answer_field: Final = "output"
    streams = True
    is_binary = False

    def parse(self, raw: bytes) -> Request:
        body = parse_object(raw)
        model = text(body, "model")
        _check_input(body)
        if boolean(body, "background"):
            # It answers at once and spends later, when we could neither see its usage nor keep its hold alive.
            raise BadRequest.field("background", "is not supported: the gateway could not see what it uses")
        cap = whole_number(body, "max_output_tokens", 1)
        return Request(
            body=body,
            model=model,
            stream=boolean(body, "stream"),
            output_tokens_max=cap,
            output_tokens_min_useful=OUTPUT_TOKENS_MIN,
            hosted_max=hosted_tools_bound(body.get("tools"), body.get("max_tool_calls")),
            metadata=body.get("metadata"),
        )

    def upstream_body(self, request: Request, output_tokens: int | None, stream: bool) -> dict[str, Any]:
        body = dict(request.body)
        if output_tokens is not None:
            body["max_output_tokens"] = min(output_tokens, request.output_tokens_max or output_tokens)
        if stream:
            body["stream"] = True
        return body

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return _usage_in(answer)

    def output_text(self, answer: Mapping[str, Any]) -> str:
        return joined_texts(answer.get("output"), _item_text)

    def relay(self, request: Request, counter: OutputCounter) -> ResponsesRelay:
        return ResponsesRelay(request, counter)

    def assemble(self, pieces: bytes) -> dict[str, Any]:
        draft, last = ResponseDraft(""), None
        for event in objects_of(pieces):
            last = _end_of(event) or last
            draft.add_event(event)
        return last or draft.incomplete()

    def error_body(self, error: GatewayError) -> bytes:
        return error_body(error)


class ResponsesRelay(EventRelay):
    """Passes events on unchanged, but withholds the last one until the budget's figures have been sent."""

    def __init__(self, request: Request, counter: OutputCounter) -> None:
        super().__init__(request, counter)
        self._draft = ResponseDraft(request.model)
        self._end = b""

    @property
    def is_finished(self) -> bool:
        return bool(self._end)

    def _relay_event(self, event: bytes, value: dict[str, Any]) -> bytes:
        kind, delta = kind_of(value), value.get("delta")
        if kind in DELTAS and isinstance(delta, str):
            self._counter.add(delta)
        elif kind in _ENDS or kind in _FAILURES or kind == "error" or value.get("error"):
            return self._hold_back_end(event, value)
        self._undelivered.append(value)
        return event + b"\n\n"

    def _mark_delivered(self, value: dict[str, Any]) -> None:
        self._draft.add_event(value)

    def _hold_back_end(self, event: bytes, value: dict[str, Any]) -> bytes:
        response = value.get("response")
        if isinstance(response, dict):
            # A failed answer is billed as well.
            self.usage = _usage_in(response) or self.usage
        if _end_of(value) is None:
            raise StreamBroken("The provider's last event does not contain the answer.")
        self._end = event + b"\n\n"
        return b""

    def cut(self) -> bytes:
        *closing, end = self._draft.cut()
        self._end = typed_event(end)
        return b"".join([typed_event(event) for event in closing])

    def close(self, budget: Mapping[str, Any] | None) -> bytes:
        self._mark_all_delivered()
        closing = b"" if self._end else self.cut()
        return closing + budget_comment(budget) + self._end

    def fail(self, error: GatewayError, budget: Mapping[str, Any] | None = None) -> bytes:
        """OpenAI's two events. Its SDK raises an exception only for the `error` field of the first one."""
        self._mark_all_delivered()
        error_event = {
            "type": "error",
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "sequence_number": self._draft.next_number(),
            "error": error_object(error),
        }
        return (
            self._take_passed()
            + budget_comment(budget)
            + typed_event(error_event)
            + typed_event(self._draft.failed_event(error.code, error.message))
        )


def _end_of(event: dict[str, Any]) -> dict[str, Any] | None:
    """The whole answer, if this event ends the stream. Raises `StreamBroken` with the provider's own message for an error."""
    kind, response = kind_of(event), event.get("response")
    if kind in _FAILURES:
        error = response.get("error") if isinstance(response, dict) else None
        raise upstream_event_error(error or {"message": f"The provider ended its answer: {kind}."})
    if kind == "error" or event.get("error"):
        raise upstream_event_error(event.get("error") or {key: event.get(key) for key in ("code", "message")})
    return response if kind in _ENDS and isinstance(response, dict) else None


def _usage_in(answer: Mapping[str, Any]) -> Usage | None:
    """The usage of a whole answer. Uses of the provider's tools are counted from the output items, unless reported."""
    usage = usage_of(answer.get("usage"), _hosted_in(answer), billing_term(answer.get("service_tier")))
    names = (answer.get("id"), details_of(answer, "conversation").get("id"))
    stored_ids = tuple(name for name in names if isinstance(name, str) and 0 < len(name) <= _ID_CHARACTERS_MAX)
    return usage if usage is None or not stored_ids else replace(usage, stored_ids=stored_ids)


def _hosted_in(answer: Mapping[str, Any]) -> HostedTools:
    output = answer.get("output")
    items = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    kinds = [item.get("type") for item in items]
    reported_searches = details_of(details_of(answer, "tool_usage"), "web_search").get("num_requests")
    searches = kinds.count("web_search_call") if reported_searches is None else reported_searches
    files = kinds.count("file_search_call")
    containers = {str(item.get("container_id")) for item in items if item.get("type") == "code_interpreter_call"}
    if not searches and not files and not containers:
        return NO_HOSTED_TOOLS
    return HostedTools(
        plausible_tool_uses(searches),
        file_searches=plausible_tool_uses(files),
        sessions=plausible_tool_uses(len(containers)),
    )


def usage_of(usage: Any, hosted: HostedTools = NO_HOSTED_TOOLS, service_tier: str = "") -> Usage | None:
    """Parse `usage` of Responses, where input and output tokens include cached and reasoning tokens."""
    if not isinstance(usage, dict):
        return None
    prompt, output = token_count(usage.get("input_tokens")), token_count(usage.get("output_tokens"))
    if prompt is None or output is None or prompt + output == 0:
        return None
    details, output_details = details_of(usage, "input_tokens_details"), details_of(usage, "output_tokens_details")
    read = min(token_count(details.get("cached_tokens")) or 0, prompt)
    written = token_count(details.get("cache_write_tokens", details.get("cache_creation_tokens"))) or 0
    return Usage(
        input_tokens=prompt,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=min(written, prompt - read),
        reasoning_tokens=min(token_count(output_details.get("reasoning_tokens")) or 0, output),
        hosted=hosted,
        service_tier=service_tier,
    )


def _check_input(body: Mapping[str, Any]) -> None:
    items = body.get("input")
    if items is None:
        if not any(body.get(key) for key in _STORED_INPUT):
            raise BadRequest.field("input", "is missing", "missing_field")
        return
    if isinstance(items, str):
        return
    if not isinstance(items, list):
        raise BadRequest.field("input", "must be a text or a list of items")
    if len(items) > ITEMS_MAX:
        raise BadRequest.field("input", f"has {len(items)} entries, more than {ITEMS_MAX}")
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise BadRequest.field(f"input[{position}]", "must be an object")


def _item_text(item: Mapping[str, Any]) -> str:
    """What the model wrote in one output item: text, refusals, reasoning, the names and arguments of calls."""
    texts = [item.get(key) for key in ("name", "arguments", "input", "code")]
    for key in ("content", "summary"):
        parts = item.get(key)
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                texts += [part.get("text"), part.get("refusal")]
    return "".join([part for part in texts if isinstance(part, str)])
