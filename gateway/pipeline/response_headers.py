"""Response headers: which call this was, what is left of its budgets, and what was done to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from gateway.errors import GatewayError
from gateway.pipeline.call import Call
from gateway.tags import UNTAGGED, Tags
from policies.amounts import usd_text
from policies.budgets import Scope
from policies.reservation import Balance

Header = tuple[bytes, bytes]
# Anthropic's SDKs read the request id from this header and show it in their errors.
ANTHROPIC_REQUEST_ID: Final = "request-id"


def encoded(headers: Iterable[tuple[str, str]]) -> list[Header]:
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]


def call_headers(call: Call, balances: Sequence[Balance]) -> list[tuple[str, str]]:
    """Everything that Farebox says about a call. An untagged call gets only its id and the timings."""
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


def tag_headers(tags: Tags) -> list[tuple[str, str]]:
    """For a request that never became a call: the step, and the run if it is named; nothing if the request is untagged."""
    if not tags.is_tagged:
        return []
    step = ("x-workflow-step", tags.step)
    return [step] if tags.run is None else [("x-workflow-run-id", tags.run), step]


def budget_headers(call: Call, balances: Sequence[Balance]) -> list[tuple[str, str]]:
    """Limit and remainder of step and run, if limited. Observed budgets are shown only where none is enforced.

    The limit shown for a step is never larger than that of its run, and is its run's if the step has none.
    """
    headers: list[tuple[str, str]] = []
    shown: set[Scope] = set()
    run_limit_tokens = _run_limit_tokens(call, balances)
    for balance, link in zip(balances, call.chain.links, strict=False):
        scope = link.scope
        # A chain may also hold parent runs, which are not the call's own.
        if link.scope_id != (call.run if scope is Scope.RUN else call.tags.step if scope is Scope.STEP else None):
            continue
        if not link.hold.enforce and scope in shown:
            continue
        limit, settled, reserved = balance.limit, balance.settled, balance.reserved
        if limit.tokens is not None:
            limit_tokens = limit.tokens
            if scope is Scope.STEP and link.hold.enforce and run_limit_tokens is not None:
                limit_tokens = min(limit_tokens, run_limit_tokens)
            remaining_tokens = max(0, limit_tokens - settled.tokens - reserved.tokens)
            # Links go from narrow to wide: a step that has no headers by now has no limit of its own.
            scopes = (scope,) if scope is Scope.STEP or Scope.STEP in shown else (Scope.STEP, scope)
            for shown_scope in scopes:
                headers += (
                    (f"x-budget-{shown_scope}-limit", str(limit_tokens)),
                    (f"x-budget-{shown_scope}-remaining", str(remaining_tokens)),
                )
                shown.add(shown_scope)
        if limit.nano_usd is not None and scope is Scope.RUN:
            shown.add(scope)
            remaining_nano_usd = max(0, limit.nano_usd - settled.nano_usd - reserved.nano_usd)
            headers.append(("x-budget-run-remaining-usd", usd_text(remaining_nano_usd)))
    return headers


def _run_limit_tokens(call: Call, balances: Sequence[Balance]) -> int | None:
    for balance, link in zip(balances, call.chain.links, strict=False):
        if link.scope is Scope.RUN and link.scope_id == call.run and link.hold.enforce:
            return balance.limit.tokens
    return None


def budget_note(call: Call, balances: Sequence[Balance]) -> dict[str, object] | None:
    """The final figures, sent as a comment at the end of a tagged stream."""
    if not call.is_tagged:
        return None
    note: dict[str, object] = {"run": call.run, "step": call.tags.step}
    for name, value in budget_headers(call, balances):
        key = name.removeprefix("x-budget-").replace("-", "_")
        note[key] = float(value) if key.endswith("usd") else int(value)
    if call.actions:
        note["actions"] = list(call.actions)
    return note


def error_headers(
    error: GatewayError, request_id: str, call: Call | None, tags: Tags = UNTAGGED
) -> list[tuple[str, str]]:
    """`tags` are those of a request that never became a call."""
    headers = [("content-type", "application/json")]
    if call is None:
        headers += [("x-request-id", request_id), (ANTHROPIC_REQUEST_ID, request_id), *tag_headers(tags)]
    else:
        headers += call_headers(call, call.reported_balances or (call.grant.balances if call.grant else ()))
    return headers + list(error.headers.items())
