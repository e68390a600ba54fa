"""Relays the answer to the client, buffered or streamed: counts it, and ends it properly whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from gateway.errors import GatewayError, StreamBroken, UpstreamFailure, stopping
from gateway.pipeline.call import Call, Outcome
from gateway.pipeline.cost_bounds import plausible_usage
from gateway.pipeline.ending import Ending
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.forwarding import Forwarding
from gateway.pipeline.hold import HoldKeeper, booked_output
from gateway.pipeline.ports import InFlightCalls, Judge
from gateway.pipeline.response_headers import budget_note, call_headers, encoded
from gateway.upstream.error_bodies import json_message
from gateway.upstream.port import UpstreamAnswer, UpstreamBroken, UpstreamError
from gateway.wire import lenient_json
from gateway.wire.openai_errors import upstream_event_error
from gateway.wire.protocol import BinaryProtocol, CounterFactory, Relay
from policies.pricing import Usage
from policies.reservation import Balance

CounterFor = Callable[[Call], CounterFactory]
# How much of a stream is kept to judge its answer afterwards. A longer answer is not judged.
_JUDGED_BYTES_MAX: Final = 1024 * 1024
_STREAM_HEADERS: Final = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
_OWN_HEADERS: Final = frozenset({"content-type", "content-length", "cache-control"})


@dataclass(slots=True)
class _Stream:
    """A stream in progress. `buffered` is its data so far, if the client wants a buffered answer or the answer is to be judged."""

    answer: UpstreamAnswer
    relay: Relay
    keeper: HoldKeeper
    buffered: list[bytes]
    was_cut: bool = False
    is_judged: bool = False  # whether the whole answer is judged at the end
    buffered_bytes: int = 0


class Relaying:
    def __init__(
        self,
        *,
        forwarding: Forwarding,
        counter_for: CounterFor,
        keeper_for: Callable[[Call], HoldKeeper],
        in_flight: InFlightCalls,
        ending: Ending,
        judge: Judge,
    ) -> None:
        self._forwarding = forwarding
        self._counter_for = counter_for
        self._keeper_for = keeper_for
        self._in_flight = in_flight
        self._ending = ending
        self._judge = judge

    async def relay(self, exchange: Exchange, call: Call, outcome: Outcome) -> None:
        """Fill in `outcome` along the way, so that a call cancelled at any point is settled by what was seen so far."""
        try:
            answer = await self._forwarding.forward(call)
        finally:
            call.timings.stop("upstream")
        if answer.pieces is None:
            outcome.first_byte_ms = call.timings.elapsed_ms
        try:
            if answer.status >= 400:
                await self._relay_error(exchange, call, answer, outcome)
            elif answer.pieces is None:
                await self._relay_whole(exchange, call, answer, outcome)
            else:
                await self._relay_stream(exchange, call, answer, outcome)
        finally:
            if answer.close is not None:
                await answer.close()

    async def _relay_error(self, exchange: Exchange, call: Call, answer: UpstreamAnswer, outcome: Outcome) -> None:
        """Relay the provider's error unchanged. Nothing was spent, because the provider refused the request."""
        outcome.status, outcome.code = "error", f"upstream_{answer.status}"
        await self._ending.settle(call, outcome)
        headers = [*answer.headers.items(), *call_headers(call, call.reported_balances)]
        await exchange.answer(answer.status, encoded(_without_length(headers)), answer.body)

    async def _relay_whole(self, exchange: Exchange, call: Call, answer: UpstreamAnswer, outcome: Outcome) -> None:
        outcome.reached = True
        body = read_usage(call, answer, outcome, self._counter_for(call))
        is_answer = isinstance(body, dict) and body.get(call.protocol.answer_field) is not None
        error = None if is_answer else _error_instead_of_answer(call, answer, body, outcome)
        if error is not None:
            outcome.status, outcome.code = "error", error.code
            await self._ending.settle(call, outcome)
            raise error
        self._judge.judge(call, answer.body)
        await self._ending.settle(call, outcome)
        headers = [*answer.headers.items(), *call_headers(call, call.reported_balances)]
        await exchange.answer(answer.status, encoded(_without_length(headers)), answer.body)

    async def _relay_stream(self, exchange: Exchange, call: Call, answer: UpstreamAnswer, outcome: Outcome) -> None:
        outcome.reached = True
        stream = _Stream(
            answer, call.protocol.relay(call.request, self._counter_for(call)()), self._keeper_for(call), []
        )
        stream.is_judged = self._judge.is_judged(call)
        if call.request.stream:
            balances = call.grant.balances if call.grant else ()
            await exchange.start(answer.status, encoded(_stream_headers(answer, call, balances)))
        try:
            await self._pump(exchange, call, stream, outcome)
        except (StreamBroken, UpstreamError) as error:
            await self._end_broken(exchange, call, stream, outcome, _as_error(error, answer))
            return
        except asyncio.CancelledError:
            # Count again: the chunks since the last count have to be paid for too.
            outcome.output_tokens_seen = stream.relay.output_tokens
            outcome.usage = _usage_so_far(call, stream.relay, outcome.output_tokens_seen)
            if call.request.stream and not exchange.is_client_gone:
                await exchange.abort(stream.relay.fail(stopping()))
            raise
        self._judge_stream(call, stream)
        await self._ending.settle(call, outcome)
        await self._end_whole(exchange, call, stream)

    async def _pump(self, exchange: Exchange, call: Call, stream: _Stream, outcome: Outcome) -> None:
        """Relay until the stream ends or the budget ends it. Output is counted before it goes to the client."""
        assert stream.answer.pieces is not None  # noqa: S101
        async for piece in stream.answer.pieces:
            if outcome.first_byte_ms is None:  # many servers send the headers long before the model has read the prompt
                outcome.first_byte_ms = call.timings.elapsed_ms
            for part in stream.keeper.parts(piece):
                if not await self._relay_part(exchange, call, stream, outcome, part):
                    return
        relay = stream.relay
        outcome.output_tokens_seen = relay.output_tokens
        outcome.usage = _usage_so_far(call, relay, outcome.output_tokens_seen)
        if not relay.is_finished:
            raise UpstreamBroken("The provider's stream ended in the middle of the answer.", bytes_received=True)

    async def _relay_part(self, exchange: Exchange, call: Call, stream: _Stream, outcome: Outcome, part: bytes) -> bool:
        """Relay one part of the stream. False: the hold does not cover the part, so the answer was cut before it."""
        relay, keeper = stream.relay, stream.keeper
        data = relay.feed(part)
        # A part that completes a long event yields the whole event.
        if keeper.is_due(max(len(part), len(data))):
            outcome.output_tokens_seen = relay.output_tokens
            self._in_flight.progressed(call, outcome.output_tokens_seen)
            if await self._exceeds_hold(stream, outcome.output_tokens_seen):
                # A provider that has finished reports what it bills, including the part that the client will not get.
                outcome.output_tokens_seen = min(outcome.output_tokens_seen, keeper.allowed_tokens)
                outcome.usage = _usage_so_far(call, relay, outcome.output_tokens_seen)
                stream.was_cut = True
                await self._write(exchange, call, stream, relay.cut())
                return False
        outcome.usage = relay.usage
        if data:
            await self._write(exchange, call, stream, data)
        return True

    @staticmethod
    async def _exceeds_hold(stream: _Stream, output_tokens: int) -> bool:
        """Whether this much exceeds the hold. The hold is extended ahead of need only while the answer is still growing."""
        keeper = stream.keeper
        if stream.relay.is_finished and output_tokens <= keeper.allowed_tokens:
            return False
        return not await keeper.covers(output_tokens)

    async def _write(self, exchange: Exchange, call: Call, stream: _Stream, data: bytes) -> None:
        if call.request.stream:
            await exchange.write(data)
        if stream.is_judged or not call.request.stream:
            stream.buffered.append(data)
            stream.buffered_bytes += len(data)
            stream.is_judged = stream.is_judged and stream.buffered_bytes <= _JUDGED_BYTES_MAX

    def _judge_stream(self, call: Call, stream: _Stream) -> None:
        """Judge the answer before it is settled, so that its record has the result. An answer that the budget cut is not judged."""
        if stream.is_judged and not stream.was_cut:
            self._judge.judge(call, b"".join([*stream.buffered, stream.relay.close(None)]), streamed=True)

    async def _end_whole(self, exchange: Exchange, call: Call, stream: _Stream) -> None:
        if stream.was_cut:
            call.actions.append("cut")
        if call.request.stream:
            note = budget_note(call, call.reported_balances)
            await exchange.write(stream.relay.close(note), more=False)
            return
        body = lenient_json.dumps(call.protocol.assemble(b"".join([*stream.buffered, stream.relay.close(None)])))
        headers = [("content-type", "application/json"), *call_headers(call, call.reported_balances)]
        await exchange.answer(200, encoded(headers), body)

    async def _end_broken(
        self, exchange: Exchange, call: Call, stream: _Stream, outcome: Outcome, error: GatewayError
    ) -> None:
        """Most clients take a stream that just stops for a success, so end it with an error event."""
        outcome.status, outcome.code = "error", error.code
        outcome.output_tokens_seen = stream.relay.output_tokens
        outcome.usage = _usage_so_far(call, stream.relay, outcome.output_tokens_seen)
        await self._ending.settle(call, outcome)
        if not call.request.stream:
            raise error
        error.metadata.setdefault("request_id", call.id)
        await exchange.abort(stream.relay.fail(error, budget_note(call, call.reported_balances)))


