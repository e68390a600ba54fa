"""Making a call cheaper: a smaller prompt, or a cheaper model that is able enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from gateway.control import Snapshot
from gateway.errors import BadRequest
from gateway.pipeline.call import Call
from gateway.pricebook import PriceBook
from gateway.tokenizer import Tokenizer
from gateway.upstream.deployments import Pool
from policies.amounts import Amount
from policies.budgets import Rung
from policies.compression import Aggressiveness, Compressed, CompressionPolicy, Strategy, compress_chat, worth_it
from policies.intents import Intent
from policies.reservation import Refused
from policies.routing import Candidate, Needs, NoRoute, Tier, Wish, cheaper, is_auto, needed_abilities, route
from policies.settings import Settings
from policies.tokens import counting_for

_log = structlog.get_logger(__name__)
# What compressing a shorter prompt could save is not worth its milliseconds, nor the prompt cache it breaks.
_PROMPT_TOKENS_MIN: Final = 256
_ABILITIES: Final = ("function_calling", "vision", "response_schema", "audio_input")
# Messages and chat carry the same list of messages; the other protocols have no history of that form.
_COMPRESSIBLE: Final = ("chat", "messages")

ComplexityOf = Callable[[Call, Snapshot], float]


class Saving:
    def __init__(
        self,
        *,
        pool: Pool,
        prices: PriceBook,
        tokenizer: Tokenizer,
        tiers: Sequence[tuple[Tier, Sequence[str]]],
        complexity: ComplexityOf,
        snapshot: Callable[[], Snapshot],
    ) -> None:
        self._pool = pool
        self._prices = prices
        self._tokenizer = tokenizer
        self._tiers = tiers
        self._complexity = complexity
        self._snapshot = snapshot
        self._candidates: tuple[Candidate, ...] | None = None

    def offers(self, call: Call, rung: Rung) -> bool:
        """Compressing and rerouting are switched on by settings, and need something to work with."""
        settings = self._snapshot().settings
        if not (settings.enabled and call.is_tagged):
            return False
        if rung is Rung.COMPRESS:
            compressible = call.protocol.name in _COMPRESSIBLE and call.count is not None
            return (
                compressible and settings.compression_enabled and _policy(settings, call).strategy is not Strategy.NONE
            )
        return rung is Rung.ROUTE and settings.ais_routing_enabled and bool(self._all_candidates())

    async def compress(self, call: Call, needed_tokens: int) -> bool:
        """To `needed_tokens` if that can be done without falling below the minimum quality. True: the prompt is smaller now."""
        count = call.count
        if count is None or count.tokens < _PROMPT_TOKENS_MIN:
            return False
        settings = self._snapshot().settings
        found = await asyncio.to_thread(self._compressed, call, _policy(settings, call), needed_tokens)
        if found.messages is None or found.tokens_saved <= 0:
            call.decisions.append({"compress": found.reason})
            return False
        rate = call.price.rates.input if call.price is not None else 0
        gain = worth_it(found.tokens_saved, rate, 0.0, 0.0, 0, tokens_past_change=found.tokens_past_change)
        if not gain.is_worth_it:
            call.decisions.append({"compress": "would cost more than it saves"})
            return False
        call.request.body = {**call.request.body, "messages": found.messages}
        call.actions.append(f"compress={found.tokens_saved}")
        call.decisions.append({"compress": found.reason, "quality": round(found.quality, 3), "by": list(found.actions)})
        call.saved += Amount(found.tokens_saved, gain.saved_nano_usd)
        return True

    def _compressed(self, call: Call, policy: CompressionPolicy, needed_tokens: int) -> Compressed:
        deployment = call.deployment
        assert deployment is not None and call.count is not None  # noqa: S101, PT018 - counted means chosen
        encoding = counting_for(deployment.model, deployment.provider).encoding
        return compress_chat(
            call.request.body["messages"],
            policy,
            lambda text: self._tokenizer.count_text(encoding, text),
            target_tokens=needed_tokens or None,
            prompt_tokens=call.count.reserve_tokens,
            intent=call.intent.intent if call.intent else "",
        )

    async def reroute(self, call: Call, refused: Refused) -> bool:
        """To a cheaper model with the needed abilities. Only money is saved by it: tokens are the same anywhere."""
        if refused.unit != "nano_usd" or call.deployment is None:
            return False
        settings = self._snapshot().settings
        for found in cheaper(call.model, self._needs(call, money=True), self._all_candidates(), settings):
            if call.principal.allowed_models and found.model not in call.principal.allowed_models:
                continue
            if self._use(call, found.model, found.reason):
                return True
        return False

    async def model_for(self, call: Call, snapshot: Snapshot) -> str:
        """`auto` always routes; a named model only where routing is on and the workflow's declaration allows it."""
        name = call.request.model
        settings = snapshot.settings
        may_reroute = self._may_reroute(call, snapshot)
        if not (is_auto(name) or may_reroute):
            return name
        allowed = [
            one
            for one in self._all_candidates()
            if not call.principal.allowed_models or one.name in call.principal.allowed_models
        ]
        found = route(
            Wish(name, self._complexity(call, snapshot), self._needs(call), may_reroute=may_reroute), allowed, settings
        )
        if isinstance(found, NoRoute):
            if is_auto(name):
                raise BadRequest.field(
                    "model",
                    f"{found.reason} Name the models of each tier under `tiers` in the configuration.",
                    "no_route",
                )
            return name
        call.decisions.append({"route": found.model, "why": found.reason})
        if found.model != name:
            call.actions.append(f"route={found.model}")
        return found.model

    def _may_reroute(self, call: Call, snapshot: Snapshot) -> bool:
        settings = snapshot.settings
        if (
            not (settings.enabled and settings.ais_routing_enabled and call.is_tagged)
            or "no-route" in call.tags.options
        ):
            return False
        workflow = snapshot.workflow(call.principal.project, call.tags.workflow or "")
        return workflow is not None and bool(workflow.declaration.get("allow_routing"))

    def _use(self, call: Call, model: str, reason: str) -> bool:
        chosen = self._pool.choose(model)
        if chosen is None or call.deployment is None:
            return False
        before = call.price
        self._pool.release(call.deployment)
        call.deployment, call.price, call.model = chosen, self._prices.price(chosen), model
        call.actions.append(f"route={model}")
        call.decisions.append({"route": model, "why": reason})
        if before is not None and call.price is not None and call.count is not None:
            saved = (before.rates.input - call.price.rates.input) * call.count.tokens // 1_000_000
            call.saved += Amount(0, max(0, saved))
        return True

    def _needs(self, call: Call, *, money: bool = False) -> Needs:
        count = call.count
        return Needs(
            abilities=needed_abilities(call.request.body),
            prompt_tokens=count.reserve_tokens if count else 0,
            output_tokens=call.request.output_tokens_max or 0,
            is_money_limited=money,
        )

    def _all_candidates(self) -> tuple[Candidate, ...]:
        if self._candidates is None:
            self._candidates = tuple(
                self._candidate(name, tier, order)
                for tier, names in self._tiers
                for order, name in enumerate(names)
                if self._pool.of(name)
            )
        return self._candidates

    def _candidate(self, name: str, tier: Tier, order: int) -> Candidate:
        deployment = self._pool.of(name)[0]
        entry = self._prices.entry(deployment)
        said = {ability: entry.supports(ability) for ability in _ABILITIES}
        quality = entry.raw.get("quality")
        return Candidate(
            name=name,
            tier=tier,
            abilities=frozenset(ability for ability, has in said.items() if has),
            lacks=frozenset(ability for ability, has in said.items() if has is False),
            prompt_tokens_max=entry.max_input_tokens,
            output_tokens_max=entry.max_output_tokens,
            price=self._prices.price(deployment),
            quality=float(quality) if isinstance(quality, (int, float)) else None,
            order=order,
        )


def _policy(settings: Settings, call: Call) -> CompressionPolicy:
    intent = Intent(call.intent.intent) if call.intent is not None else Intent.GENERATE
    return CompressionPolicy(
        Strategy(settings.compression_strategy[intent]),
        settings.compression_target_ratio,
        settings.compression_min_quality,
        Aggressiveness(settings.compression_aggressiveness),
    )
