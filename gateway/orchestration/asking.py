"""A question of our own to a configured model: classification, semantic compression. Booked apart from every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson
import structlog

from gateway.ledger.port import EntryKind, OutboxEntry
from gateway.pipeline.call import LOCAL_PROJECT
from gateway.pipeline.settlement import Recorder
from gateway.pricebook import PriceBook
from gateway.upstream.deployments import Pool
from gateway.upstream.port import Timeouts, Upstream, UpstreamCall, UpstreamError
from gateway.wire.choices import usage_of
from policies.amounts import Amount
from policies.pricing import cost_nano_usd

_log = structlog.get_logger(__name__)
_TIMEOUTS: Final = Timeouts(connect_ms=2_000, first_byte_ms=15_000, idle_ms=15_000, total_ms=20_000)
# What usage reports show in place of a key: these tokens are overhead of the orchestration, not of any run.
OVERHEAD: Final = "orchestration"


class Asking:
    def __init__(
        self,
        *,
        upstream: Upstream,
        pool: Pool,
        prices: PriceBook,
        recorder: Recorder,
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        self._upstream = upstream
        self._pool = pool
        self._prices = prices
        self._recorder = recorder
        self._new_id = new_id
        self._now_ms = now_ms

    async def ask(self, model: str, body: dict[str, Any]) -> bytes | None:
        """The answer's body, None when there is none to be had. One attempt: what is asked here is never needed."""
        deployment = self._pool.choose(model)
        if deployment is None:
            return None
        call_id = self._new_id()
        try:
            answer = await self._upstream.send(
                deployment, UpstreamCall("chat", body, stream=False, request_id=call_id, timeouts=_TIMEOUTS)
            )
        except UpstreamError as error:
            self._pool.report(deployment, error.status)
            _log.warning("own_question_failed", model=model, error=str(error))
            return None
        except BaseException:
            self._pool.release(deployment)
            raise
        self._pool.report(deployment, answer.status)
        if answer.close is not None:
            await answer.close()
        if answer.status >= 400:
            return None
        self._book(call_id, model, answer.body)
        return answer.body

    def _book(self, call_id: str, model: str, body: bytes) -> None:
        try:
            usage = usage_of(orjson.loads(body).get("usage"))
        except (orjson.JSONDecodeError, AttributeError):
            usage = None
        if usage is None:
            return
        price = self._prices.price(self._pool.of(model)[0])
        cost = cost_nano_usd(price, usage) if price is not None else 0
        event = {
            "request_id": call_id,
            "key_id": OVERHEAD,
            "protocol": "chat",
            "model_requested": model,
            "model": model,
            "status": "ok",
            "usage_source": "provider",
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
        }
        amount = Amount(usage.input_tokens + usage.output_tokens, cost, 1)
        entry = OutboxEntry("", call_id, EntryKind.RECORDED, LOCAL_PROJECT, amount, self._now_ms(), orjson.dumps(event))
        self._recorder.record(LOCAL_PROJECT, entry)
