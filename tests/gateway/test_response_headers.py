"""The budget headers of an answer: limits and remaining amounts of the call's own step and run."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.pipeline.call import NO_CHAIN, Call, Principal
from gateway.pipeline.response_headers import budget_headers, call_headers
from gateway.tags import Tags
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import AMOUNT_MAX, Amount, Limit
from policies.budgets import Chain, Link, Scope, Window
from policies.reservation import Balance, Hold

USED, HELD = Amount(100, 2_000_000), Amount(20, 500_000)


def call_of(tags: Tags, chain: Chain = NO_CHAIN) -> Call:
    principal, protocol = Principal("", "local", "default"), PROTOCOLS["/v1/chat/completions"]
    return Call("c", protocol, principal, Request({}, "m"), tags=tags, run="r", chain=chain)


def headers_of(*links: tuple[Scope, str, Limit, bool]) -> dict[str, str]:
    """The headers of a call of step `draft` in run `r`; on every account, 120 tokens and 0.0025 USD are settled or reserved."""
    chain = Chain(
        tuple(
            Link(Hold(f"{scope}/{name}", limit, enforce=enforced), scope, name, Window.RUN)
            for scope, name, limit, enforced in links
        )
    )
    call = call_of(Tags("w", "r", "draft"), chain)
    balances = [Balance(link.hold.account, link.hold.limit, USED, HELD) for link in chain.links]
    headers = budget_headers(call, balances)
    assert len(dict(headers)) == len(headers), "no header is repeated"
    return dict(headers)


def test_headers_give_tokens_of_step_and_run_and_money_of_the_run() -> None:
    limit = Limit(1000, 1_000_000_000)
    assert headers_of((Scope.STEP, "draft", limit, True), (Scope.RUN, "r", limit, True)) == {
        "x-budget-step-limit": "1000",
        "x-budget-step-remaining": "880",
        "x-budget-run-limit": "1000",
        "x-budget-run-remaining": "880",
        "x-budget-run-remaining-usd": "0.9975",
    }


def test_step_limit_in_headers_is_at_most_the_limit_of_the_run() -> None:
    step, run = (Scope.STEP, "draft", Limit(1000), True), (Scope.RUN, "r", Limit(300), True)
    headers = headers_of(step, run)
    assert [headers[f"x-budget-step-{figure}"] for figure in ("limit", "remaining")] == ["300", "180"]
    parent, watched = (Scope.RUN, "r-parent", Limit(200), True), (Scope.RUN, "r", Limit(300), False)
    assert headers_of(step, watched, parent)["x-budget-step-limit"] == "1000"


@pytest.mark.parametrize("of_step", [[], [(Scope.STEP, "draft", Limit(None, 5), True)]])
@pytest.mark.parametrize("enforced", [True, False])
def test_step_without_token_limit_shows_the_limit_of_its_run(of_step: list[Any], enforced: bool) -> None:
    headers = headers_of(*of_step, (Scope.RUN, "r", Limit(300), enforced), (Scope.RUN, "r-parent", Limit(200), True))
    assert headers == {
        "x-budget-step-limit": "300",
        "x-budget-step-remaining": "180",
        "x-budget-run-limit": "300",
        "x-budget-run-remaining": "180",
    }


def test_overrun_budget_shows_zero_remaining() -> None:
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
def test_remaining_usd_is_exact_to_the_nano_usd_without_exponent(limit: int, left: str) -> None:
    assert headers_of((Scope.RUN, "r", Limit(None, limit), True)) == {"x-budget-run-remaining-usd": left}


def test_unlimited_units_have_no_header() -> None:
    assert headers_of((Scope.STEP, "draft", Limit(None, 5), True), (Scope.RUN, "r", Limit(), True)) == {}


def test_parent_runs_and_wider_scopes_have_no_header() -> None:
    limit = Limit(1000, 1_000_000_000)
    others = [
        (Scope.RUN, "r-parent", limit, True),
        (Scope.STEP, "other", limit, True),
        (Scope.WORKFLOW, "w", limit, True),
        (Scope.PROJECT, "default", limit, True),
    ]
    assert headers_of(*others) == {}


def test_observed_limit_is_shown_only_without_an_enforced_one() -> None:
    observed, enforced = (Scope.RUN, "r", Limit(500), False), (Scope.RUN, "r", Limit(1000), True)
    assert headers_of((Scope.RUN, "r", Limit(), True), observed)["x-budget-run-remaining"] == "380"
    assert headers_of(enforced, observed)["x-budget-run-limit"] == "1000"


def test_default_step_has_step_headers() -> None:
    limit = Link(Hold("step/r/default", Limit(1000)), Scope.STEP, "default", Window.RUN)
    call = call_of(Tags("w", "r"), Chain((limit,)))
    headers = dict(budget_headers(call, [Balance("step/r/default", Limit(1000), USED, HELD)]))
    assert headers["x-budget-step-remaining"] == "880"


def test_intent_tag_is_echoed_without_orchestration() -> None:
    call = call_of(Tags("w", "r", intent="summarize"))
    assert ("x-workflow-intent", "summarize; confidence=1.00; source=header") in call_headers(call, ())
