"""Count, admit, reserve: one call against every budget that applies to it, in a single ledger operation.

A call that does not fit climbs the ladder that the innermost budget declares (`pressure_ladder`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from gateway.budgets.budget_book import BudgetBook
from gateway.control import Snapshot
from gateway.errors import BadRequest
from gateway.ledger.port import Ledger
from gateway.pipeline.call import Call
from gateway.pipeline.early_rungs import EarlyRungs
from gateway.pipeline.fitting import Fitting
from gateway.pipeline.ports import Planner
from gateway.pipeline.pressure_ladder import PressureLadder
from gateway.pipeline.refusal import refusal_error
from gateway.runs.registry import RunRegistry
from policies.budgets import RunLimits
from policies.pressure import Rung
from policies.reservation import Demand, Granted


class Admission:
    def __init__(
        self,
        *,
        ledger: Ledger,
        fitting: Fitting,
        planner: Planner,
        runs: RunRegistry,
        budgets: BudgetBook,
        snapshot: Callable[[], Snapshot],
        now_ms: Callable[[], int],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._fitting = fitting
        self._planner = planner
        self._runs = runs
        self._budgets = budgets
        self._snapshot = snapshot
        self._now_ms = now_ms
        self._ladder = PressureLadder(planner=planner, fitting=fitting, sleep=sleep)
        self._early = EarlyRungs(
            ledger=ledger, planner=planner, fitting=fitting, skip_reason=self._ladder.skip_reason, sleep=sleep
        )

    async def admit(self, call: Call) -> None:
        """Fill in the call's chain, count, price and grant. Raises `BudgetRefusal`, `LedgerOutage`, `OutboxFull` or `BadRequest`."""
        if call.tags.parent_run is not None:
            await self._runs.check_parent(call)
        snapshot = self._snapshot()
        limits = await self._planner.plan(call, snapshot) if call.is_tagged else RunLimits()
        if call.is_tagged and self._runs.is_under_new_workflow(call):
            limits = await self._tightened_by_other_workflows(call, limits)
        parents = self._runs.parents(call)
        if parents:
            call.parent_run = parents[0].run
        # Whether money is limited decides which models can take the call.
        call.chain = self._budgets.chain(call, parents, limits, self._now_ms())
        call.model = self._planner.model_for(call, snapshot)
        self._fitting.use(call, self._fitting.choose(call.model))
        call.timings.stop("classify")
        if not call.chain.links:
            return
        call.count = await self._fitting.count(call)
        ladder = call.chain.ladder
        is_early = bool(ladder.early) and ladder.share_of(Rung.COMPRESS) is not None
        if not is_early and not self._ladder.skip_reason(call, Rung.COMPRESS):
            await self._fitting.compress(call, None)
        if ladder.early:
            await self._early.take(call)
        call.timings.stop("count")
        if call.price is None and call.chain.limits_money:
            raise _unpriced(call)
        call.timings.stop("admit")
        try:
            await self._reserve(call)
        finally:
            call.timings.stop("reserve")

    async def _tightened_by_other_workflows(self, call: Call, limits: RunLimits) -> RunLimits:
        """Tighten `limits`: a run used under several workflows is held to the run budgets of all of them."""
        limit = await self._runs.limit_of_other_workflows(call, self._budgets())
        return limits if limit.is_unlimited else replace(limits, tightened=limits.tightened.tightened_by(limit))

    async def _reserve(self, call: Call, *, replans: bool = True) -> None:
        """Climb the ladder until the call fits. If it never does, the client gets the last refusal."""
        demand, decision = await self._ladder.climb(call)
        if isinstance(decision, Granted):
            return self._accept(call, demand, decision)
        snapshot = self._snapshot()
        limits = await self._planner.replan(call, decision, snapshot) if replans else None
        if limits is not None:
            if self._runs.is_under_new_workflow(call):
                limits = await self._tightened_by_other_workflows(call, limits)
            call.chain = self._budgets.chain(call, self._runs.parents(call), limits, self._now_ms())
            return await self._reserve(call, replans=False)
        self._planner.refused(call, decision)
        call.reported_balances = decision.balances
        raise refusal_error(call, decision)

    def _accept(self, call: Call, demand: Demand, granted: Granted) -> None:
        """Remember the grant. If the ledger limits money where the chain does not, the call is refused, and its hold is voided."""
        if call.price is None and granted.limits_money:
            raise _unpriced(call)
        call.grant = granted
        if granted.breaches:
            call.actions.append("observe=would_refuse")
            call.decisions.append({"observed": list(granted.breaches)})
            self._planner.observed(call, granted.breaches)
        if call.holds_slices or not call.request.has_output:
            return
        longest = call.request.output_tokens_max or self._fitting.model_output_tokens_max(call)
        if call.request.is_cap_assumed or longest is None or granted.output_tokens < longest:
            call.output_cap = granted.output_tokens
        if granted.output_tokens < demand.output_tokens_max and "clamp" not in call.actions:
            call.actions.append("clamp")


def _unpriced(call: Call) -> BadRequest:
    """An unknown price never means free (P3)."""
    return BadRequest(
        f"The model {call.request.model!r} has no known price, and money is limited for this call. "
        "Set model_info.input_cost_per_token and output_cost_per_token in its model_list entry.",
        code="unpriced_model",
        param="model",
    )
