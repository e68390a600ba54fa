"""Tries one deployment after another until one answers. Each attempt fits into the call's reservation, or tops it up first."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.errors import UpstreamFailure
from gateway.pipeline.call import Call
from gateway.pipeline.cost_bounds import worst_case_cost
from gateway.pipeline.entry_defaults import with_defaults_of
from gateway.pipeline.fitting import Fitting
from gateway.pipeline.intake import is_among
from gateway.pipeline.ports import InFlightCalls
from gateway.pipeline.reserving import Reserving
from gateway.upstream.deployments import DeploymentPool
from gateway.upstream.failures import is_context_window, retry_after_s
from gateway.upstream.port import (
    Deployment,
    SendObserver,
    Timeouts,
    Upstream,
    UpstreamAnswer,
    UpstreamCall,
    UpstreamError,
)
from policies.reservation import Demand
from policies.routing import is_auto

_log = structlog.get_logger(__name__)
_LOGGED_CHARS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class _Failure:
    deployment: Deployment
    answer: UpstreamAnswer | None
    error: UpstreamError | None

    @property
    def is_context_window(self) -> bool:
        return self.answer is not None and is_context_window(self.answer.status, self.answer.body)

    @property
    def retry_after_s(self) -> float | None:
        return None if self.answer is None else retry_after_s(self.answer.headers, time.time())


class Forwarding:
    def __init__(
        self,
        *,
        upstream: Upstream,
        pool: DeploymentPool,
        reserving: Reserving,
        fitting: Fitting,
        in_flight: InFlightCalls,
        timeouts: Timeouts,
    ) -> None:
        self._upstream = upstream
        self._pool = pool
        self._reserving = reserving
        self._fitting = fitting
        self._in_flight = in_flight
        self._timeouts = timeouts

    async def forward(self, call: Call) -> UpstreamAnswer:
        """The first answer that is a success or a final error. Raises `UpstreamFailure` if the last attempt got no answer."""
        send_observer = self._in_flight.sent(call)
        tried: list[str] = []
        while True:
            failure = await self._attempt(call, send_observer)
            if isinstance(failure, UpstreamAnswer):
                return failure
            tried.append(failure.deployment.id)
            next_deployment = await self._next_deployment(call, failure, tried)
            if next_deployment is None:
                return _final(failure)
            self._fitting.use(call, next_deployment)

    async def _attempt(self, call: Call, send_observer: SendObserver | None) -> UpstreamAnswer | _Failure:
        deployment = call.deployment
        assert deployment is not None  # noqa: S101 - admission chose one
        call.is_with_upstream = True
        try:
            answer = await self._upstream.send(deployment, self._upstream_call(call, send_observer))
        except UpstreamError as error:
            self._pool.report(deployment, error.status)
            _log.warning(
                "upstream_failed", request_id=call.id, model=deployment.name, error=str(error)[:_LOGGED_CHARS_MAX]
            )
            call.is_with_upstream = False
            return _Failure(deployment, None, error)
        call.lane = answer.lane
        if answer.status < 400:
            self._pool.report(deployment, answer.status)
            return answer
        call.is_with_upstream = False
        failure = _Failure(deployment, answer, None)
        self._pool.report(deployment, answer.status, retry_after_s=failure.retry_after_s)
        return failure

    def _upstream_call(self, call: Call, send_observer: SendObserver | None) -> UpstreamCall:
        streamed = call.request.stream or call.holds_slices
        return UpstreamCall(
            protocol=call.protocol.name,
            body=call.protocol.upstream_body(call.request, call.output_cap, streamed),
            stream=streamed,
            headers=call.forwarded_headers,
            client_credential=call.principal.credential if call.principal.is_anonymous else None,
            request_id=call.id,
            timeouts=self._timeouts,
            send_observer=send_observer,
        )

    async def _next_deployment(self, call: Call, failure: _Failure, tried: list[str]) -> Deployment | None:
        """The deployment to try next, after any back-off that is due. None: this failure is final."""
        name = failure.deployment.name
        if not failure.is_context_window:
            sibling = self._pool.choose(name, tried)
            if self._should_retry(failure, len(tried), has_others=sibling is not None):
                candidate = sibling or self._pool.choose(name, include_cooling_down=True)
                if candidate is not None and await self._hold_covers(call, candidate):
                    await self._wait(failure, len(tried), has_others=sibling is not None)
                    return candidate
        return await self._fallback(call, failure, tried)

    async def _fallback(self, call: Call, failure: _Failure, tried: list[str]) -> Deployment | None:
        """A deployment of another model that the key may use and whose worst case fits the hold, or a larger one; None if there is none."""
        allowed = call.principal.allowed_models
        for name in self._fallback_models(call, failure):
            # Otherwise a caller could choose the model after all, by making its own fail: with too long a prompt, for example.
            if allowed and not is_among(name, allowed):
                continue
            candidate = self._pool.choose(name, tried)
            if candidate is not None and await self._hold_covers(call, candidate):
                call.actions.append(f"fallback={name}")
                return candidate
        return None

    def _fallback_models(self, call: Call, failure: _Failure) -> tuple[str, ...]:
        """The models that may answer instead: the configured fallbacks, then the model that the caller named, if routing replaced it.
        The caller did not choose the replacement, so not even its 400 is final."""
        fallbacks: tuple[str, ...] = ()
        if self._should_fall_back(failure):
            fallbacks = self._pool.fallbacks(call.model, context_window=failure.is_context_window)
        requested = call.request.model
        is_replaced = requested != call.model and not is_auto(requested)
        is_unanswered = failure.error is None or not failure.error.bytes_received
        return (*fallbacks, requested) if is_replaced and is_unanswered else fallbacks

    def _should_retry(self, failure: _Failure, attempts: int, *, has_others: bool) -> bool:
        if failure.error is not None:
            return self._pool.should_retry(failure.error, attempts, has_others=has_others)
        assert failure.answer is not None  # noqa: S101 - a failure is an answer or an error
        advice = failure.answer.headers.get("x-should-retry")
        return self._pool.should_retry(
            failure.answer.status, attempts, has_others=has_others, advice=advice, retry_after_s=failure.retry_after_s
        )

    @staticmethod
    def _should_fall_back(failure: _Failure) -> bool:
        if failure.error is not None:
            return not failure.error.bytes_received
        assert failure.answer is not None  # noqa: S101
        status = failure.answer.status
        return failure.is_context_window or status in (401, 403, 404, 408, 429) or status >= 500

    async def _wait(self, failure: _Failure, attempts: int, *, has_others: bool) -> None:
        await asyncio.sleep(self._pool.wait_s(attempts, retry_after_s=failure.retry_after_s, has_others=has_others))

    async def _hold_covers(self, call: Call, candidate: Deployment) -> bool:
        """Whether the hold covers this deployment too, topping it up if needed: its price, prompt count and added fields differ."""
        grant = call.grant
        if grant is None or call.count is None or not grant.held.requests:
            return True
        price = self._fitting.price_of(candidate)
        if price is None and grant.limits_money:
            return False
        count = await self._fitting.count(call, candidate)
        request = with_defaults_of(candidate, call.request)
        worst = worst_case_cost(request, price, count, grant.output_tokens)
        needed_nano_usd = (
            worst.prompt_nano_usd + worst.output_nano_usd_per_token * grant.output_tokens * request.choices
        )
        extra_tokens = count.reserve_tokens - call.count.reserve_tokens
        extra_tokens += grant.output_tokens * (request.choices - call.request.choices)
        extra_nano_usd = needed_nano_usd - grant.held.nano_usd
        if extra_tokens > 0 or extra_nano_usd > 0:
            extra = Demand(max(0, extra_tokens), 0, 0, prompt_nano_usd=max(0, extra_nano_usd), requests=0)
            if await self._reserving.extend(call, extra) is None:
                return False
        call.count = count
        return True


def _final(failure: _Failure) -> UpstreamAnswer:
    if failure.answer is not None:
        return failure.answer
    error = failure.error
    assert error is not None  # noqa: S101 - a failure is an answer or an error
    raise UpstreamFailure(str(error), status=error.status, code=error.code) from error