def _usage_so_far(call: Call, relay: Relay, output_tokens_seen: int) -> Usage | None:
    """The provider's usage so far. Figures from the middle of a stream may lag behind the output seen since, and no text is
    worth 0 tokens."""
    usage = relay.usage
    if usage is None:
        usage = relay.prompt_usage
        return None if usage is None else replace(usage, output_tokens=booked_output(call, output_tokens_seen))
    if output_tokens_seen <= usage.output_tokens:
        return usage
    if relay.is_finished and usage.output_tokens and not relay.usage_lags:
        return usage
    return replace(usage, output_tokens=booked_output(call, output_tokens_seen))


def read_usage(call: Call, answer: UpstreamAnswer, outcome: Outcome, new_counter: CounterFactory) -> Any:
    """Take the usage that the provider reports; if it reports none, or no output, count the output. Returns the decoded body, None if
    it is not JSON."""
    if call.protocol.is_binary:
        outcome.usage = cast(BinaryProtocol, call.protocol).usage_of_bytes(call.request, answer.body)
        return None
    try:
        body = lenient_json.loads(answer.body)
    except ValueError:
        return None
    if not isinstance(body, dict):
        return body
    outcome.usage = plausible_usage(call.request, call.price, call.protocol.usage(body))
    if call.request.has_output and (outcome.usage is None or not outcome.usage.output_tokens):
        counter = new_counter()
        counter.add(call.protocol.output_text(body))
        outcome.output_tokens_seen = counter.tokens
        if outcome.usage is not None:
            outcome.usage = replace(outcome.usage, output_tokens=booked_output(call, counter.tokens))
    return body


