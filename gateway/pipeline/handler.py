"""Handles one call: its stages, in the order in which they happen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Final

import structlog

from gateway.answers.port import StoredAnswer
from gateway.errors import GatewayError, LedgerOutage, stopping
from gateway.pipeline.admission import Admission
from gateway.pipeline.answer_cache import HEADER as CACHE_HEADER
from gateway.pipeline.answer_cache import HIT_ACTION, AnswerCache, CacheLookup
from gateway.pipeline.call import Call, Outcome
from gateway.pipeline.concurrency import ConcurrencyLimits
from gateway.pipeline.ending import Ending
from gateway.pipeline.exchange import ClientDisconnected, Exchange
from gateway.pipeline.idempotency import HEADER as IDEMPOTENCY_HEADER
from gateway.pipeline.idempotency import REPLAYED_HEADER, Idempotency
from gateway.pipeline.intake import Intake
from gateway.pipeline.loop_breaker import LoopBreaker
from gateway.pipeline.relaying import Relaying
from gateway.pipeline.response_headers import Header, call_headers, encoded, error_headers
from gateway.pipeline.run_rate import NewRunLimit
from gateway.pipeline.settlement import Settler
from gateway.tags import echoed_tags
from gateway.upstream.port import UpstreamError
from gateway.wire.protocol import WireProtocol

_log = structlog.get_logger(__name__)
_REPLAYED: Final = (REPLAYED_HEADER.encode(), b"true")
_CACHE_HIT: Final = (CACHE_HEADER.encode(), b"hit")


class CallHandler:
    """tag → authenticate → count → admit → reserve → forward → relay → settle → record."""

    def __init__(
        self,
        *,
        intake: Intake,
        admission: Admission,
        relaying: Relaying,
        settler: Settler,
        ending: Ending,
        concurrency: ConcurrencyLimits,
        idempotency: Idempotency,
        cache: AnswerCache,
        loop_breaker: LoopBreaker,
        new_run_limit: NewRunLimit,
        new_id: Callable[[], str],
    ) -> None:
        self._intake = intake
        self._admission = admission
        self._relaying = relaying
        self._settler = settler
        self._ending = ending
        self._concurrency = concurrency
        self._idempotency = idempotency
        self._cache = cache
        self._loop_breaker = loop_breaker
        self._new_run_limit = new_run_limit
        self._new_id = new_id

    async def handle(self, exchange: Exchange, protocol: WireProtocol, path_tags: Mapping[str, str]) -> None:
        """Answer the call exactly once. Only a bug of ours ends in a 500, and even then the hold is settled or released."""
        call_id = self._new_id()
        call: Call | None = None
        try:
            call = await self._intake.take(exchange, protocol, path_tags, call_id)
            self._concurrency.acquire(call.principal)
            try:
                if IDEMPOTENCY_HEADER in exchange.headers:
                    await self._serve_once(exchange, call)
                else:
                    await self._serve(exchange, call)
            finally:
                self._concurrency.release(call.principal)
        except ClientDisconnected:
            return
        except GatewayError as error:
            if call is None:
                self._settler.rejected(protocol, error.code)
            elif not call.is_admitted:
                self._settler.refused(call, error.code)
            await self._answer_error(exchange, protocol, error, call, call_id, path_tags)
        except Exception:  # noqa: BLE001 - the safety net: a bug of ours is answered and logged, and the hold resolved
            _log.exception("call_failed", request_id=call_id)
            if call is None or not call.is_admitted:
                self._settler.broke(protocol, call)
            internal_error = GatewayError("Something broke inside the gateway.")
            await self._answer_error(exchange, protocol, internal_error, call, call_id, path_tags)
        finally:
            if call is not None:
                self._ending.release(call)

    async def _serve_once(self, exchange: Exchange, call: Call) -> None:
        async with self._idempotency.once(exchange, call) as stored:
            if stored is None:
                await self._serve(exchange, call)
            else:
                call.actions.append("replay")
                await self._answer_stored(exchange, call, Outcome(), stored, _REPLAYED)

    async def _serve(self, exchange: Exchange, call: Call) -> None:
        if call.run is not None:
            self._new_run_limit.check(call)
        turn = self._loop_breaker.begin(call) if call.raw else None
        if turn is None:
            await self._admit_and_forward(exchange, call)
            return
        if self._loop_breaker.is_loop(turn):
            raise await self._loop_breaker.trip(call, turn)
        ended: Exchange | None = None
        try:
            await self._admit_and_forward(exchange, call)
            ended = exchange
        finally:
            self._loop_breaker.end(turn, ended)

    async def _admit_and_forward(self, exchange: Exchange, call: Call) -> None:
        lookup = self._cache.lookup(exchange, call)
        await self._admit(call)
        call.is_admitted = True
        await self._forward(exchange, call, lookup)

    async def _admit(self, call: Call) -> None:
        try:
            await self._admission.admit(call)
        except BaseException as error:
            if call.count is not None and call.grant is None:
                await self._ending.withdraw(call, is_outage=isinstance(error, LedgerOutage))
            raise

    async def _forward(self, exchange: Exchange, call: Call, lookup: CacheLookup | None) -> None:
        outcome = Outcome()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - we are in it
        exchange.watch(task)
        try:
            stored = None if lookup is None else await self._cache.find(lookup)
            if stored is not None:
                call.actions.append(HIT_ACTION)
                await self._answer_stored(exchange, call, outcome, stored, _CACHE_HIT)
                return
            await self._relaying.relay(exchange, call, outcome)
        except asyncio.CancelledError:
            outcome.status, outcome.code = (
                "cancelled",
                "client_closed" if exchange.is_client_gone else "gateway_stopping",
            )
            # A request in flight may have reached the provider, which will then bill it.
            outcome.reached = outcome.reached or call.is_with_upstream
            task.uncancel()
            if not exchange.is_client_gone:
                raise stopping() from None
        except GatewayError as error:
            outcome.status, outcome.code = "error", error.code
            cause = error.__cause__
            outcome.reached = outcome.reached or (isinstance(cause, UpstreamError) and cause.bytes_received)
            raise
        except BaseException:
            outcome.status, outcome.code = "error", "internal_error"
            raise
        finally:
            exchange.unwatch()
            await self._ending.settle(call, outcome)

    async def _answer_stored(
        self, exchange: Exchange, call: Call, outcome: Outcome, stored: StoredAnswer, mark: Header
    ) -> None:
        """Send an answer that was kept. Nothing was spent on this call, so whatever it holds is released first."""
        await self._ending.settle(call, outcome)
        headers = encoded(call_headers(call, call.reported_balances))
        await exchange.answer(200, [*headers, (b"content-type", stored.content_type), mark], stored.body)

    async def _answer_error(
        self,
        exchange: Exchange,
        protocol: WireProtocol,
        error: GatewayError,
        call: Call | None,
        call_id: str,
        path_tags: Mapping[str, str],
    ) -> None:
        if exchange.is_answered:
            return
        error.metadata.setdefault("request_id", call_id)
        tags = echoed_tags(exchange.headers, path_tags) if call is None else call.tags
        headers = error_headers(error, call_id, call, tags)
        if call is None:
            headers.append(("server-timing", f"total;dur={(perf_counter_ns() - exchange.began_ns) / 1e6:.1f}"))
        await exchange.answer(error.status, encoded(headers), protocol.error_body(error))
