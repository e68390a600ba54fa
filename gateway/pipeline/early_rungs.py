"""Rungs that are taken while a call still fits: as soon as no more than a given share of a budget is left.

Only ladders that name shares use this, so only their calls pay for looking up what is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from gateway.errors import GatewayError
from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.pipeline.call import Call
from gateway.pipeline.fitting import Fitting
from gateway.pipeline.ports import Planner
from gateway.pipeline.pressure_ladder import WAIT_STEP_MS
from gateway.pipeline.refusal import refusal_error
from policies.pressure import Rung, TightestLimit, tightest_limit
from policies.reservation import Demand, Refusal, Refused

_EMPTY_DEMAND: Final = Demand(0, 0, 0, requests=0)


class EarlyRungs:
    def __init__(
        self,
        *,
        ledger: Ledger,
        planner: Planner,
        fitting: Fitting,
        skip_reason: Callable[[Call, Rung], str],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._ledger = ledger
        self._planner = planner
        self._fitting = fitting
        self._skip_reason = skip_reason
        self._sleep = sleep

    async def take(self, call: Call) -> None:
        """Take the rungs that are due. Raises the refusal of a ladder that holds back the last share of a budget."""
        tightest = await self._tightest_limit(call)
        for rung, share in call.chain.ladder.early:
            if tightest is None or tightest.share > share:
                continue
            skip_reason = self._skip_reason(call, rung)
            facts = {"rung": rung, "left": round(tightest.share, 4), "from": share}
            if skip_reason:
                call.decisions.append(facts | {"result": "not tried", "why": skip_reason})
                continue
            call.decisions.append(facts | {"result": "taken early", "account": tightest.account, "unit": tightest.unit})
            tightest = await self._take_rung(call, rung, share, tightest)

    async def _take_rung(self, call: Call, rung: Rung, share: float, tightest: TightestLimit) -> TightestLimit | None:
        match rung:
            case Rung.COMPRESS:
                await self._fitting.compress(call, None)
            case Rung.ROUTE:
                await self._fitting.reroute(call, None)
            case Rung.CLAMP:
                self._clamp(call, tightest)
            case Rung.WAIT:
                return await self._wait(call, share, tightest)
            case Rung.REFUSE:
                raise await self._share_refusal(call, share, tightest)
        return tightest

    def _clamp(self, call: Call, tightest: TightestLimit) -> None:
        """Clamp the answer: prompt and answer may use half of what is left, which leaves something for later calls.

        Never clamps below the shortest useful answer.
        """
        demand = self._fitting.demand(call)
        spendable = tightest.remaining // 2
        if tightest.unit == "tokens":
            room = spendable - demand.prompt_tokens
        elif tightest.unit == "nano_usd" and demand.output_nano_usd_per_token:
            room = (spendable - demand.prompt_nano_usd) // demand.output_nano_usd_per_token
        else:
            return
        shortest = max(self._fitting.output_tokens_min(call), self._planner.output_tokens_min_useful(call))
        cap = max(room // demand.choices, shortest)
        if cap < demand.output_tokens_max:
            call.request.output_tokens_max = call.output_cap = cap
            call.actions.append("clamp")

    async def _wait(self, call: Call, share: float, tightest: TightestLimit) -> TightestLimit | None:
        """Wait while calls in flight hold amounts that may come back, for at most the budget's `wait_seconds`."""
        waited_ms = 0
        current: TightestLimit | None = tightest
        while (
            current is not None
            and current.share <= share
            and current.balance.reserved.of(current.unit) > 0
            and waited_ms < call.chain.wait_ms
        ):
            await self._sleep(WAIT_STEP_MS / 1000)
            waited_ms += WAIT_STEP_MS
            current = await self._tightest_limit(call)
        if waited_ms:
            call.actions.append(f"wait={waited_ms}ms")
        return current

    async def _share_refusal(self, call: Call, share: float, tightest: TightestLimit) -> GatewayError:
        # Reserve nothing: the ledger records what the call tightens, and reports the balances of all accounts.
        decision = await self._fitting.try_reserve(call, _EMPTY_DEMAND)
        call.reported_balances = decision.balances
        if isinstance(decision, Refused):
            self._planner.refused(call, decision)
            return refusal_error(call, decision)
        needed = self._fitting.demand(call).prompt_amount.of(tightest.unit)
        refused = Refused(Refusal.EXCEEDED, tightest.account, tightest.unit, needed, tightest.balance, decision.now_ms)
        self._planner.refused(call, refused)
        error = refusal_error(call, refused)
        error.message += f" The last {share:.0%} of this budget are kept back for others."
        return error

    async def _tightest_limit(self, call: Call) -> TightestLimit | None:
        holds = call.chain.holds
        try:
            balances = await self._ledger.balances(call.principal.project, [hold.account for hold in holds])
        except LedgerUnavailable:  # reserving will find out whether the call fits
            return None
        return tightest_limit(holds, balances)
