"""Tells people: a budget reached 50, 80 or 100 %, a call overran, the outbox fills. To the log always, to a webhook if there is one.

Each occasion is told once. The webhook's address comes from the configuration file alone; redirects are not followed, so
that nobody behind it can point the gateway elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import aiohttp
import structlog
from cachetools import LRUCache

from gateway.pipeline.call import Call
from policies.amounts import UNITS, Amount
from policies.budgets import Scope
from policies.reservation import Balance

_log = structlog.get_logger(__name__)
_TOLD_MAX: Final = 50_000
_WAITING_MAX: Final = 1_000
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
# Steps come and go by the thousand; of runs only the end is news. Whoever limits a key or a project wants to know early.
_ONLY_AT_THE_END: Final = (Scope.RUN,)


class Alerts:
    def __init__(self, webhook: str | None, budget_percent: Sequence[int]) -> None:
        self._webhook = webhook
        self._percent = tuple(sorted(budget_percent))
        self._told: LRUCache[tuple[object, ...], bool] = LRUCache(_TOLD_MAX)
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_WAITING_MAX)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._webhook is not None:
            self._task = asyncio.create_task(self._send_forever(self._webhook), name="alerts")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def look(self, call: Call, balances: Sequence[Balance]) -> None:
        """After a settlement: did it take a budget over a mark?"""
        for balance, link in zip(balances, call.chain.links, strict=False):
            if link.scope is Scope.STEP or balance.limit.is_unlimited:
                continue
            for unit in UNITS:
                limit = balance.limit.of(unit)
                if limit:
                    reached = 100 * balance.settled.of(unit) // limit
                    if reached >= self._percent[0]:
                        self._budget_reached(call, link.scope, balance, unit, reached)

    def overran(self, call: Call, overrun: Amount) -> None:
        self.tell("overrun", call.id, request=call.id, run=call.run, tokens=overrun.tokens, nano_usd=overrun.nano_usd)

    def tell(self, event: str, *occasion: object, **facts: Any) -> None:
        """Once for each `occasion`; the facts go to the log and to the webhook."""
        if (event, *occasion) in self._told:
            return
        self._told[event, *occasion] = True
        _log.warning(event, **facts)
        if self._task is not None and not self._waiting.full():
            self._waiting.put_nowait({"event": event, **facts})

    def _budget_reached(self, call: Call, scope: Scope, balance: Balance, unit: str, reached: int) -> None:
        mark = max(percent for percent in self._percent if percent <= reached)
        if scope in _ONLY_AT_THE_END and mark < 100:
            return
        self.tell(
            "budget_reached",
            call.principal.project,
            balance.account,
            unit,
            mark,
            project=call.principal.project,
            scope=scope.value,
            account=balance.account,
            unit=unit,
            percent=mark,
        )

    async def _send_forever(self, webhook: str) -> None:
        async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False) as session:
            while True:
                message = await self._waiting.get()
                try:
                    async with session.post(webhook, json=message, allow_redirects=False) as answer:
                        if answer.status >= 300:
                            _log.warning("alert_not_taken", status=answer.status)
                except (aiohttp.ClientError, TimeoutError) as error:
                    _log.warning("alert_not_sent", error=type(error).__name__)
