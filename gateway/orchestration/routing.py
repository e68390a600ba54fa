"""The choice of the model for a call: the named one, or one that suits the call's complexity.

A conversation (a step of a run) keeps its model. If the answer of a routed call fails the checks of its intent's handler, the next attempt
goes to the next higher tier, as often as the settings allow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cachetools import LRUCache

from gateway.control import Snapshot
from gateway.errors import BadRequest
from gateway.orchestration.complexity import complexity_of, intent_of
from gateway.pipeline.call import Call
from gateway.pipeline.intake import is_among
from gateway.pricebook import PriceBook
from gateway.upstream.deployments import DeploymentPool
from policies.answer_checks import Answer
from policies.handlers import Handler, Registry
from policies.holdout import Arm
from policies.reservation import Refused
from policies.routing import (
    ABILITIES,
    Candidate,
    Needs,
    NoRoute,
    Route,
    RouteRequest,
    Tier,
    cheaper,
    estimated_prompt_tokens,
    is_auto,
    needed_abilities,
    route,
)
from policies.settings import Settings

_CONVERSATIONS_MAX: Final = 50_000

Conversation = tuple[str, str | None, str]  # project, run, step


@dataclass(slots=True)
class _ConversationRoute:
    """The state of a conversation. `failed_tier` is the tier of its last failed answer."""

    model: str
    tier: Tier | None
    score: float
    failed_attempts: int = 0
    failed_tier: Tier | None = None


class Routing:
    def __init__(
        self,
        *,
        pool: DeploymentPool,
        prices: PriceBook,
        handlers: Registry,
        tiers: Sequence[tuple[Tier, Sequence[str]]],
        snapshot: Callable[[], Snapshot],
    ) -> None:
        self._pool = pool
        self._prices = prices
        self._handlers = handlers
        self._tiers = tiers
        self._snapshot = snapshot
        self._candidates: tuple[Candidate, ...] | None = None
        self._routes: LRUCache[Conversation, _ConversationRoute] = LRUCache(_CONVERSATIONS_MAX)

    def is_offered(self, settings: Settings) -> bool:
        return settings.ais_routing_enabled and bool(self._all_candidates())

    def model_for(self, call: Call, snapshot: Snapshot, *, remembers: bool = True) -> str:
        """`auto` always routes; a named model only where routing is on and the workflow's declaration allows it."""
        name = call.request.model
        may_reroute = self._may_reroute(call, snapshot)
        if not (may_reroute or is_auto(name)):
            return name
        previous_route = self._routes.get(_conversation(call))
        request = self._route_request(call, snapshot, previous_route, may_reroute)
        chosen = route(request, self._allowed(call), snapshot.settings)
        if previous_route is not None and isinstance(chosen, Route) and chosen.model != previous_route.model:
            # It cannot keep its model, so its present complexity decides, not the one it began with.
            request = replace(request, score=complexity_of(call, snapshot))
            chosen = route(request, self._allowed(call), snapshot.settings)
        if isinstance(chosen, NoRoute):
            if is_auto(name):
                hint = "Name the models of each tier under `tiers` in the configuration."
                raise BadRequest.field("model", f"{chosen.reason} {hint}", "no_route")
            return name
        if call.is_tagged and remembers:
            self._routes[_conversation(call)] = _ConversationRoute(
                chosen.model, chosen.tier, request.score, request.failed_attempts, request.failed_tier
            )
        call.decisions.append({"route": chosen.model, "why": chosen.reason})
        if chosen.model != name:
            call.actions.append(f"route={chosen.model}")
            self._compare_with(call, name)
        return chosen.model

    def _compare_with(self, call: Call, requested_model: str) -> None:
        """Savings are measured against the named model; `auto` names none."""
        deployments = self._pool.of(requested_model)
        if deployments and call.requested_price is None:
            call.requested_price = self._prices.price(deployments[0])

    def _route_request(
        self, call: Call, snapshot: Snapshot, previous_route: _ConversationRoute | None, may_reroute: bool
    ) -> RouteRequest:
        """The input of `route`. Computing the complexity is the most expensive part, so a conversation keeps its first score."""
        return RouteRequest(
            call.request.model,
            complexity_of(call, snapshot)
            if previous_route is None or previous_route.failed_attempts
            else previous_route.score,
            self._needs(call, money=call.chain.limits_money),
            may_reroute=may_reroute,
            sticky_model=previous_route.model if previous_route else None,
            failed_attempts=previous_route.failed_attempts if previous_route else 0,
            failed_tier=previous_route.failed_tier if previous_route else None,
            tier_floor=self.handler(call).tier_floor,
        )

    def reroute(self, call: Call, refused: Refused | None) -> bool:
        """Switch to a cheaper model with the needed abilities. This saves only money: the tokens are the same on any model.

        `refused` None: the call still fits, but little is left of its budget.
        """
        if call.deployment is None:
            return False
        if refused is not None and refused.unit != "nano_usd":
            call.decisions.append(
                {"route": "a cheaper model saves money, and what is short is " + (refused.unit or "")}
            )
            return False
        settings = self._snapshot().settings
        for candidate in cheaper(call.model, self._needs(call, money=True), self._allowed(call), settings):
            if self._switch_to(call, candidate.model, candidate.reason):
                return True
        call.decisions.append({"route": f"no cheaper model than {call.model} can take this call"})
        return False

    def judge(self, call: Call, answer: Answer) -> None:
        """Note whether a routed answer passed its checks, for the next attempt of this conversation."""
        previous_route = self._routes.get(_conversation(call))
        if previous_route is None or call.deployment is None or call.deployment.name != previous_route.model:
            return  # a concurrent call, a short budget or a fallback has changed the model since
        if answer.finish_reason == "length" and call.output_cap is not None:
            return  # it was the budget that cut it off, and a dearer model would fit less
        settings = self._snapshot().settings
        assessment = self.handler(call).assess(answer)
        if assessment.score >= settings.quality_score_minimum:
            previous_route.failed_attempts, previous_route.failed_tier = 0, None
        elif previous_route.failed_attempts < settings.max_retry_attempts:
            previous_route.failed_attempts, previous_route.failed_tier = (
                previous_route.failed_attempts + 1,
                previous_route.tier,
            )
            call.decisions.append({"answer_failed": list(assessment.faults)})

    def handler(self, call: Call) -> Handler:
        return self._handlers.of(intent_of(call))

    def output_tokens_expected(self, call: Call) -> int:
        budget = self._snapshot().settings.token_budget[intent_of(call)]
        return self.handler(call).output_tokens_expected(budget)

    def is_judged(self, call: Call) -> bool:
        return _conversation(call) in self._routes

    def _may_reroute(self, call: Call, snapshot: Snapshot) -> bool:
        return call.arm is not Arm.HOLDOUT and self.is_wanted(call, snapshot)

    def is_wanted(self, call: Call, snapshot: Snapshot) -> bool:
        """Whether a model that was named may be replaced in this workflow."""
        settings = snapshot.settings
        if (
            not (settings.enabled and settings.ais_routing_enabled and call.is_tagged)
            or "no-route" in call.tags.options
        ):
            return False
        workflow = snapshot.workflow(call.principal.project, call.tags.workflow or "")
        return workflow is not None and bool(workflow.declaration.get("routing"))

    def _switch_to(self, call: Call, model: str, reason: str) -> bool:
        chosen = self._pool.choose(model)
        if chosen is None or call.deployment is None:
            return False
        self._compare_with(call, call.model)
        self._pool.acquire(chosen)
        self._pool.release(call.deployment)
        call.deployment, call.price, call.model = chosen, self._prices.price(chosen), model
        call.actions.append(f"route={model}")
        call.decisions.append({"route": model, "why": reason})
        return True

    def _needs(self, call: Call, *, money: bool = False) -> Needs:
        count = call.count
        return Needs(
            abilities=needed_abilities(call.request.body),
            prompt_tokens=count.reserve_tokens if count else estimated_prompt_tokens(call.request.body),
            output_tokens=call.request.output_tokens_max or self.output_tokens_expected(call),
            is_money_limited=money,
        )

    def _allowed(self, call: Call) -> tuple[Candidate, ...]:
        """Without models that are down, unless nothing else is left: each call would wait for them to fail first."""
        names = call.principal.allowed_models
        allowed = tuple(
            candidate for candidate in self._all_candidates() if not names or is_among(candidate.name, names)
        )
        return tuple(candidate for candidate in allowed if not self._pool.is_down(candidate.name)) or allowed

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
        supported = {ability: entry.supports(ability) for ability in ABILITIES}
        quality = entry.raw.get("quality")
        return Candidate(
            name=name,
            tier=tier,
            abilities=frozenset(ability for ability, has in supported.items() if has),
            lacks=frozenset(ability for ability, has in supported.items() if has is False),
            prompt_tokens_max=entry.max_input_tokens,
            output_tokens_max=entry.max_output_tokens,
            price=self._prices.price(deployment),
            quality=float(quality) if isinstance(quality, (int, float)) else None,
            order=order,
        )


def _conversation(call: Call) -> Conversation:
    return call.principal.project, call.run, call.tags.step
