"""The table of errors, row by row, in each protocol: status, code, headers, and every figure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from tests.acceptance.serving import Served, model, serving, words
from tests.farebox_process import Reply, tagged
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("acceptance-errors")

FIGURES = {
    "scope", "scope_id", "unit", "limit", "settled", "reserved", "remaining", "needed", "transient", "reset_at", "hint",
    "workflow", "run", "step", "request_id",
}  # fmt: skip
PROTOCOLS = ("chat/completions", "responses", "messages")
ANTHROPIC_TYPES = {400: "invalid_request_error", 402: "billing_error", 404: "not_found_error", 429: "rate_limit_error"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    refusing = {"on_pressure": ["refuse"]}
    budgets = [
        {"scope": "run", "match": "of-run", "requests": 1},
        {"scope": "step", "match": "of-step", "requests": 1},
        {"scope": "workflow", "match": "of-workflow", "requests": 1, "window": "total"},
        {"scope": "workflow", "match": "by-minute*", "requests": 1, "window": "minute"},
        {"scope": "workflow", "match": "by-day*", "requests": 1, "window": "day"},
        {"scope": "run", "match": "tight", "tokens": 400, **refusing},
        {"scope": "run", "match": "paid", "usd": 1},
    ]
    with serving(
        tmp_path_factory.mktemp("errors"),
        budgets=budgets,
        models=lambda provider: [
            model(provider.openai_url),
            model(provider.openai_url, "unpriced", "openai/nobody-knows", priced=False),
        ],
    ) as running:
        yield running


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(served: Served, protocol: str, headers: dict[str, str], content: str = "hi", **fields: Any) -> Reply:
    body: dict[str, Any] = {"model": "fake"}
    if protocol == "responses":
        body |= {"input": content, "max_output_tokens": 16}
    else:
        body |= {"messages": [{"role": "user", "content": content}], "max_tokens": 16}
    return served.gateway.request("POST", f"/v1/{protocol}", {**body, **fields}, headers)


def error_of(reply: Reply, protocol: str, status: int, code: str) -> dict[str, Any]:
    """The error: its shape depends on the protocol, but its code and figures do not."""
    assert reply.status == status, reply.body
    body = reply.json()
    error: dict[str, Any] = body["error"]
    assert error["code"] == code
    assert error["message"]
    if protocol == "messages":
        assert (body["type"], error["type"]) == ("error", ANTHROPIC_TYPES[status])
        assert body["request_id"] == reply.headers["request-id"]
    else:
        assert set(body) == {"error"}
        assert {"message", "type", "code", "param"} <= set(error)
    assert error["metadata"]["request_id"] == reply.headers["x-request-id"]
    return error


def figures(error: dict[str, Any]) -> dict[str, Any]:
    detail: dict[str, Any] = error["metadata"]
    assert set(detail) >= FIGURES
    assert detail["remaining"] == max(0, detail["limit"] - detail["settled"] - detail["reserved"])
    return detail


def may_retry(reply: Reply) -> tuple[str | None, str | None]:
    return reply.headers.get("x-should-retry"), reply.headers.get("retry-after")


@pytest.mark.parametrize("scope", ["run", "step", "workflow"])
def test_exhausted_run_step_or_total_budget_is_402_without_retry(served: Served, protocol: str, scope: str) -> None:
    headers = tagged(f"of-{scope}", f"r-{scope}-{protocol.replace('/', '-')}")
    ask(served, protocol, headers)
    reply = ask(served, protocol, headers)
    error = error_of(reply, protocol, 402, f"{scope}_budget_exceeded")
    detail = figures(error)
    assert may_retry(reply) == ("false", None)
    assert (detail["scope"], detail["unit"], detail["limit"], detail["settled"]) == (scope, "requests", 1, 1)
    assert (detail["remaining"], detail["needed"], detail["transient"], detail["reset_at"]) == (0, 1, False, None)
    assert (detail["workflow"], detail["run"], detail["step"]) == (f"of-{scope}", headers["x-workflow-run-id"], "s")
    assert detail["scope_id"] in (detail["run"], detail["step"], detail["workflow"])
    if protocol != "messages":
        assert error["type"] == "budget_exceeded"


def test_call_blocked_only_by_sibling_holds_is_429_run_budget_busy(served: Served, protocol: str) -> None:
    served.provider.script(delay_ms=1500)
    headers = tagged("of-run", f"r-busy-{protocol.replace('/', '-')}")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, served, protocol, headers)
        until(lambda: served.seen() == 1, 10, "the first call is with the provider")
        reply = ask(served, protocol, headers)
        error = error_of(reply, protocol, 429, "run_budget_busy")
        assert may_retry(reply) == (None, "1")
        detail = figures(error)
        assert (detail["settled"], detail["reserved"], detail["transient"]) == (0, 1, True)
        assert first.result().status == 200


@pytest.mark.parametrize(("window", "seconds"), [("minute", 60), ("day", 86_400)])
def test_exhausted_window_is_429_with_retry_after_its_reset(
    served: Served, protocol: str, window: str, seconds: int
) -> None:
    headers = {"x-workflow-id": f"by-{window}-{protocol.replace('/', '-')}"}
    for _ in range(2):  # the minute may turn between two calls
        ask(served, protocol, headers)
        reply = ask(served, protocol, headers)
        if reply.status != 200:
            break
    error = error_of(reply, protocol, 429, "workflow_budget_exceeded")
    should_retry, retry_after = may_retry(reply)
    assert retry_after is not None
    assert 0 < int(retry_after) <= seconds
    assert should_retry == ("false" if int(retry_after) > 60 else None)
    resets = datetime.fromisoformat(figures(error)["reset_at"])
    assert abs(resets.timestamp() - time.time() - int(retry_after)) < 10


def test_call_above_the_whole_budget_is_402_request_exceeds_budget(served: Served, protocol: str) -> None:
    reply = ask(served, protocol, tagged("tight", "r-never"), content=words(500))
    error = error_of(reply, protocol, 402, "request_exceeds_budget")
    detail = figures(error)
    assert may_retry(reply) == ("false", None)
    assert (detail["limit"], detail["settled"]) == (400, 0)
    assert detail["needed"] > 500


def test_unpriced_model_under_a_usd_budget_is_400_unpriced_model(served: Served, protocol: str) -> None:
    reply = ask(served, protocol, tagged("paid", "r-unpriced"), model="unpriced")
    error_of(reply, protocol, 400, "unpriced_model")


@pytest.mark.parametrize(("action", "state"), [("cancel", "cancelled"), ("pause", "paused"), ("complete", "completed")])
def test_cancelled_paused_or_completed_run_is_402_without_retry(
    served: Served, protocol: str, action: str, state: str
) -> None:
    run = f"r-{state}-{protocol.replace('/', '-')}"
    assert ask(served, protocol, tagged("steered", run)).status == 200
    assert served.gateway.request("POST", f"/api/runs/{run}/{action}", {}).status == 200
    reply = ask(served, protocol, tagged("steered", run))
    error_of(reply, protocol, 402, f"run_{state}")
    assert may_retry(reply) == ("false", None)


def test_unknown_model_is_404_model_not_found(served: Served, protocol: str) -> None:
    error = error_of(ask(served, protocol, {}, model="nobody"), protocol, 404, "model_not_found")
    assert error["param"] == "model"


@pytest.mark.parametrize("status", [400, 429])
def test_provider_error_keeps_status_message_and_retry_after(served: Served, protocol: str, status: int) -> None:
    served.provider.script(status=status, message="The provider's own words.", retry_after="7")
    reply = ask(served, protocol, tagged("steered", "r-own"))
    assert reply.status == status, reply.body
    assert "The provider's own words." in reply.json()["error"]["message"]
    assert reply.headers["retry-after"] == "7"
