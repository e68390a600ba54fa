"""Turns a ledger's refusal into an error for the client: which scope, how much is left, what the call needs, what to do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

from gateway.errors import BudgetRefusal, GatewayError
from gateway.pipeline.call import Call
from gateway.timestamps import iso
from policies.amounts import Unit, usd, usd_text
from policies.budgets import Link, Scope
from policies.reservation import Gate, Refusal, Refused

# The OpenAI and Anthropic SDKs wait and retry by themselves. A longer wait inside the SDK helps nobody.
RETRY_AFTER_MAX_S: Final = 60
_NO_RETRY: Final = {"x-should-retry": "false"}
_UNIT_NAMES: Final[dict[Unit, str]] = {"tokens": "tokens", "nano_usd": "usd", "requests": "requests"}


def refusal_error(call: Call, refused: Refused) -> GatewayError:
    if refused.reason is Refusal.TOO_LARGE:
        refused = _by_smallest(call, refused)
    link = call.chain.link(refused.account)
    if refused.reason is Refusal.GATE and refused.balance.gate is Gate.LOOPING:
        return loop_detected(call, run=link.scope_id)
    if refused.reason is Refusal.GATE:
        return _gate_error(call, link, refused.balance.gate)
    unit: Unit = refused.unit or "tokens"
    facts = _metadata(call, link, refused, unit)
    if refused.reason is Refusal.TOO_LARGE:
        return _too_large_refusal(call, link, refused, unit, facts)
    scope = link.scope.value
    if refused.reason is Refusal.BUSY:
        facts["hint"] = (
            "Other calls hold what this one needs. Retry when they are done, or cap the output of each with max_tokens."
        )
        message = (
            f"{_remaining_sentence(link, refused, unit, call)} Other calls that are under way hold the rest for now."
        )
        return BudgetRefusal(
            message,
            code=f"{scope}_budget_busy",
            status=429,
            type="rate_limit_exceeded",
            metadata=facts,
            headers={"retry-after": "1"},
        )
    if link.resets_at_ms is not None:
        return _window_refusal(call, link, refused, unit, facts)
    budget = _budget_to_raise(call, link, unit)
    if unit == "requests":
        facts["hint"] = f"Raise {budget} or make fewer calls."
    else:
        facts["hint"] = f"Raise {budget}, cap the output with max_tokens, or send less context."
    return BudgetRefusal(
        _remaining_sentence(link, refused, unit, call),
        code=f"{scope}_budget_exceeded",
        metadata=facts,
        headers=_NO_RETRY,
    )


def _by_smallest(call: Call, refused: Refused) -> Refused:
    """Blame the smallest of the budgets that the call is too large for, because it has to be raised most."""
    unit = refused.unit or "tokens"
    balances = zip(call.chain.links, refused.balances, strict=False)
    limited = [balance for link, balance in balances if link.hold.enforce and balance.limit.of(unit) is not None]
    smallest = min(limited, key=lambda balance: balance.limit.of(unit) or 0, default=refused.balance)
    return replace(refused, account=smallest.account, balance=smallest)


def _budget_to_raise(call: Call, link: Link, unit: Unit) -> str:
    """What the client can have raised. A limit that is only the step's share of the run was never set by anyone."""
    if not link.is_share or unit != "tokens" or call.intent is None:
        return f"the budget of the {link.scope}"
    return (
        f"the budget of the run, of which this is the step's share, or orchestration_token_budget_{call.intent.intent}"
    )


def _window_refusal(call: Call, link: Link, refused: Refused, unit: Unit, facts: dict[str, Any]) -> GatewayError:
    wait_s = max(1, math.ceil(((link.resets_at_ms or 0) - refused.now_ms) / 1000))
    facts["hint"] = f"The {link.scope}'s budget for this {link.window} comes back in {wait_s} s."
    headers = {"retry-after": str(wait_s)} | (_NO_RETRY if wait_s > RETRY_AFTER_MAX_S else {})
    return BudgetRefusal(
        f"{_remaining_sentence(link, refused, unit, call)} It comes back in {wait_s} s.",
        code=f"{link.scope}_budget_exceeded",
        status=429,
        type="rate_limit_exceeded" if unit == "requests" else "budget_exceeded",
        metadata=facts,
        headers=headers,
    )


