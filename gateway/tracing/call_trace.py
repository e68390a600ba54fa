"""The spans of one call: `invoke_workflow` from the first byte to the last, with a client span as its child for each attempt.

    invoke_workflow triage          the gateway's own span; `POST /v1/chat/completions` for a call without tags
      chat gpt-4.1-nano             a model call that Farebox itself made for this one; farebox.purpose says why
      chat gpt-4o                   a failed attempt has error.type, and the next one is its sibling
      chat gpt-4o-mini

Prompts and answers are never recorded: only id, model and finish reason are read from an answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.pipeline.call import Call, Outcome
from gateway.pipeline.exchange import Exchange
from gateway.tracing.attributes import WORKFLOW_OPERATION, Value, operation_of, provider_of, rename_attributes
from gateway.upstream.port import Deployment, Lane, UpstreamAnswer, UpstreamCall
from gateway.wire.choices import usage_in
from policies.amounts import Amount, usd
from policies.pricing import Usage

_W3C: Final = TraceContextTextMapPropagator()
# Quotes in text that a model wrote are escaped, so these match only the protocol's own fields.
_ENDED: Final = re.compile(rb'"(?:finish_reason|stop_reason)"\s*:\s*"([a-z_]{1,40})"')
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,200})"')
_MODEL: Final = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
# Larger answers contain images or long texts: parsing them again for three small fields is not worth it.
_READ_BYTES_MAX: Final = 1_000_000


class CallTrace:
    def __init__(self, tracer: Tracer, names: Mapping[str, str], headers: Mapping[str, str], route: str) -> None:
        self._tracer = tracer
        self._names = names
        self._span = tracer.start_span(
            f"POST {route}",
            _W3C.extract(headers),
            SpanKind.SERVER,
            rename_attributes(names, {"method": "POST", "route": route}),
        )
        self._attempt: Attempt | None = None
        self._error = ""

    def attempt(self, deployment: Deployment, call: UpstreamCall) -> Attempt:
        attempt = Attempt(self._tracer, self._names, trace.set_span_in_context(self._span), deployment, call)
        if call.purpose is None:
            self._attempt = attempt
        return attempt

    def ended(self, call: Call, outcome: Outcome, usage: Usage | None, amount: Amount) -> None:
        """Call this when the call is settled, since its usage is known from then on."""
        self._error = "" if outcome.status == "ok" else outcome.code or outcome.status
        self._describe(call)
        self._set_attributes(
            settled_tokens=amount.tokens,
            cost_usd=usd(amount.nano_usd),
            overhead=call.timings.overhead_us / 1e6,
            saved_tokens=call.saved.tokens or None if usage is not None else None,
        )
        if self._attempt is not None:
            self._attempt.end(call.lane, usage, self._error, run=call.run)

    def refused(self, call: Call, code: str) -> None:
        self._error = code
        self._describe(call)

    def end(self, exchange: Exchange) -> None:
        """Call this when the last byte has been sent, or the client is gone."""
        sent = exchange.sent_answer
        if sent is not None:
            self._set_attributes(status=sent.status)
            if sent.status >= 400:
                # Take the code from the answer: errors such as 401 and 404 are sent before there is a call.
                self._error = self._error or _code_in(sent.body) or str(sent.status)
        elif exchange.is_answered:
            self._set_attributes(status=200)
        if self._attempt is not None:
            self._attempt.abandon()
        _finish(self._span, self._names, self._error)

    def _describe(self, call: Call) -> None:
        tags = call.tags
        if tags.workflow is not None:
            self._span.update_name(f"{WORKFLOW_OPERATION} {tags.workflow}")
            self._set_attributes(
                operation=WORKFLOW_OPERATION, workflow_name=tags.workflow, workflow=tags.workflow, step=tags.step
            )
        grant = call.grant
        self._set_attributes(
            request=call.id,
            project=call.principal.project,
            conversation=call.run,
            agent=tags.agent,
            intent=None if call.intent is None else call.intent.intent,
            actions=call.actions or None,
            reserved_tokens=None if grant is None else grant.held.tokens,
        )

    def _set_attributes(self, **values: Value | None) -> None:
        self._span.set_attributes(rename_attributes(self._names, values))


class Attempt:
    """One request to one deployment."""

    def __init__(
        self, tracer: Tracer, names: Mapping[str, str], parent: Context, deployment: Deployment, call: UpstreamCall
    ) -> None:
        self._names = names
        operation = operation_of(call.protocol)
        values = {
            "operation": operation,
            "provider": provider_of(deployment.provider),
            "request_model": deployment.model,
            "request_max_tokens": _cap_of(call.body),
            "stream": call.stream,
            "purpose": call.purpose,
            **_server_of(deployment),
        }
        self._span = tracer.start_span(
            f"{operation} {deployment.model}", parent, SpanKind.CLIENT, rename_attributes(names, values)
        )
        self._began_ns = time.monotonic_ns()
        self._finish_reasons: list[str] = []
        self._is_own = call.purpose is not None
        self._is_open = True

    @property
    def is_recording(self) -> bool:
        return self._span.is_recording()

    def headers(self) -> dict[str, str]:
        """The trace headers that make the provider's own spans children of this one."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(self._span))
        return carrier

    def fail(self, error: str) -> None:
        self._close(error)

    def answered(self, answer: UpstreamAnswer) -> None:
        """End the span here if the attempt failed, or if it is one of Farebox's own calls: these always use the protocol `chat`,
        so their usage can be read from the answer. For any other, usage is only known when the call is settled."""
        if answer.status >= 400:
            self._close(str(answer.status))
            return
        if self.is_recording:
            if answer.pieces is None:
                self._read_whole(answer.body)
            else:
                answer.pieces = _TracedPieces(answer.pieces, self)
        if self._is_own:
            self.end(answer.lane, usage_in(answer.body), "")

    def read_piece(self, piece: bytes, *, is_first: bool) -> None:
        """Read one piece of a stream. Fields that are split between two pieces are missed."""
        if is_first:
            self._set_attributes(first_chunk=(time.monotonic_ns() - self._began_ns) / 1e9)
            self._set_attributes(response_id=_first_match(_ID, piece), response_model=_first_match(_MODEL, piece))
        self._finish_reasons += [reason.decode() for reason in _ENDED.findall(piece)]

    def end(self, lane: Lane | None, usage: Usage | None, error: str, *, run: str | None = None) -> None:
        if not self._is_open:  # the last attempt failed
            return
        self._set_attributes(conversation=run, lane=lane, finish_reasons=self._finish_reasons or None)
        if usage is not None:
            self._set_attributes(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cache_read_tokens or None,
                cache_write_tokens=usage.cache_write_tokens or None,
                reasoning_tokens=usage.reasoning_tokens or None,
            )
        self._close(error)

    def abandon(self) -> None:
        """End the span of a call that was never settled: because of a bug, or because the client left before there was an answer."""
        self._close("cancelled")

    def _close(self, error: str) -> None:
        if self._is_open:
            self._is_open = False
            _finish(self._span, self._names, error)

    def _read_whole(self, body: bytes) -> None:
        if len(body) > _READ_BYTES_MAX or not body.startswith(b"{"):
            return
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            return
        self._set_attributes(response_id=_text(answer.get("id")), response_model=_text(answer.get("model")))
        choices = answer.get("choices")
        ends = (
            [choice.get("finish_reason") for choice in choices if isinstance(choice, dict)]
            if isinstance(choices, list)
            else []
        )
        self._finish_reasons += [end for end in (*ends, answer.get("stop_reason")) if isinstance(end, str)]

    def _set_attributes(self, **values: Value | None) -> None:
        self._span.set_attributes(rename_attributes(self._names, values))


