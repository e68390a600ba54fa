"""Handles one call: its stages, in the order in which they happen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from time import perf_counter_ns
from typing import Any, Final

import structlog

from gateway.answers.port import StoredAnswer
from gateway.errors import GatewayError, LedgerOutage, stopping
from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.pipeline.admission import Admission
from gateway.pipeline.answer_cache import HEADER as CACHE_HEADER
from gateway.pipeline.answer_cache import HIT_ACTION, AnswerCache, CacheLookup
from gateway.pipeline.call import Call, Outcome, Settlement
from gateway.pipeline.concurrency import ConcurrencyLimits
from gateway.pipeline.exchange import ClientDisconnected, Exchange
from gateway.pipeline.idempotency import HEADER as IDEMPOTENCY_HEADER
from gateway.pipeline.idempotency import REPLAYED_HEADER, Idempotency
from gateway.pipeline.intake import Intake
from gateway.pipeline.loop_breaker import LoopBreaker
from gateway.pipeline.ports import InFlightCalls
from gateway.pipeline.relaying import Relaying
from gateway.pipeline.response_headers import call_headers, encoded, error_headers
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
        in_flight: InFlightCalls,
        ledger: Ledger,
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
        self._in_flight = in_flight
        self._ledger = ledger
        self._concurrency = concurrency
        self._idempotency = idempotency
        self._cache = cache
        self._loop_breaker = loop_breaker
        self._new_run_limit = new_run_limit
        self._new_id = new_id
        self._settling: set[asyncio.Task[Any]] = set()

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
            if call is not None and not call.is_admitted:
                self._settler.refused(call, error.code)
            await self._answer_error(exchange, protocol, error, call, call_id, path_tags)
        except Exception:  # noqa: BLE001 - the safety net: a bug of ours is answered and logged, and the hold resolved
            _log.exception("call_failed", request_id=call_id)
            if call is not None and not call.is_admitted:
                self._settler.not_admitted(call, "internal_error", "error")
            internal_error = GatewayError("Something broke inside the gateway.")
            await self._answer_error(exchange, protocol, internal_error, call, call_id, path_tags)

    async def _serve_once(self, exchange: Exchange, call: Call) -> None:
        async with self._idempotency.once(exchange, call) as stored:
            if stored is None:
                await self._serve(exchange, call)
            else:
                await self._replay(exchange, call, stored)

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
            # The reservation may exist even though the ledger's reply never arrived; voiding it by its id is harmless if not.
            if call.count is not None and call.grant is None:
                is_outage = isinstance(error, LedgerOutage)
                undo = self._start_task(self._undo_admission(call, is_outage=is_outage))
                # An unreachable ledger replies late or never, so do not keep the client waiting for it.
                if not is_outage:
                    await asyncio.shield(undo)
            raise

    async def _undo_admission(self, call: Call, *, is_outage: bool) -> None:
        try:
            await self._ledger.void(call.principal.project, call.id)
        except LedgerUnavailable:
            # A call that an outage refused has hardly ever a hold, and the outage itself is in the log once.
            if not is_outage:
                _log.warning("hold_left_to_sweeper", request_id=call.id)

    async def _replay(self, exchange: Exchange, call: Call, stored: StoredAnswer) -> None:
        """Send the stored answer. Nothing is admitted or spent: the first call was."""
        call.actions.append("replay")
        await self.settle(call, Outcome())
        headers = [*encoded(call_headers(call, ())), (b"content-type", stored.content_type), _REPLAYED]
        await exchange.answer(200, headers, stored.body)

    async def _forward(self, exchange: Exchange, call: Call, lookup: CacheLookup | None) -> None:
        outcome = Outcome()
        settle_once = _SettleOnce(self, call)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - we are in it
        exchange.watch(task)
        try:
            stored = None if lookup is None else await self._cache.find(lookup)
            if stored is not None:
                call.actions.append(HIT_ACTION)
                await self._answer_from_cache(exchange, call, stored, await settle_once.settle(outcome))
                return
            await self._relaying.relay(exchange, call, outcome, settle_once.settle)
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
            await settle_once.settle(outcome)

    async def _answer_from_cache(
        self, exchange: Exchange, call: Call, stored: StoredAnswer, settlement: Settlement
    ) -> None:
        """Send a cached answer. The whole hold has been released, because no provider was called."""
        headers = [
            *encoded(call_headers(call, settlement.balances)),
            (b"content-type", stored.content_type),
            _CACHE_HIT,
        ]
        await exchange.answer(200, headers, stored.body)

    async def settle(self, call: Call, outcome: Outcome) -> Settlement:
        """Settle even if the calling task is cancelled: the settlement is then repeated in a task of its own.

        Repeating it is safe, because the ledger knows by the call's id what it has already booked.
        """
        try:
            return await self._settler.settle(call, outcome)
        except asyncio.CancelledError:
            await asyncio.shield(self._start_task(self._settler.settle(call, outcome)))
            raise
        finally:
            self._in_flight.finished(call)

    def _start_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def drain(self) -> None:
        """Wait for settlements whose callers are already gone."""
        while self._settling:
            # Not `gather`: from Python 3.12 on it does not yield if all are done, and then their callbacks never empty the set.
            await asyncio.wait(self._settling)

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


class _SettleOnce:
    """Settles a call once: only the first outcome counts, and later calls get the same settlement."""

    def __init__(self, handler: CallHandler, call: Call) -> None:
        self._handler = handler
        self._call = call
        self._settlement: Settlement | None = None
        self._begun = False

    async def settle(self, outcome: Outcome) -> Settlement:
        if not self._begun:
            self._begun = True
            self._settlement = await self._handler.settle(self._call, outcome)
            self._call.reported_balances = tuple(self._settlement.balances)
        return self._settlement or Settlement()
