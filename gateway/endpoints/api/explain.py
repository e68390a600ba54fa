"""/api/explain: what would happen to a call, and why. Nothing is sent, reserved or remembered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.dry_run import DryRunResult, explain
from gateway.endpoints.api.route import ApiRequest, Route, not_found
from gateway.endpoints.api.schema import Name, Priority, ProjectQuery, Strict, Tokens
from gateway.errors import GatewayError
from gateway.pipeline.call import LOCAL_PROJECT, Call, Principal
from gateway.pipeline.intake import principal_of
from gateway.tags import PARENT_HEADER
from gateway.timestamps import iso
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import Unit, usd
from policies.budgets import Link
from policies.intents import Intent
from policies.pressure import ladder_items
from policies.reservation import Balance

_BY_NAME: Final = {protocol.name: protocol for protocol in PROTOCOLS.values()}
_HEADERS: Final = {
    "workflow": "x-workflow-id",
    "run": "x-workflow-run-id",
    "step": "x-workflow-step",
    "agent": "x-workflow-agent",
    "user": "x-workflow-user",
    "parent_run": PARENT_HEADER,
    "intent": "x-workflow-intent",
    "priority": "x-workflow-priority",
    "budget_tokens": "x-workflow-budget-tokens",
    "budget_usd": "x-workflow-budget-usd",
    "options": "x-workflow-options",
}


class ExplainQuery(ProjectQuery):
    protocol: Literal["chat", "completions", "responses", "messages", "embeddings"] = Field(
        default="chat", description="Which endpoint the call would go to."
    )
    key: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="The id or name of the API key that the call would come with."
    )


class ExplainTags(Strict):
    """The tags that the call's headers would have. A header of this request takes precedence over its field."""

    workflow: Name | None = None
    run: Name | None = None
    step: Name | None = None
    agent: Name | None = None
    user: Name | None = None
    parent_run: Name | None = None
    intent: Intent | None = None
    priority: Priority | None = None
    budget_tokens: Tokens | None = None
    budget_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    options: tuple[Literal["no-compress", "no-route", "no-clamp"], ...] = ()

    def headers(self) -> dict[str, str]:
        tags = self.model_dump(exclude_none=True, exclude_defaults=True)
        return {_HEADERS[name]: ", ".join(value) if name == "options" else str(value) for name, value in tags.items()}


class ExplainBody(BaseModel):
    """The body of the call, with `tags` if they are not in the headers."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    tags: ExplainTags | None = None


@dataclass(frozen=True, slots=True)
class ExplainedIntent:
    intent: str
    confidence: float
    source: str
    reasoning: str


@dataclass(frozen=True, slots=True)
class ExplainedShare:
    step: str
    intent: str
    tokens: int
    hard_limit_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class UnitBalance:
    """An account in one unit, before the call. Null where there is no limit."""

    limit: int | None
    settled: int
    reserved: int
    remaining: int | None


@dataclass(frozen=True, slots=True)
class DollarBalance:
    limit: float | None
    settled: float
    reserved: float
    remaining: float | None


@dataclass(frozen=True, slots=True)
class ExplainedBudget:
    """An account of the call's chain, which begins with the innermost scope."""

    scope: str
    scope_id: str
    account: str
    window: str
    enforced: bool
    state: str
    tokens: UnitBalance
    cost_usd: DollarBalance
    requests: UnitBalance
    resets_at: str | None


@dataclass(frozen=True, slots=True)
class ExplainedHold:
    """What would be reserved: the worst case, or as much of it as fits."""

    tokens: int
    cost_usd: float
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ExplainedError:
    """The error that the caller would get."""

    status: int
    code: str
    type: str
    message: str
    param: str | None
    metadata: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Explanation:
    """`decisions` has every rung with whether it was tried and why, including routing and compression. `actions` is what
    `x-budget-actions` would say. `output_cap` is the cap that the provider would get (null: the call's own). `observed` are the
    accounts that would refuse the call if they were enforced."""

    verdict: Literal["forward", "refuse"]
    error: ExplainedError | None
    protocol: str
    model_requested: str | None
    model: str | None
    provider: str | None
    tags: dict[str, Any]
    run: str | None
    side: str | None
    intent: ExplainedIntent | None
    allocation: ExplainedShare | None
    prompt_tokens: int | None
    prompt_tokens_sent: int | None
    prompt_tokens_reserved: int | None
    saved_tokens: int
    budgets: tuple[ExplainedBudget, ...]
    on_pressure: tuple[str | dict[str, float], ...]
    decisions: tuple[dict[str, Any], ...]
    hold: ExplainedHold | None
    output_cap: int | None
    actions: tuple[str, ...]
    observed: tuple[str, ...]


