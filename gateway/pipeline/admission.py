"""Count, admit, reserve: one call against every budget that applies to it, in a single ledger operation.

A call that does not fit climbs the ladder that the innermost budget declares (`pressure_ladder`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, cast

from gateway.budgets.budget_book import BudgetBook
from gateway.control import Snapshot
from gateway.errors import BadRequest, ModelNotFound
from gateway.ledger.port import Ledger, Reserve
from gateway.pipeline.call import Call
from gateway.pipeline.cost_bounds import worst_case_cost
from gateway.pipeline.early_rungs import EarlyRungs
from gateway.pipeline.entry_defaults import with_defaults_of
from gateway.pipeline.events import draft_of
from gateway.pipeline.ports import Planner
from gateway.pipeline.pressure_ladder import PressureLadder
from gateway.pipeline.refusal import refusal_error
from gateway.pipeline.reserving import Reserving
from gateway.pipeline.stored_histories import StoredHistories
from gateway.pricebook import PriceBook
from gateway.runs.registry import RunRegistry
from gateway.tokenizer import Tokenizer
from gateway.upstream.deployments import DeploymentPool
from gateway.upstream.port import Deployment
from policies.budgets import RunLimits
from policies.pressure import Rung
from policies.pricing import Price, Usage
from policies.reservation import Decision, Demand, Granted, OnLost, Refused
from policies.tokens import PromptCount

# No model writes more in one answer, and a larger cap could push sums of money out of the exact range.
OUTPUT_TOKENS_PLAUSIBLE_MAX: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    ttl_ms: int
    output_tokens_min: int
    output_tokens_unknown: int
    slice_tokens: int
    on_lost: OnLost
    owner: str


class Admission:
    def __init__(
        self,
        *,
        ledger: Ledger,
        reserving: Reserving,
        tokenizer: Tokenizer,
        prices: PriceBook,
        pool: DeploymentPool,
        planner: Planner,
        runs: RunRegistry,
        budgets: BudgetBook,
        snapshot: Callable[[], Snapshot],
        now_ms: Callable[[], int],
        rules: AdmissionRules,
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._ledger = ledger
        self._reserving = reserving
        self._tokenizer = tokenizer
        self._prices = prices
        self._pool = pool
        self._planner = planner
        self._runs = runs
        self._budgets = budgets
        self._snapshot = snapshot
        self._now_ms = now_ms
        self._rules = rules
        self._histories = StoredHistories()
        self._ladder = PressureLadder(
            planner=planner,
            try_reserve=self._try_reserve,
            demand=self._demand,
            compress=partial(self._compress, under_pressure=True),
            reroute=self._reroute,
            output_tokens_min=rules.output_tokens_min,
            sleep=sleep,
        )
        self._early = EarlyRungs(
            ledger=ledger,
            planner=planner,
            skip_reason=self._ladder.skip_reason,
            compress=self._compress,
            reroute=self._reroute,
            demand=self._demand,
            try_reserve=self._try_reserve,
            output_tokens_min=rules.output_tokens_min,
            sleep=sleep,
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
        self.use(call, self.choose(call.model))
        call.timings.stop("classify")
        if not call.chain.links:
            return
        call.count = await self.count(call)
        ladder = call.chain.ladder
        is_early = bool(ladder.early) and ladder.share_of(Rung.COMPRESS) is not None
        if not is_early and not self._ladder.skip_reason(call, Rung.COMPRESS):
            await self._compress(call, None)
        if ladder.early:
            await self._early.take(call)
        call.timings.stop("count")
        self._require_price(call, call.chain.limits_money)
        call.timings.stop("admit")
        try:
            await self._reserve(call)
        finally:
            call.timings.stop("reserve")

    async def _tightened_by_other_workflows(self, call: Call, limits: RunLimits) -> RunLimits:
        """Tighten `limits`: a run used under several workflows is held to the run budgets of all of them."""
        limit = await self._runs.limit_of_other_workflows(call, self._budgets())
        return limits if limit.is_unlimited else replace(limits, tightened=limits.tightened.tightened_by(limit))

    def use(self, call: Call, deployment: Deployment) -> None:
        """Set the deployment to call, its price, and the fields that its entry adds to the request."""
        self._pool.acquire(deployment)
        self.release_deployment(call)
        call.deployment = deployment
        call.price = self._prices.price(deployment)
        call.request = with_defaults_of(deployment, call.request)

    def choose(self, model: str) -> Deployment:
        deployment = self._pool.choose(model, include_cooling_down=True)
        if deployment is None:
            raise ModelNotFound(
                f"There is no model {model[:200]!r}; GET /v1/models lists what there is.", param="model"
            )
        return deployment

    def release_deployment(self, call: Call) -> None:
        """The call is over. It counts as in flight from the choice of its deployment, so that a burst is spread, to its last byte."""
        if call.deployment is not None:
            self._pool.release(call.deployment)

    def price_of(self, deployment: Deployment) -> Price | None:
        return self._prices.price(deployment)

    async def count(self, call: Call, deployment: Deployment | None = None) -> PromptCount:
        """Count the prompt by the rules of `deployment`; by default, those of the call's own."""
        counted_as = call.protocol.counted_as
        if counted_as is None:
            return PromptCount(0, 0, exact=True)
        deployment = deployment or call.deployment
        assert deployment is not None  # noqa: S101 - `use` comes first
        count = await self._tokenizer.count_prompt(counted_as, call.request.body, deployment.model, deployment.provider)
        return self._histories.with_stored_history(call, count) if counted_as == "responses" else count

    def remember_history(self, call: Call, usage: Usage) -> None:
        """Remember that the provider stores this conversation, so that later calls can continue it."""
        self._histories.remember(call, usage)

    async def _reserve(self, call: Call, *, replans: bool = True) -> None:
        """Climb the ladder until the call fits. If it never does, the client gets the last refusal."""
        demand, decision = await self._ladder.climb(call)
        if isinstance(decision, Granted):
            return await self._accept(call, demand, decision)
        snapshot = self._snapshot()
        limits = await self._planner.replan(call, decision, snapshot) if replans else None
        if limits is not None:
            limits = (
                await self._tightened_by_other_workflows(call, limits)
                if self._runs.is_under_new_workflow(call)
                else limits
            )
            call.chain = self._budgets.chain(call, self._runs.parents(call), limits, self._now_ms())
            return await self._reserve(call, replans=False)
        self._planner.refused(call, decision)
        call.reported_balances = decision.balances
        raise refusal_error(call, decision)

    async def _compress(self, call: Call, needed_tokens: int | None, *, under_pressure: bool = False) -> bool:
        changed = await self._planner.compress(call, needed_tokens, under_pressure=under_pressure)
        if changed:
            call.count = await self.count(call)
        return changed

    async def _reroute(self, call: Call, refused: Refused | None) -> bool:
        """Choose a cheaper model. Its entry adds its own fields, and its tokenizer may count more tokens in the same prompt."""
        changed = await self._planner.reroute(call, refused)
        if changed:
            self.use(call, cast(Deployment, call.deployment))
            call.count = await self.count(call)
        return changed

    def _try_reserve(self, call: Call, demand: Demand) -> Awaitable[Decision]:
        request = Reserve(
            id=call.id,
            owner=self._rules.owner,
            holds=call.chain.holds,
            demand=demand,
            ttl_ms=self._rules.ttl_ms,
            draft=draft_of(call),
            on_lost=self._rules.on_lost,
        )
        return self._reserving.reserve(call, request)

    async def _accept(self, call: Call, demand: Demand, granted: Granted) -> None:
        """Remember the grant. The ledger may limit money where the chain does not."""
        if granted.limits_money and call.price is None:
            await self._ledger.void(call.principal.project, call.id)
            self._require_price(call, True)
        call.grant = granted
        if granted.breaches:
            call.actions.append("observe=would_refuse")
            call.decisions.append({"observed": list(granted.breaches)})
            self._planner.observed(call, granted.breaches)
        requested_max = call.request.output_tokens_max
        model_max = self._prices.output_tokens_max(cast(Deployment, call.deployment))
        if call.holds_slices or not call.request.has_output:
            return
        if call.request.is_cap_assumed or granted.output_tokens < (requested_max or model_max or 2**62):
            call.output_cap = granted.output_tokens
        if granted.output_tokens < demand.output_tokens_max and "clamp" not in call.actions:
            call.actions.append("clamp")

    def _demand(self, call: Call) -> Demand:
        """The worst case: the whole prompt and the longest output, at the highest price that may apply."""
        request, count = call.request, cast(PromptCount, call.count)
        prompt_tokens = count.reserve_tokens + request.media_tokens
        output_tokens_max = self.output_tokens_max(call) if request.has_output else 0
        held_output_tokens = (
            min(output_tokens_max, self._rules.slice_tokens) if call.holds_slices else output_tokens_max
        )
        worst = worst_case_cost(request, call.price, count, output_tokens_max)
        return Demand(
            prompt_tokens=prompt_tokens,
            output_tokens_max=held_output_tokens,
            output_tokens_min=held_output_tokens,
            prompt_nano_usd=worst.prompt_nano_usd,
            output_nano_usd_per_token=worst.output_nano_usd_per_token,
            choices=request.choices,
        )

    def output_tokens_max(self, call: Call) -> int:
        """The longest output of each choice: the client's cap, but never more than the model's own maximum."""
        model_max = self._prices.output_tokens_max(cast(Deployment, call.deployment))
        requested_max = call.request.output_tokens_max
        if requested_max is None:
            return model_max or self._rules.output_tokens_unknown
        return min(requested_max, model_max or OUTPUT_TOKENS_PLAUSIBLE_MAX)

    @staticmethod
    def _require_price(call: Call, limits_money: bool) -> None:
        """An unknown price never means free (P3)."""
        if limits_money and call.price is None:
            raise BadRequest(
                f"The model {call.request.model!r} has no known price, and money is limited for this call. "
                "Set model_info.input_cost_per_token and output_cost_per_token in its model_list entry.",
                code="unpriced_model",
                param="model",
            )
