"""The error of a refused reservation: status, code, headers, figures and message, case by case."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from gateway.pipeline.call import Call, IntentTag, Principal
from gateway.pipeline.refusal import refusal_error
from gateway.tags import Tags
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import ZERO, Amount, Limit
from policies.budgets import Chain, Link, Scope, Window
from policies.reservation import Balance, Gate, Hold, Refusal, Refused

NOW_MS = 1_700_000_000_000
Units = Literal["tokens", "nano_usd", "requests"]


def call_with(link: Link) -> Call:
    return Call(
        id="id-1",
        protocol=PROTOCOLS["/v1/chat/completions"],
        principal=Principal("", "local", "default"),
        request=Request(body={}, model="m"),
        tags=Tags("Nightly", "R-17", "Draft"),
        run="R-17",
        chain=Chain((link,)),
    )


def link_of(scope: Scope, scope_id: str, window: Window = Window.RUN, resets_in_s: float | None = None) -> Link:
    resets = None if resets_in_s is None else NOW_MS + int(resets_in_s * 1000)
    return Link(Hold("account"), scope, scope_id, window, resets)


def refused(reason: Refusal, unit: Units = "tokens", gate: Gate = Gate.OPEN) -> Refused:
    """2320 of 2500 settled, 100 reserved, 412 needed: in tokens, in nano-USD or in requests."""
    figures = {"limit": 2500, "settled": 2320, "reserved": 100}
    balance = Balance(
        "account",
        Limit(**{unit: figures["limit"]}),
        Amount(*(figures["settled"] if unit == name else 0 for name in ("tokens", "nano_usd", "requests"))),
        Amount(*(figures["reserved"] if unit == name else 0 for name in ("tokens", "nano_usd", "requests"))),
        gate,
    )
    return Refused(reason, "account", unit, 412, balance, NOW_MS)


STEP = link_of(Scope.STEP, "Draft")
RUN = link_of(Scope.RUN, "R-17")
KEY_HOUR = link_of(Scope.KEY, "K", Window.HOUR, 1800)
KEY_MINUTE = link_of(Scope.KEY, "K", Window.MINUTE, 29.2)
TOTAL = link_of(Scope.PROJECT, "P", Window.TOTAL)
NO_RETRY = {"x-should-retry": "false"}

CASES: list[tuple[Link, Refusal, int, str, dict[str, str], bool]] = [
    (STEP, Refusal.EXCEEDED, 402, "step_budget_exceeded", NO_RETRY, False),
    (RUN, Refusal.EXCEEDED, 402, "run_budget_exceeded", NO_RETRY, False),
    (TOTAL, Refusal.EXCEEDED, 402, "project_budget_exceeded", NO_RETRY, False),
    (RUN, Refusal.BUSY, 429, "run_budget_busy", {"retry-after": "1"}, True),
    (KEY_HOUR, Refusal.BUSY, 429, "key_budget_busy", {"retry-after": "1"}, True),
    (KEY_MINUTE, Refusal.EXCEEDED, 429, "key_budget_exceeded", {"retry-after": "30"}, True),
    (KEY_HOUR, Refusal.EXCEEDED, 429, "key_budget_exceeded", {"retry-after": "1800", **NO_RETRY}, True),
    (RUN, Refusal.TOO_LARGE, 402, "request_exceeds_budget", NO_RETRY, False),
    (KEY_HOUR, Refusal.TOO_LARGE, 402, "request_exceeds_budget", NO_RETRY, False),
]


@pytest.mark.parametrize(("link", "reason", "status", "code", "headers", "transient"), CASES)
def test_status_code_and_headers_of_each_refusal(
    link: Link, reason: Refusal, status: int, code: str, headers: dict[str, str], transient: bool
) -> None:
    error = refusal_error(call_with(link), refused(reason))
    assert (error.status, error.code, error.headers) == (status, code, headers)
    assert error.metadata["transient"] is transient
    assert error.metadata["hint"]


def test_message_and_metadata_of_an_exceeded_step_budget() -> None:
    error = refusal_error(call_with(STEP), refused(Refusal.EXCEEDED))
    assert error.message == "Step 'Draft' of run 'R-17' has 80 of 2500 tokens left; this call needs 412."
    assert error.type == "budget_exceeded"
    hint = error.metadata.pop("hint")
    assert "step" in hint
    assert error.metadata == {
        "scope": "step",
        "scope_id": "Draft",
        "unit": "tokens",
        "window": "run",
        "limit": 2500,
        "settled": 2320,
        "reserved": 100,
        "remaining": 80,
        "needed": 412,
        "transient": False,
        "reset_at": None,
        "workflow": "Nightly",
        "run": "R-17",
        "step": "Draft",
        "request_id": "id-1",
    }


def test_money_is_given_in_usd() -> None:
    error = refusal_error(call_with(RUN), refused(Refusal.EXCEEDED, "nano_usd"))
    assert error.message == "Run 'R-17' has $0.00000008 of $0.0000025 left; this call needs $0.000000412."
    facts = {name: error.metadata[name] for name in ("unit", "limit", "settled", "remaining", "needed")}
    assert facts == {"unit": "usd", "limit": 2.5e-6, "settled": 2.32e-6, "remaining": 8e-8, "needed": 4.12e-7}


def test_exceeded_requests_of_a_window_are_a_rate_limit() -> None:
    error = refusal_error(call_with(KEY_MINUTE), refused(Refusal.EXCEEDED, "requests"))
    assert error.type == "rate_limit_exceeded"
    assert "Key 'K' (per minute) has 80 of 2500 requests left" in error.message
    assert error.metadata["reset_at"] == "2023-11-14T22:13:49.200Z"  # NOW_MS and 29.2 s


def test_hint_for_a_request_limit_does_not_suggest_a_smaller_call() -> None:
    error = refusal_error(call_with(RUN), refused(Refusal.EXCEEDED, "requests"))
    assert error.metadata["hint"] == "Raise the budget of the run or make fewer calls."


def test_overrun_account_shows_zero_remaining() -> None:
    over = Balance("account", Limit(100), Amount(150, 0, 0), Amount(0, 0, 0))
    error = refusal_error(call_with(RUN), Refused(Refusal.EXCEEDED, "account", "tokens", 5, over, NOW_MS))
    assert error.metadata["remaining"] == 0
    assert "has 0 of 100 tokens left" in error.message


@pytest.mark.parametrize("gate", [Gate.PAUSED, Gate.CANCELLED, Gate.COMPLETED])
def test_closed_gate_is_402_with_the_state_of_the_run(gate: Gate) -> None:
    error = refusal_error(call_with(RUN), refused(Refusal.GATE, gate=gate))
    assert (error.status, error.code, error.headers) == (402, f"run_{gate.value}", NO_RETRY)
    assert error.message == f"Run 'R-17' is {gate.value}."
    facts: dict[str, Any] = error.metadata
    assert (facts["run"], facts["step"], facts["transient"]) == ("R-17", "Draft", False)


def test_too_large_call_names_the_smallest_of_several_budgets() -> None:
    step = Link(Hold("step", Limit(360)), Scope.STEP, "Draft", Window.RUN)
    run = Link(Hold("run", Limit(300)), Scope.RUN, "R-17", Window.RUN)
    call = call_with(step)
    call.chain = Chain((step, run))
    balances = tuple(Balance(link.hold.account, link.hold.limit, ZERO, ZERO) for link in (step, run))
    error = refusal_error(call, Refused(Refusal.TOO_LARGE, "step", "tokens", 1017, balances[0], NOW_MS, balances))
    assert error.message == "This call needs 1017 tokens; the whole budget of run 'R-17' is 300 tokens."
    assert (error.metadata["scope"], error.metadata["limit"]) == ("run", 300)


def test_budget_of_no_requests_says_that_it_allows_no_calls() -> None:
    closed = Balance("account", Limit(requests=0), ZERO, ZERO)
    error = refusal_error(call_with(RUN), Refused(Refusal.TOO_LARGE, "account", "requests", 1, closed, NOW_MS))
    assert error.message == "This call needs 1 request; the whole budget of run 'R-17' is 0 requests."
    assert error.metadata["hint"] == "The budget allows no calls at all. Raise it, or delete it."


@pytest.mark.parametrize(("is_share", "cure"), [(True, "the budget of the run"), (False, "the budget of the step")])
def test_hint_names_the_budget_that_limits_the_step(is_share: bool, cure: str) -> None:
    call = call_with(Link(Hold("account"), Scope.STEP, "Draft", Window.RUN, soft_tokens=2000, is_share=is_share))
    call.intent = IntentTag("generate", 1.0, "header")
    assert f"Raise {cure}" in refusal_error(call, refused(Refusal.EXCEEDED)).metadata["hint"]