def _error_instead_of_answer(call: Call, answer: UpstreamAnswer, body: Any, outcome: Outcome) -> GatewayError | None:
    """The error for a success without the protocol's answer in it: the provider's own if it sent one, as some do with status 200."""
    if call.protocol.is_binary:
        return None
    fields = body if isinstance(body, dict) else {}
    if fields.get("error"):
        return _as_error(upstream_event_error(fields["error"]), answer)
    # Other servers have other names for a list of results: Voyage calls a ranking `data`, and TEI sends a bare list.
    if not call.request.has_output and any(isinstance(value, list) for value in (body, *fields.values())):
        return None
    fault = "is not valid JSON" if body is None else f"has no {call.protocol.answer_field!r}, and so no answer in it"
    booked = "the prompt, as we count it," if outcome.usage is None else "the usage that it reports"
    message = f"The provider answered {answer.status} with a body that {fault}. It may bill this call, so {booked} was booked."
    provider_message = json_message(fields)
    if provider_message is not None:
        message += f" It said: {provider_message if answer.clean is None else answer.clean(provider_message)}"
    return UpstreamFailure(message, code="upstream_broken")


def _as_error(error: StreamBroken | UpstreamError, answer: UpstreamAnswer) -> GatewayError:
    if isinstance(error, StreamBroken):
        message = error.message if answer.clean is None else answer.clean(error.message)
        return StreamBroken(message, code=error.code, type=error.type)
    return UpstreamFailure(str(error), status=error.status, code=error.code)


def _stream_headers(answer: UpstreamAnswer, call: Call, balances: Sequence[Balance]) -> list[tuple[str, str]]:
    forwarded = [(name, value) for name, value in answer.headers.items() if name not in _OWN_HEADERS]
    return [*_STREAM_HEADERS, *forwarded, *call_headers(call, balances)]


def _without_length(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name != "content-length"]