async def explain_call(request: ApiRequest[ExplainQuery, ExplainBody]) -> Explanation:
    """Takes the body of a call. Its tags are in this request's headers, in `tags`, or in the body's `metadata`."""
    body, query = request.body, request.query
    headers = (body.tags.headers() if body.tags is not None else {}) | dict(request.headers)
    raw = json.dumps(body.model_extra or {}).encode()  # orjson writes no number above 64 bits
    result = await explain(request.services.parts, _principal(request), _BY_NAME[query.protocol], raw, headers)
    return _view(result, query.protocol)


def _principal(request: ApiRequest[ExplainQuery, ExplainBody]) -> Principal:
    key_name = request.query.key
    keys = request.services.parts.control.snapshot.keys.values()
    if key_name is None:
        is_local = not keys and request.project == LOCAL_PROJECT
        return Principal("", "local" if is_local else "", request.project, is_anonymous=True)
    api_key = next((key for key in keys if key.project == request.project and key_name in (key.id, key.name)), None)
    if api_key is None:
        raise not_found("key", key_name)
    return principal_of(api_key)


def _view(result: DryRunResult, protocol: str) -> Explanation:
    call = result.call
    return Explanation(
        verdict="forward" if result.error is None else "refuse",
        error=_error(result.error),
        protocol=protocol,
        model_requested=call.request.model if call else None,
        model=call.deployment.name if call and call.deployment else None,
        provider=call.deployment.provider if call and call.deployment else None,
        tags=_tags(call) if call else {},
        run=call.run if call else None,
        side=call.arm if call else None,
        intent=_intent(result),
        allocation=_share(result),
        prompt_tokens=result.prompt_tokens,
        prompt_tokens_sent=call.count.tokens if call and call.count else None,
        prompt_tokens_reserved=call.count.reserve_tokens if call and call.count else None,
        saved_tokens=call.saved.tokens if call else 0,
        budgets=tuple(_budget(link, balance) for link, balance in result.balances),
        on_pressure=tuple(ladder_items(call.chain.ladder)) if call and call.chain.links else (),
        decisions=tuple(call.decisions) if call else (),
        hold=_hold(call),
        output_cap=call.output_cap if call else None,
        actions=tuple(call.actions) if call else (),
        observed=result.planner.observed_accounts,
    )


def _error(error: GatewayError | None) -> ExplainedError | None:
    if error is None:
        return None
    # The request id belongs to no real call.
    metadata = {name: value for name, value in error.metadata.items() if name != "request_id"}
    return ExplainedError(error.status, error.code, error.type, error.message, error.param, metadata, error.headers)


def _tags(call: Call) -> dict[str, Any]:
    tags = call.tags
    names = ("workflow", "run", "step", "agent", "user", "parent_run", "intent", "priority")
    if not tags.is_tagged:
        return {}
    return {name: getattr(tags, name) for name in names} | {"options": sorted(tags.options)}


def _intent(result: DryRunResult) -> ExplainedIntent | None:
    classification = result.planner.classification
    if classification is None:
        return None
    return ExplainedIntent(
        classification.intent, classification.confidence, classification.source, classification.reasoning
    )


def _share(result: DryRunResult) -> ExplainedShare | None:
    share = result.planner.share
    if share is None:
        return None
    return ExplainedShare(share.step, share.intent, share.tokens, share.hard_limit_tokens, share.reason)


def _hold(call: Call | None) -> ExplainedHold | None:
    if call is None or call.grant is None:
        return None
    amount = call.grant.held
    return ExplainedHold(amount.tokens, usd(amount.nano_usd), call.grant.output_tokens)


def _budget(link: Link, balance: Balance) -> ExplainedBudget:
    return ExplainedBudget(
        scope=link.scope.value,
        scope_id=link.scope_id,
        account=link.hold.account,
        window=link.window.value,
        enforced=link.hold.enforce,
        state=balance.gate.value,
        tokens=_unit_balance(balance, "tokens"),
        cost_usd=_dollars(_unit_balance(balance, "nano_usd")),
        requests=_unit_balance(balance, "requests"),
        resets_at=iso(link.resets_at_ms),
    )


def _unit_balance(balance: Balance, unit: Unit) -> UnitBalance:
    return UnitBalance(
        balance.limit.of(unit), balance.settled.of(unit), balance.reserved.of(unit), balance.remaining(unit)
    )


def _dollars(nano: UnitBalance) -> DollarBalance:
    limit, remaining = (None if nano_usd is None else usd(nano_usd) for nano_usd in (nano.limit, nano.remaining))
    return DollarBalance(limit, usd(nano.settled), usd(nano.reserved), remaining)


ROUTES = (
    Route(
        "POST",
        "/explain",
        explain_call,
        Explanation,
        "What would happen to a call, and why. Nothing is sent or reserved.",
        ExplainQuery,
        body=ExplainBody,
        is_question=True,
    ),
)
