"""Headers of an answer: who it was for, what is left, what was done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gateway.errors import GatewayError
from gateway.pipeline.call import Call
from policies.amounts import NANO_USD_PER_USD, UNLIMITED, Limit
from policies.budgets import Scope
from policies.reservation import Balance

Header = tuple[bytes, bytes]
# Anthropic's SDKs look for the id of a call under this name, and show it in their errors.
ANTHROPIC_REQUEST_ID: Final = "request-id"


def encoded(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> list[Header]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in pairs]


def call_headers(call: Call, balances: Sequence[Balance]) -> list[tuple[str, str]]:
    """Everything that Farebox says about a call. An untagged one hears its id and the timing, and no more."""
    headers = [("x-request-id", call.id), ("server-timing", call.timings.header())]
    if call.protocol.name == "messages":
        headers.append((ANTHROPIC_REQUEST_ID, call.id))
    if not call.is_tagged:
        return headers
    headers += [("x-workflow-run-id", call.run or ""), ("x-workflow-step", call.tags.step)]
    if call.intent is not None:
        headers.append(
            (
                "x-workflow-intent",
                f"{call.intent.intent}; confidence={call.intent.confidence:.2f}; source={call.intent.source}",
            )
        )
    elif call.tags.intent is not None:
        headers.append(("x-workflow-intent", f"{call.tags.intent}; confidence=1.00; source=header"))
    if call.count is not None:
        headers.append(("x-workflow-prompt-tokens", str(call.count.tokens)))
    headers += budget_headers(call, balances)
    if call.actions:
        headers.append(("x-budget-actions", ", ".join(call.actions)))
    return headers


def budget_headers(call: Call, balances: Sequence[Balance]) -> list[tuple[str, str]]:
    """Limits and what is left of them, for step and run, where they are limited; those in observe where no others are. A step is told
    no larger limit than its run's."""
    headers: list[tuple[str, str]] = []
    whole = _limit_of_run(call, balances)
    for balance, link in zip(balances, call.chain.links, strict=False):
        is_run = link.scope is Scope.RUN
        # A chain may have parents of the run too: those are not the call's own.
        is_own = link.scope_id == call.run if is_run else link.scope is Scope.STEP and link.scope_id == call.tags.step
        if not is_own or (
            not link.hold.enforce and any(name.startswith(f"x-budget-{link.scope}") for name, _ in headers)
        ):
            continue
        limit = balance.limit.within(whole) if link.hold.enforce and not is_run else balance.limit
        if limit.tokens is not None:
            left = limit.tokens - balance.settled.tokens - balance.reserved.tokens
            headers.append((f"x-budget-{link.scope}-limit", str(limit.tokens)))
            headers.append((f"x-budget-{link.scope}-remaining", str(max(0, left))))
        nano_usd = balance.remaining("nano_usd") if is_run else None
        if nano_usd is not None:
            usd = max(0, nano_usd) / NANO_USD_PER_USD
            headers.append(("x-budget-run-remaining-usd", f"{usd:.9f}".rstrip("0").rstrip(".")))
    return headers


def _limit_of_run(call: Call, balances: Sequence[Balance]) -> Limit:
    pairs = zip(balances, call.chain.links, strict=False)
    return next(
        (
            one.limit
            for one, link in pairs
            if link.scope is Scope.RUN and link.scope_id == call.run and link.hold.enforce
        ),
        UNLIMITED,
    )


def budget_note(call: Call, balances: Sequence[Balance]) -> dict[str, object] | None:
    """The object of the comment that ends a tagged stream: the final figures."""
    if not call.is_tagged:
        return None
    note: dict[str, object] = {"run": call.run, "step": call.tags.step}
    for name, value in budget_headers(call, balances):
        key = name.removeprefix("x-budget-").replace("-", "_")
        note[key] = float(value) if key.endswith("usd") else int(value)
    if call.actions:
        note["actions"] = list(call.actions)
    return note


def error_headers(error: GatewayError, request_id: str, call: Call | None) -> list[tuple[str, str]]:
    headers = [("content-type", "application/json")]
    if call is None:
        headers += [("x-request-id", request_id), (ANTHROPIC_REQUEST_ID, request_id)]
    else:
        headers += call_headers(call, call.told or (call.grant.balances if call.grant else ()))
    return headers + list(error.headers.items())
