"""Model calls that the gateway makes itself: for classification and for semantic compression.

Questions about steps in general are overhead, and booked separately from all runs. Questions on behalf of one call are charged to that
call's budgets: they are reserved on its chain like a call, and not asked if they do not fit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog

from gateway.ledger.port import EntryKind, Ledger, LedgerUnavailable, OutboxEntry, Reserve
from gateway.pipeline.call import LOCAL_PROJECT, Call
from gateway.pipeline.events import draft_of
from gateway.pipeline.ports import Recorder
from gateway.pricebook import PriceBook
from gateway.upstream.deployments import DeploymentPool
from gateway.upstream.port import Deployment, Purpose, Timeouts, Upstream, UpstreamCall, UpstreamError
from gateway.wire.choices import usage_in
from policies.amounts import Amount
from policies.pricing import Usage, cost_nano_usd, worst_case
from policies.reservation import Demand, Granted
from policies.routing import estimated_prompt_tokens

_log = structlog.get_logger(__name__)
_TIMEOUTS: Final = Timeouts(connect_ms=2_000, first_byte_ms=15_000, idle_ms=15_000, total_ms=20_000)
# Longer than a question may take, because its hold is not renewed.
_HOLD_MS: Final = 60_000
# Stands in for the key in usage reports: these tokens are overhead of the orchestration, not of any run.
OVERHEAD: Final = "orchestration"


@dataclass(frozen=True, slots=True)
class ChargedAnswer:
    """An answer whose cost was charged to a run."""

    body: bytes
    cost_nano_usd: int


@dataclass(frozen=True, slots=True)
class _ModelAnswer:
    """What came of a question. `body` None: no answer. `may_cost`: the provider may bill it even so."""

    body: bytes | None
    usage: Usage | None = None
    may_cost: bool = True


class ModelCalls:
    def __init__(
        self,
        *,
        upstream: Upstream,
        pool: DeploymentPool,
        prices: PriceBook,
        recorder: Recorder,
        ledger: Ledger,
        owner: str,
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        self._upstream = upstream
        self._pool = pool
        self._prices = prices
        self._recorder = recorder
        self._ledger = ledger
        self._owner = owner
        self._new_id = new_id
        self._now_ms = now_ms

    async def ask(self, model: str, body: dict[str, Any], purpose: Purpose) -> bytes | None:
        """The body of the answer, or None. There is only one attempt, because the answer is never essential.

        `body` has a `max_tokens`: if the provider does not report what it used, the longest answer is booked.
        """
        deployment = self._pool.choose(model)
        if deployment is None:
            return None
        call_id = self._new_id()
        heard = await self._send(deployment, model, call_id, body, purpose)
        if heard.may_cost:
            longest = Usage(estimated_prompt_tokens(body), body["max_tokens"])
            source = "estimated" if heard.usage is None else "provider"
            self._book_overhead(call_id, model, deployment, heard.usage or longest, source)
        return heard.body

    def demand(self, model: str, prompt_tokens: int, output_tokens_max: int) -> Demand | None:
        """The worst case of a question, to be reserved; None if the model has no known price."""
        deployments = self._pool.of(model)
        price = self._prices.price(deployments[0]) if deployments else None
        if price is None:
            return None
        worst = worst_case(price, prompt_tokens, output_tokens_max)
        return Demand(
            prompt_tokens,
            output_tokens_max,
            output_tokens_max,
            worst.prompt_nano_usd,
            worst.output_nano_usd_per_token,
        )

    async def ask_for(
        self, call: Call, model: str, body: dict[str, Any], demand: Demand, purpose: Purpose
    ) -> ChargedAnswer | None:
        """Ask at the expense of `call`, whose chain must be known. None: the question does not fit, or has no answer.

        The reservation is settled or released before this returns, even if it is cancelled.
        """
        deployment = self._pool.choose(model)
        if deployment is None:
            return None
        call_id = self._new_id()
        if not await self._reserved(call, call_id, deployment, demand, purpose):
            return None
        project = call.principal.project
        try:
            heard = await self._send(deployment, model, call_id, body, purpose)
        except BaseException:
            await asyncio.shield(self._settle(project, call_id, deployment, demand, None))
            raise
        if not heard.may_cost:
            await asyncio.shield(self._void(project, call_id))
            return None
        cost = await asyncio.shield(self._settle(project, call_id, deployment, demand, heard.usage))
        return None if heard.body is None else ChargedAnswer(heard.body, cost)

    async def _reserved(
        self, call: Call, call_id: str, deployment: Deployment, demand: Demand, purpose: Purpose
    ) -> bool:
        draft = orjson.loads(draft_of(call)) | {
            "request_id": call_id,
            "protocol": "chat",
            "stream": False,
            "model_requested": deployment.name,
            "model": deployment.name,
            "provider": deployment.provider,
            "prompt_tokens_counted": demand.prompt_tokens,
            "actions": purpose,
            "detail": {"asked_for": call.id},
        }
        request = Reserve(call_id, self._owner, call.chain.holds, demand, _HOLD_MS, orjson.dumps(draft))
        try:
            return isinstance(await self._ledger.reserve(call.principal.project, request), Granted)
        except LedgerUnavailable:  # the answer may have been lost on the way
            with contextlib.suppress(LedgerUnavailable):
                await self._ledger.void(call.principal.project, call_id)
            return False

    async def _settle(
        self, project: str, call_id: str, deployment: Deployment, demand: Demand, usage: Usage | None
    ) -> int:
        """Settle the question, and return what was booked in nano-USD: the worst case if the provider does not report usage."""
        source = "provider" if usage is not None else "estimated"
        billed_usage = usage or Usage(demand.prompt_tokens, demand.output_tokens_max)
        amount = self._amount(deployment, billed_usage)
        detail = {
            "status": "ok",
            "usage_source": source,
            "input_tokens": billed_usage.input_tokens,
            "output_tokens": billed_usage.output_tokens,
            "cache_read_tokens": billed_usage.cache_read_tokens,
            "reasoning_tokens": billed_usage.reasoning_tokens,
        }
        try:
            await self._ledger.settle(project, call_id, amount, orjson.dumps(detail))
        except LedgerUnavailable:  # the sweeper books the hold
            _log.warning("own_question_not_settled", request_id=call_id)
        return amount.nano_usd

    async def _void(self, project: str, call_id: str) -> None:
        try:
            await self._ledger.void(project, call_id)
        except LedgerUnavailable:
            _log.warning("hold_left_to_sweeper", request_id=call_id)

    async def _send(
        self, deployment: Deployment, model: str, call_id: str, body: dict[str, Any], purpose: Purpose
    ) -> _ModelAnswer:
        question = UpstreamCall("chat", body, stream=False, request_id=call_id, timeouts=_TIMEOUTS, purpose=purpose)
        self._pool.acquire(deployment)
        try:
            answer = await self._upstream.send(deployment, question)
        except UpstreamError as error:
            self._pool.report(deployment, error.status)
            _log.warning("own_question_failed", model=model, error=str(error))
            return _ModelAnswer(None, may_cost=error.bytes_received)
        finally:
            self._pool.release(deployment)
        self._pool.report(deployment, answer.status)
        return (
            _ModelAnswer(None, may_cost=False)
            if answer.status >= 400
            else _ModelAnswer(answer.body, usage_in(answer.body))
        )

    def _book_overhead(self, call_id: str, model: str, deployment: Deployment, usage: Usage, source: str) -> None:
        amount = self._amount(deployment, usage)
        event = {
            "request_id": call_id,
            "key_id": OVERHEAD,
            "protocol": "chat",
            "model_requested": model,
            "model": model,
            "status": "ok",
            "usage_source": source,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
        }
        entry = OutboxEntry("", call_id, EntryKind.RECORDED, LOCAL_PROJECT, amount, self._now_ms(), orjson.dumps(event))
        self._recorder.record(LOCAL_PROJECT, entry)

    def _amount(self, deployment: Deployment, usage: Usage) -> Amount:
        price = self._prices.price(deployment)
        cost = cost_nano_usd(price, usage) if price is not None else 0
        return Amount(usage.input_tokens + usage.output_tokens, cost, 1)
