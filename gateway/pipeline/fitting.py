"""The form in which a call asks for its budgets: its model, its prompt, the longest answer, and what all of that may cost."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final, cast

from gateway.errors import ModelNotFound
from gateway.ledger.port import Reserve
from gateway.pipeline.call import Call
from gateway.pipeline.cost_bounds import worst_case_cost
from gateway.pipeline.entry_defaults import with_defaults_of
from gateway.pipeline.events import draft_of
from gateway.pipeline.ports import Planner
from gateway.pipeline.reserving import Reserving
from gateway.pipeline.stored_histories import StoredHistories
from gateway.pricebook import PriceBook
from gateway.tokenizer import Tokenizer
from gateway.upstream.deployments import DeploymentPool
from gateway.upstream.port import Deployment
from policies.pricing import Price, Usage
from policies.reservation import Decision, Demand, OnLost, Refused
from policies.tokens import PromptCount

# No model writes more in one answer, and a larger cap could push sums of money out of the exact range.
OUTPUT_TOKENS_PLAUSIBLE_MAX: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class ReservationRules:
    ttl_ms: int
    output_tokens_min: int
    output_tokens_unknown: int
    slice_tokens: int
    on_lost: OnLost
    owner: str


class Fitting:
    """What the stages of admission, and the attempts after it, do to a call to make it fit."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        prices: PriceBook,
        pool: DeploymentPool,
        planner: Planner,
        reserving: Reserving,
        rules: ReservationRules,
    ) -> None:
        self._tokenizer = tokenizer
        self._prices = prices
        self._pool = pool
        self._planner = planner
        self._reserving = reserving
        self._rules = rules
        self._histories = StoredHistories()

    def choose(self, model: str) -> Deployment:
        deployment = self._pool.choose(model, include_cooling_down=True)
        if deployment is None:
            raise ModelNotFound(
                f"There is no model {model[:200]!r}; GET /v1/models lists what there is.", param="model"
            )
        return deployment

    def use(self, call: Call, deployment: Deployment) -> None:
        """Set the deployment to call, its price, and the fields that its entry adds to the request."""
        self._pool.acquire(deployment)
        if call.deployment is not None:
            self._pool.release(call.deployment)
        call.deployment = deployment
        call.price = self._prices.price(deployment)
        call.request = with_defaults_of(deployment, call.request)

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

    async def compress(self, call: Call, needed_tokens: int | None, *, under_pressure: bool = False) -> bool:
        changed = await self._planner.compress(call, needed_tokens, under_pressure=under_pressure)
        if changed:
            call.count = await self.count(call)
        return changed

    async def reroute(self, call: Call, refused: Refused | None) -> bool:
        """Choose a cheaper model. Its entry adds its own fields, and its tokenizer may count more tokens in the same prompt."""
        changed = await self._planner.reroute(call, refused)
        if changed:
            self.use(call, cast(Deployment, call.deployment))
            call.count = await self.count(call)
        return changed

    def demand(self, call: Call) -> Demand:
        """The worst case: the whole prompt and the longest output, at the highest price that may apply."""
        request, count = call.request, cast(PromptCount, call.count)
        prompt_tokens = count.reserve_tokens + request.media_tokens
        output_tokens_max = self._output_tokens_max(call) if request.has_output else 0
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

    def try_reserve(self, call: Call, demand: Demand) -> Awaitable[Decision]:
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

    def output_tokens_min(self, call: Call) -> int:
        """The shortest answer that a clamp may leave, by the configuration and the request."""
        return max(self._rules.output_tokens_min, call.request.output_tokens_min_useful)

    def model_output_tokens_max(self, call: Call) -> int | None:
        return self._prices.output_tokens_max(cast(Deployment, call.deployment))

    def _output_tokens_max(self, call: Call) -> int:
        """The longest output of each choice: the client's cap, but never more than the model's own maximum."""
        model_max = self._prices.output_tokens_max(cast(Deployment, call.deployment))
        requested_max = call.request.output_tokens_max
        if requested_max is None:
            return model_max or self._rules.output_tokens_unknown
        return min(requested_max, model_max or OUTPUT_TOKENS_PLAUSIBLE_MAX)