class _TracedPieces:
    """Passes a stream's pieces on, and lets the attempt read them."""

    def __init__(self, pieces: AsyncIterator[bytes], attempt: Attempt) -> None:
        self._pieces = pieces
        self._attempt = attempt
        self._is_first = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._pieces)
        self._attempt.read_piece(piece, is_first=self._is_first)
        self._is_first = False
        return piece


def _finish(span: Span, names: Mapping[str, str], error: str) -> None:
    if error:
        span.set_attributes(rename_attributes(names, {"error": error}))
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def _server_of(deployment: Deployment) -> dict[str, Value | None]:
    """The provider's host and port, if the configuration names them. LiteLLM's default addresses are not known here."""
    base = deployment.params.get("api_base")
    parts = urlsplit(base) if isinstance(base, str) else None
    if parts is None or not parts.hostname:
        return {}
    return {"server_address": parts.hostname, "server_port": parts.port or (443 if parts.scheme == "https" else 80)}


def _cap_of(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        if type(body.get(name)) is int:
            return int(body[name])
    return None


def _code_in(body: bytes) -> str:
    try:
        error = orjson.loads(body)["error"]
        return _text(error.get("code") or error.get("type")) or ""
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ""


def _first_match(pattern: re.Pattern[bytes], piece: bytes) -> str | None:
    match = pattern.search(piece)
    return match[1].decode(errors="replace") if match else None


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) else None