def _too_large_refusal(call: Call, link: Link, refused: Refused, unit: Unit, facts: dict[str, Any]) -> GatewayError:
    facts["hint"] = "Send less context, cap the output with max_tokens, allow clamping, or raise the budget."
    if unit == "requests":
        facts["hint"] = "The budget allows no calls at all. Raise it, or delete it."
    limit = refused.balance.limit.of(unit) or 0
    message = f"This call needs {_amount(refused.needed, unit)}; the whole budget of {_name(link, call)} is {_amount(limit, unit)}."
    return BudgetRefusal(message, code="request_exceeds_budget", metadata=facts, headers=_NO_RETRY)


def _gate_error(call: Call, link: Link, gate: Gate) -> GatewayError:
    hints = {
        Gate.PAUSED: "Resume it with POST /api/runs/{id}/resume.",
        Gate.CANCELLED: "Start a new run: a cancelled one stays cancelled.",
        Gate.COMPLETED: "Start a new run: this one was completed.",
    }
    facts = _identity(call) | {
        "scope": link.scope.value,
        "scope_id": link.scope_id,
        "transient": False,
        "hint": hints.get(gate, ""),
    }
    name = _name(link, call)
    return BudgetRefusal(
        f"{name[0].upper()}{name[1:]} is {gate.value}.",
        code=f"run_{gate.value}",
        type="run_not_active",
        metadata=facts,
        headers=_NO_RETRY,
    )


def loop_detected(call: Call, *, run: str | None = None, repeated: str = "", occurrences: int = 0) -> BudgetRefusal:
    """The run was stopped because its agent repeats itself. `repeated` and `occurrences` are given if this call tripped the breaker."""
    run = run or call.run
    facts = _identity(call) | {
        "scope": "run",
        "scope_id": run,
        "transient": False,
        "hint": "Look at why the agent repeats itself, then resume the run with POST /api/runs/{id}/resume, or begin a new one.",
    }
    message = f"Run '{run}' was stopped: its agent repeats itself."
    if occurrences:
        facts |= {"repeated": repeated, "times": occurrences}
        repetition = (
            "made the same tool calls with the same results" if repeated == "tools" else "sent the same request"
        )
        message = f"Run '{run}' was stopped: step '{call.tags.step}' {repetition} {occurrences} times."
    return BudgetRefusal(message, code="loop_detected", type="run_not_active", metadata=facts, headers=_NO_RETRY)


def _remaining_sentence(link: Link, refused: Refused, unit: Unit, call: Call) -> str:
    balance = refused.balance
    remaining = max(0, balance.remaining(unit) or 0)
    limit = balance.limit.of(unit) or 0
    name = _name(link, call)
    figures = f"has {_figure(remaining, unit)} of {_amount(limit, unit)} left; this call needs {_figure(refused.needed, unit)}."
    return f"{name[0].upper()}{name[1:]} {figures}"


def _name(link: Link, call: Call) -> str:
    """The scope in words. Only a step needs its run to be identified."""
    if link.scope is Scope.STEP:
        return f"step '{link.scope_id}' of run '{call.run}'"
    window = f" (per {link.window})" if link.window.is_recurring else ""
    return f"{link.scope} '{link.scope_id}'{window}"


def _amount(value: int, unit: Unit) -> str:
    if unit == "nano_usd":
        return _figure(value, unit)
    noun = "request" if unit == "requests" else "token"
    return f"{value} {noun}{'' if value == 1 else 's'}"


def _figure(value: int, unit: Unit) -> str:
    return f"${usd_text(value)}" if unit == "nano_usd" else str(value)


def _metadata(call: Call, link: Link, refused: Refused, unit: Unit) -> dict[str, Any]:
    balance = refused.balance

    def value(amount: int | None) -> int | float | None:
        return amount if amount is None or unit != "nano_usd" else usd(amount)

    return {
        "scope": link.scope.value,
        "scope_id": link.scope_id,
        "unit": _UNIT_NAMES[unit],
        "window": link.window.value,
        "limit": value(balance.limit.of(unit)),
        "settled": value(balance.settled.of(unit)),
        "reserved": value(balance.reserved.of(unit)),
        "remaining": value(max(0, balance.remaining(unit) or 0)),
        "needed": value(refused.needed),
        # A call that is larger than the whole budget will not fit into the next window either.
        "transient": refused.reason is Refusal.BUSY
        or (link.resets_at_ms is not None and refused.reason is not Refusal.TOO_LARGE),
        "reset_at": iso(link.resets_at_ms),
    } | _identity(call)


def _identity(call: Call) -> dict[str, Any]:
    return {
        "workflow": call.tags.workflow,
        "run": call.run,
        "step": call.tags.step if call.is_tagged else None,
        "request_id": call.id,
    }
