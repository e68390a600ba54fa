"""What an answer says about budgets: of the call's own step and run, where they are enforced."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.pipeline.answer import budget_headers, call_headers
from gateway.pipeline.call import Call, Principal
from gateway.tags import Tags
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import AMOUNT_MAX, Amount, Limit
from policies.budgets import Chain, Link, Scope, Window
from policies.reservation import Balance, Hold

USED, HELD = Amount(100, 2_000_000), Amount(20, 500_000)


def headers_of(*links: tuple[Scope, str, Limit, bool]) -> dict[str, str]:
    """Of a call of the step `draft` and the run `r`, which has used 120 tokens and 0.0025 USD everywhere, held ones included."""
    chain = Chain(
        tuple(
            Link(Hold(f"{scope}/{name}", limit, enforce=enforced), scope, name, Window.RUN)
            for scope, name, limit, enforced in links
        )
    )
    principal = Principal("", "local", "default")
    protocol = PROTOCOLS["/v1/chat/completions"]
    call = Call("c", protocol, principal, Request({}, "m"), tags=Tags("w", "r", "draft"), run="r", chain=chain)
    balances = [Balance(link.hold.account, link.hold.limit, USED, HELD) for link in chain.links]
    given = budget_headers(call, balances)
    assert len(dict(given)) == len(given), "no header stands twice"
    return dict(given)


def test_tokens_of_step_and_run_and_money_of_the_run() -> None:
    limit = Limit(1000, 1_000_000_000)
    assert headers_of((Scope.STEP, "draft", limit, True), (Scope.RUN, "r", limit, True)) == {
        "x-budget-step-limit": "1000",
        "x-budget-step-remaining": "880",
        "x-budget-run-limit": "1000",
        "x-budget-run-remaining": "880",
        "x-budget-run-remaining-usd": "0.9975",
    }


def test_a_step_is_told_no_larger_limit_than_its_run() -> None:
    step, run = (Scope.STEP, "draft", Limit(1000), True), (Scope.RUN, "r", Limit(300), True)
    told = headers_of(step, run)
    assert [told[f"x-budget-step-{figure}"] for figure in ("limit", "remaining")] == ["300", "180"]
    parent, watched = (Scope.RUN, "r-parent", Limit(200), True), (Scope.RUN, "r", Limit(300), False)
    assert headers_of(step, watched, parent)["x-budget-step-limit"] == "1000"


@pytest.mark.parametrize("of_step", [[], [(Scope.STEP, "draft", Limit(None, 5), True)]])
@pytest.mark.parametrize("enforced", [True, False])
def test_a_step_without_tokens_of_its_own_is_told_its_runs(of_step: list[Any], enforced: bool) -> None:
    told = headers_of(*of_step, (Scope.RUN, "r", Limit(300), enforced), (Scope.RUN, "r-parent", Limit(200), True))
    assert told == {
        "x-budget-step-limit": "300",
        "x-budget-step-remaining": "180",
        "x-budget-run-limit": "300",
        "x-budget-run-remaining": "180",
    }


def test_what_is_overdrawn_has_nothing_left() -> None:
    assert headers_of((Scope.RUN, "r", Limit(50, 1_000), True)) == {
        "x-budget-step-limit": "50",
        "x-budget-step-remaining": "0",
        "x-budget-run-limit": "50",
        "x-budget-run-remaining": "0",
        "x-budget-run-remaining-usd": "0",
    }


@pytest.mark.parametrize(
    ("limit", "left"), [(2_500_001, "0.000000001"), (2_500_100, "0.0000001"), (AMOUNT_MAX, "9007199.252240991")]
)
def test_money_that_is_left_is_told_in_plain_digits_to_the_nano_usd(limit: int, left: str) -> None:
    assert headers_of((Scope.RUN, "r", Limit(None, limit), True)) == {"x-budget-run-remaining-usd": left}


def test_unlimited_units_are_not_told() -> None:
    assert headers_of((Scope.STEP, "draft", Limit(None, 5), True), (Scope.RUN, "r", Limit(), True)) == {}


def test_parents_and_wider_scopes_are_not_told() -> None:
    limit = Limit(1000, 1_000_000_000)
    others = [
        (Scope.RUN, "r-parent", limit, True),
        (Scope.STEP, "other", limit, True),
        (Scope.WORKFLOW, "w", limit, True),
        (Scope.PROJECT, "default", limit, True),
    ]
    assert headers_of(*others) == {}


def test_an_observed_budget_is_told_where_no_enforced_one_is() -> None:
    observed, enforced = (Scope.RUN, "r", Limit(500), False), (Scope.RUN, "r", Limit(1000), True)
    assert headers_of((Scope.RUN, "r", Limit(), True), observed)["x-budget-run-remaining"] == "380"
    assert headers_of(enforced, observed)["x-budget-run-limit"] == "1000"


def test_the_default_step_is_told_as_others_are() -> None:
    limit = Link(Hold("step/r/default", Limit(1000)), Scope.STEP, "default", Window.RUN)
    principal, protocol = Principal("", "local", "default"), PROTOCOLS["/v1/chat/completions"]
    call = Call("c", protocol, principal, Request({}, "m"), tags=Tags("w", "r"), run="r", chain=Chain((limit,)))
    told = dict(budget_headers(call, [Balance("step/r/default", Limit(1000), USED, HELD)]))
    assert told["x-budget-step-remaining"] == "880"


def test_what_the_caller_said_of_the_intent_is_told_back_without_orchestration() -> None:
    principal, protocol = Principal("", "local", "default"), PROTOCOLS["/v1/chat/completions"]
    tags = Tags("w", "r", intent="summarize")
    call = Call("c", protocol, principal, Request({}, "m"), tags=tags, run="r")
    assert ("x-workflow-intent", "summarize; confidence=1.00; source=header") in call_headers(call, ())
