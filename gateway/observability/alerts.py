"""Alerts: a budget reached 50, 80 or 100 %, a call overran, a step loops, an engine is out of reach, the outbox fills up.

They always go to the log, and to a webhook if there is one. Each occasion is reported once; for a budget by the settlement
that crossed the mark, in whichever process. The webhook's URL only comes from the configuration file, redirects are not
followed, and each address is checked before connecting (`gateway/addresses.py`), so that neither the webhook's server nor its
DNS can direct the gateway elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

import structlog
from cachetools import LRUCache

from gateway.config.schema import AlertConfig
from gateway.ids import process_name
from gateway.observability.logs import Redact, redacted, redactor
from gateway.pipeline.call import Call
from gateway.tasks import cancel
from policies.amounts import UNITS, Amount
from policies.budgets import Scope
from policies.reservation import Balance

_log = structlog.get_logger(__name__)
_REPORTED_MAX: Final = 50_000
_WAITING_MAX: Final = 1_000
_LOOP_WINDOW_S: Final = 60
_STEPS_MAX: Final = 10_000
# Of one event. A provider that counts otherwise than we do makes every call an overrun, and that must not bury the other alerts.
_SENT_PER_MINUTE_MAX: Final = 30
# Steps come and go by the thousand, and of runs only the end is news. For budgets on keys or projects, early warnings are useful.
_ONLY_AT_THE_END: Final = (Scope.RUN,)


class Alerts:
    def __init__(self, config: AlertConfig, redact: Redact | None = None) -> None:
        self._webhook = config.webhook
        self._redact = redact or redactor()
        self._private_allowed = config.private_networks
        self._percent = tuple(sorted(config.budget_percent))
        self._loop_calls = config.loop_calls
        self._reported: LRUCache[tuple[object, ...], bool] = LRUCache(_REPORTED_MAX)
        self._calls: dict[tuple[str, str, str], int] = {}
        self._window_ends_s = 0.0
        self._minute_ends_s = 0.0
        self._sent: Counter[str] = Counter()  # in this minute, by event
        self._withheld: Counter[str] = Counter()  # since the last one that was sent
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_WAITING_MAX)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._webhook is not None:
            # importing aiohttp takes much of a start, and few gateways have a webhook
            from gateway.observability.webhook import send_forever

            sending = send_forever(self._webhook, self._waiting, private_allowed=self._private_allowed)
            self._task = asyncio.create_task(sending, name="alerts")

    async def stop(self) -> None:
        await cancel(self._task)

    def check_budgets(self, call: Call, balances: Sequence[Balance], booked: Amount) -> None:
        """After a settlement: report the budgets that it took past a mark."""
        self._count(call)
        lowest = self._percent[0]
        for balance, link in zip(balances, call.chain.links, strict=False):
            limit, settled = balance.limit, balance.settled
            # The common case, spelled out because it runs for each account of each call.
            if link.scope is Scope.STEP or not (
                (limit.tokens and 100 * settled.tokens >= lowest * limit.tokens)
                or (limit.nano_usd and 100 * settled.nano_usd >= lowest * limit.nano_usd)
                or (limit.requests and 100 * settled.requests >= lowest * limit.requests)
            ):
                continue
            for unit in UNITS:
                limit_value, settled_value = limit.of(unit), settled.of(unit)
                if limit_value and 100 * settled_value >= lowest * limit_value:
                    percent_before = 100 * (settled_value - booked.of(unit)) // limit_value
                    self._budget_reached(
                        call, link.scope, balance, unit, percent_before, 100 * settled_value // limit_value
                    )

    def refused(self, call: Call) -> None:
        """A caller that repeats refused requests is looping, too."""
        self._count(call)

    def overran(self, call: Call, overrun: Amount) -> None:
        self.report("overrun", call.id, request=call.id, run=call.run, tokens=overrun.tokens, nano_usd=overrun.nano_usd)

    def report(self, event: str, *occasion: object, **facts: Any) -> None:
        """Report once per `occasion`; the facts go to the log and to the webhook."""
        if (event, *occasion) in self._reported:
            return
        self._reported[event, *occasion] = True
        _log.warning(event, **facts)
        if self._task is not None:
            self._send(event, facts)

    def _send(self, event: str, facts: dict[str, Any]) -> None:
        now_s = monotonic()
        if now_s >= self._minute_ends_s:
            self._minute_ends_s = now_s + 60
            self._sent.clear()
        if self._sent[event] >= _SENT_PER_MINUTE_MAX or self._waiting.full():
            self._withheld[event] += 1
            return
        self._sent[event] += 1
        message = {"event": event, **facts, "gateway": process_name()}
        if event in self._withheld:
            message["withheld"] = self._withheld.pop(event)
        self._waiting.put_nowait(redacted(message, self._redact))

    def _count(self, call: Call) -> None:
        """Count the calls of each step in the current minute. Cheap, as every call does it: a dictionary that is cleared each minute."""
        if call.run is None or self._loop_calls is None:
            return
        now_s = monotonic()
        if now_s >= self._window_ends_s or len(self._calls) >= _STEPS_MAX:
            self._window_ends_s = now_s + _LOOP_WINDOW_S
            self._calls.clear()
        key = (call.principal.project, call.run, call.tags.step)
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        if calls == self._loop_calls:
            facts = {"project": key[0], "run": key[1], "step": key[2], "calls": calls, "seconds": _LOOP_WINDOW_S}
            self.report("loop_suspected", *key, **facts)

    def _budget_reached(
        self, call: Call, scope: Scope, balance: Balance, unit: str, percent_before: int, percent_reached: int
    ) -> None:
        mark = max(percent for percent in self._percent if percent <= percent_reached)
        if percent_before >= mark or (scope in _ONLY_AT_THE_END and mark < 100):
            return
        self.report(
            "budget_reached",
            call.principal.project,
            balance.account,
            unit,
            balance.limit,  # so that a raised budget can reach its marks again
            mark,
            project=call.principal.project,
            scope=scope.value,
            account=balance.account,
            unit=unit,
            percent=mark,
        )
