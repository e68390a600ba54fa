"""Creates spans at three places on a call's path, and exports them.

These wrappers exist only while tracing is on. When it is off, nothing is added to a call's path.

    RequestRouter ─▶ TracedHandler ─▶ CallHandler        begins and ends the call's own span
    Forwarding, ModelCalls ─▶ TracedUpstream ─▶ Forwarder a client span for each attempt; traceparent goes upstream
    Settler ─▶ TracedTelemetry                          what was used, or why the call was refused
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from gateway import __version__
from gateway.config.schema import TracingConfig
from gateway.endpoints.router import Handler
from gateway.observability.telemetry import Telemetry
from gateway.pipeline.call import Call, Outcome
from gateway.pipeline.exchange import Exchange
from gateway.tags import split_path
from gateway.tracing.attributes import names_of
from gateway.tracing.call_trace import Attempt, CallTrace
from gateway.tracing.switch import NoTracing
from gateway.upstream.port import Deployment, Upstream, UpstreamAnswer, UpstreamCall, UpstreamError
from gateway.wire.protocol import WireProtocol
from policies.amounts import Amount
from policies.pricing import Usage

_EXPORT_TIMEOUT_S: Final = 5.0
_PATH: Final = "/v1/traces"
# Inherited by the tasks that a call starts: its settlement, its relay, and model calls of the gateway's own.
_current: ContextVar[CallTrace | None] = ContextVar("farebox_call_trace", default=None)


class Tracing(NoTracing):
    """One per process, by OTLP over HTTP to the configured endpoint."""

    def __init__(self, config: TracingConfig, *, instance: str) -> None:
        resource = Resource.create(
            {"service.name": config.service_name, "service.version": __version__, "service.instance.id": instance}
        )
        self._provider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(config)))
        self._tracer = self._provider.get_tracer("farebox", __version__)
        self._names = names_of(config.conventions)

    def begin(self, exchange: Exchange) -> CallTrace:
        _, route = split_path(exchange.path) if exchange.path.startswith("/w/") else ({}, exchange.path)
        return CallTrace(self._tracer, self._names, exchange.headers, route)

    def attempt(self, deployment: Deployment, call: UpstreamCall) -> Attempt:
        call_trace = _current.get()
        if call_trace is not None:
            return call_trace.attempt(deployment, call)
        # The gateway asks about the steps of an announced run, so there is no call yet.
        return Attempt(self._tracer, self._names, Context(), deployment, call)

    def telemetry(self) -> Telemetry:
        return TracedTelemetry()

    def upstream(self, upstream: Upstream) -> Upstream:
        return TracedUpstream(upstream, self)

    def handler(self, handler: Handler) -> Handler:
        return TracedHandler(handler, self)

    async def stop(self) -> None:
        """Send the remaining spans. Waits for an unreachable collector no longer than one attempt takes."""
        await asyncio.to_thread(self._provider.shutdown)


class TracedHandler:
    def __init__(self, handler: Handler, tracing: Tracing) -> None:
        self._handler = handler
        self._tracing = tracing

    async def handle(self, exchange: Exchange, protocol: WireProtocol, path_tags: Mapping[str, str]) -> None:
        call_trace = self._tracing.begin(exchange)
        token = _current.set(call_trace)
        try:
            await self._handler.handle(exchange, protocol, path_tags)
        finally:
            _current.reset(token)
            call_trace.end(exchange)


class TracedUpstream(Upstream):
    def __init__(self, upstream: Upstream, tracing: Tracing) -> None:
        self._upstream = upstream
        self._tracing = tracing

    async def send(self, deployment: Deployment, call: UpstreamCall) -> UpstreamAnswer:
        attempt = self._tracing.attempt(deployment, call)
        # Replace the client's own traceparent, because the provider's spans belong under ours.
        headers = {**{name: value for name, value in call.headers.items() if name != "tracestate"}, **attempt.headers()}
        try:
            answer = await self._upstream.send(deployment, replace(call, headers=headers))
        except UpstreamError as error:
            attempt.fail(error.code)
            raise
        except BaseException:
            attempt.fail("cancelled")
            raise
        attempt.answered(answer)
        return answer

    async def close(self) -> None:
        await self._upstream.close()


class TracedTelemetry(Telemetry):
    def ended(self, call: Call, outcome: Outcome, usage: Usage | None, amount: Amount) -> None:
        super().ended(call, outcome, usage, amount)
        call_trace = _current.get()
        if call_trace is not None:
            call_trace.ended(call, outcome, usage, amount)

    def refused(self, call: Call, code: str) -> None:
        super().refused(call, code)
        call_trace = _current.get()
        if call_trace is not None:
            call_trace.refused(call, code)


def _exporter(config: TracingConfig) -> SpanExporter:
    assert config.endpoint is not None  # noqa: S101 - `make_tracing` checked it
    base = config.endpoint.rstrip("/")
    endpoint = base if base.endswith(_PATH) else base + _PATH
    return OTLPSpanExporter(endpoint, headers=dict(config.headers), timeout=_EXPORT_TIMEOUT_S)
