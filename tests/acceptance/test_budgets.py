"""Budgets on the running gateway: calls that fit are granted, others are clamped or refused, and concurrent calls never exceed a limit."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from tests.acceptance.serving import PROMPT_TOKENS, RESERVED_TOKENS, Served, model, serving, words
from tests.farebox_process import Reply, tagged
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("acceptance-budgets")

BUDGETS: list[dict[str, Any]] = [
    {"scope": "run", "match": "tokens", "tokens": 1000},
    {"scope": "step", "match": "stepped/draft", "tokens": 100},
    {"scope": "run", "match": "stepped", "tokens": 1000},
    {"scope": "run", "match": "money", "usd": 0.0001},
    {"scope": "run", "match": "crowd", "usd": 0.10},
    {"scope": "run", "match": "counted", "requests": 3},
    {"scope": "run", "match": "watched", "tokens": 50, "mode": "observe"},
    {"scope": "run", "match": "rigid", "tokens": 1000, "on_pressure": ["refuse"]},
    {"scope": "run", "match": "roomy", "tokens": 5000},
    {"scope": "run", "match": "keeps-back", "tokens": 1000, "on_pressure": [{"refuse": 0.2}]},
    {"scope": "run", "match": "patient", "tokens": 100, "on_pressure": ["wait", "refuse"], "wait_seconds": 5},
    {"scope": "workflow", "match": "by-minute", "requests": 2, "window": "minute"},
    {"scope": "workflow", "match": "by-month", "tokens": 60, "window": "month"},
    {"scope": "workflow", "match": "in-total", "tokens": 60, "window": "total"},
    {"scope": "run", "match": "parent", "tokens": 200},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("budgets"),
        budgets=BUDGETS,
        models=lambda provider: [
            model(provider.openai_url),
            model(provider.openai_url, "free", upstream="openai/no-such-model-known", priced=False),
            model(provider.openai_url, "unknown", upstream="openai/no-such-model-known", max_output_tokens=None),
        ],
    ) as running:
        yield running


SPENT = 1000 - RESERVED_TOKENS + PROMPT_TOKENS  # of a budget of 1000, by one call that takes all the output it gets


def refusal(reply: Reply, status: int, code: str) -> dict[str, Any]:
    """Checks the error object's form, and returns its metadata."""
    error = reply.json()["error"]
    assert (reply.status, error["code"]) == (status, code), reply.body
    assert set(error) == {"message", "type", "code", "param", "metadata"}
    facts: dict[str, Any] = error["metadata"]
    assert facts["request_id"] == reply.headers["x-request-id"]
    return facts


# ── what fits ──


def test_call_without_max_tokens_is_clamped_to_what_fits(served: Served) -> None:
    served.provider.script(tokens=5000)
    reply = served.chat(tagged("tokens", "r-clamp"))
    assert reply.status == 200
    assert served.last.body["max_tokens"] == 1000 - RESERVED_TOKENS, "forwarded is what was reserved"
    assert reply.headers["x-budget-actions"] == "clamp"
    used = 1000 - RESERVED_TOKENS + PROMPT_TOKENS
    assert reply.json()["usage"]["total_tokens"] == used
    assert reply.headers["x-budget-run-remaining"] == str(1000 - used)


def test_model_of_unknown_maximum_is_asked_for_no_more_than_is_reserved(served: Served) -> None:
    assert served.chat(tagged("tokens", "r-unknown"), model="unknown").status == 200
    assert 900 < served.last.body["max_tokens"] < 1000


def test_max_tokens_that_fits_is_unchanged(served: Served) -> None:
    served.provider.script(tokens=7)
    reply = served.chat(tagged("tokens", "r-fits"), max_tokens=100)
    assert served.last.body["max_tokens"] == 100
    assert "x-budget-actions" not in reply.headers
    assert reply.headers["x-budget-run-remaining"] == str(1000 - PROMPT_TOKENS - 7)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_cap_that_does_not_fit_is_lowered_in_the_field_that_set_it(served: Served, field: str) -> None:
    capped: dict[str, Any] = {field: 3000}
    served.chat(tagged("tokens", f"r-{field}"), **capped)
    assert served.last.body[field] == 1000 - RESERVED_TOKENS
    others = {"max_tokens", "max_completion_tokens"} - {field}
    assert not others & set(served.last.body)


def test_smaller_of_two_output_caps_is_forwarded_in_both_fields(served: Served) -> None:
    reply = served.chat(tagged("tokens", "r-both"), max_tokens=40, max_completion_tokens=3000)
    assert reply.status == 200, reply.body
    assert [served.last.body.get(name) for name in ("max_tokens", "max_completion_tokens")] == [40, 40]


def test_clamp_divides_the_remaining_tokens_among_n_choices(served: Served) -> None:
    served.provider.script(tokens=5000)
    reply = served.chat(tagged("tokens", "r-n"), n=3)
    share = (1000 - RESERVED_TOKENS) // 3
    assert served.last.body["max_tokens"] == share
    assert reply.json()["usage"]["total_tokens"] == PROMPT_TOKENS + 3 * share <= 1000


def test_call_that_would_be_clamped_below_16_tokens_is_refused(served: Served) -> None:
    first = 1000 - PROMPT_TOKENS - RESERVED_TOKENS - 16  # leaves room for a prompt and 16 tokens
    for run, spent, status in (("r-floor", first, 200), ("r-floor-1", first + 1, 402)):
        headers = tagged("tokens", run)
        served.provider.script(tokens=spent)
        assert served.chat(headers, max_tokens=spent).status == 200
        reply = served.chat(headers)
        assert reply.status == status
        if status == 200:
            assert served.last.body["max_tokens"] == 16
        else:
            facts = refusal(reply, 402, "run_budget_exceeded")
            assert (facts["remaining"], facts["needed"]) == (RESERVED_TOKENS + 15, RESERVED_TOKENS + 16)


def test_call_that_asks_for_fewer_than_16_output_tokens_is_granted(served: Served) -> None:
    headers = {**tagged("wf", "r-small"), "x-workflow-budget-tokens": str(RESERVED_TOKENS + 2)}
    assert served.chat(headers, max_tokens=2).status == 200
    assert served.last.body["max_tokens"] == 2


# ── what is refused, and how ──


def test_exhausted_run_is_refused_with_402_and_x_should_retry_false(served: Served) -> None:
    headers = tagged("tokens", "r-spent")
    served.provider.script(tokens=5000)
    assert served.chat(headers).status == 200
    reply = served.chat(headers, max_tokens=100)
    facts = refusal(reply, 402, "run_budget_exceeded")
    assert reply.headers["x-should-retry"] == "false"
    assert "retry-after" not in reply.headers
    assert reply.json()["error"]["type"] == "budget_exceeded"
    assert facts == {
        "scope": "run",
        "scope_id": "r-spent",
        "unit": "tokens",
        "window": "run",
        "limit": 1000,
        "settled": SPENT,
        "reserved": 0,
        "remaining": 1000 - SPENT,
        "needed": RESERVED_TOKENS + 16,
        "transient": False,
        "reset_at": None,
        "hint": facts["hint"],
        "workflow": "tokens",
        "run": "r-spent",
        "step": "s",
        "request_id": reply.headers["x-request-id"],
    }
    assert "run 'r-spent'" in reply.json()["error"]["message"].lower()
    assert served.seen() == 1


def test_exhausted_step_budget_refuses_while_the_run_has_tokens_left(served: Served) -> None:
    headers = tagged("stepped", "r-step", "draft")
    served.provider.script(tokens=80)
    assert served.chat(headers, max_tokens=80).status == 200
    reply = served.chat(headers, words(20), max_tokens=30)
    facts = refusal(reply, 402, "step_budget_exceeded")
    assert (facts["scope"], facts["scope_id"], facts["remaining"]) == ("step", "draft", 12)
    message = reply.json()["error"]["message"]
    assert message.startswith("Step 'draft' of run 'r-step' has 12 of 100 tokens left; this call needs")
    assert served.chat(tagged("stepped", "r-step", "other"), max_tokens=30).status == 200
    assert served.chat(tagged("stepped", "r-step-2", "draft"), max_tokens=30).status == 200, "steps are of one run"


def test_prompt_above_the_whole_budget_is_request_exceeds_budget(served: Served) -> None:
    reply = served.chat(tagged("tokens", "r-huge"), words(2000))
    facts = refusal(reply, 402, "request_exceeds_budget")
    assert reply.headers["x-should-retry"] == "false"
    assert (facts["limit"], facts["settled"], facts["needed"]) == (1000, 0, 2007 + 8 + 21 + 16)


@pytest.mark.parametrize(
    ("workflow", "options"), [("tokens", "no-clamp"), ("tokens", "no-compress, no-clamp"), ("rigid", "no-route")]
)
def test_call_that_may_not_be_clamped_is_refused_if_its_worst_case_does_not_fit(
    served: Served, workflow: str, options: str
) -> None:
    headers = {**tagged(workflow, f"r-{options[:6]}"), "x-workflow-options": options}
    facts = refusal(served.chat(headers, max_tokens=2000), 402, "request_exceeds_budget")
    assert facts["needed"] == RESERVED_TOKENS + 2000
    assert served.seen() == 0
    assert served.chat(headers, max_tokens=500).status == 200
    assert served.last.body["max_tokens"] == 500


# ── money, requests, headers ──


def test_usd_budget_clamps_the_output_and_reports_the_remaining_usd(served: Served) -> None:
    served.provider.script(tokens=5000)
    reply = served.chat(tagged("money", "r-usd"))
    cap = (100_000 - 100 * RESERVED_TOKENS) // 400  # nano-USD left after the prompt, by the output's price
    assert served.last.body["max_tokens"] == cap
    spent = 100 * PROMPT_TOKENS + 400 * cap
    assert float(reply.headers["x-budget-run-remaining-usd"]) == pytest.approx((100_000 - spent) / 1e9, abs=1e-12)
    assert "x-budget-run-remaining" not in reply.headers
    facts = refusal(served.chat(tagged("money", "r-usd")), 402, "run_budget_exceeded")
    assert (facts["unit"], facts["limit"], facts["settled"]) == ("usd", 0.0001, spent / 1e9)


def test_unpriced_model_is_refused_under_a_usd_budget_only(served: Served) -> None:
    reply = served.chat(tagged("money", "r-free"), model="free")
    assert (reply.status, reply.json()["error"]["code"]) == (400, "unpriced_model")
    by_header = {**tagged("wf", "r-free-2"), "x-workflow-budget-usd": "1"}
    assert served.chat(by_header, model="free").json()["error"]["code"] == "unpriced_model"
    assert served.seen() == 0
    assert served.chat(tagged("tokens", "r-free"), model="free", max_tokens=16).status == 200


def test_requests_budget_of_3_refuses_the_fourth_call(served: Served) -> None:
    headers = tagged("counted", "r-req")
    assert [served.chat(headers, max_tokens=16).status for _ in range(4)] == [200, 200, 200, 402]
    facts = refusal(served.chat(headers, max_tokens=16), 402, "run_budget_exceeded")
    assert (facts["unit"], facts["limit"], facts["settled"]) == ("requests", 3, 3)


def test_budget_header_tightens_a_run_and_never_loosens_it(served: Served) -> None:
    headers = tagged("tokens", "r-tight")
    assert served.chat({**headers, "x-workflow-budget-tokens": "300"}).headers["x-budget-run-limit"] == "300"
    assert served.last.body["max_tokens"] == 300 - RESERVED_TOKENS
    served.provider.clear()
    reply = served.chat({**headers, "x-workflow-budget-tokens": "900000"}, max_tokens=16)
    limit = reply.headers.get("x-budget-run-limit") or str(reply.json()["error"]["metadata"]["limit"])
    assert limit == "300", "a run remembers the tightest limit it was given"
    reply = served.chat({**tagged("tokens", "r-loose"), "x-workflow-budget-tokens": "5000"}, max_tokens=16)
    assert reply.headers["x-budget-run-limit"] == "1000"


@pytest.mark.parametrize("workflow", ["tokens", "nobody-limits"])
def test_budget_header_of_a_refused_first_call_still_limits_the_run(served: Served, workflow: str) -> None:
    headers = tagged(workflow, f"r-refused-first-{workflow}")
    tight = {**headers, "x-workflow-budget-tokens": "30", "x-workflow-options": "no-clamp"}
    assert refusal(served.chat(tight, max_tokens=100), 402, "request_exceeds_budget")["limit"] == 30
    facts = refusal(
        served.chat({**headers, "x-workflow-options": "no-clamp"}, max_tokens=100), 402, "request_exceeds_budget"
    )
    assert facts["limit"] == 30


def test_budget_header_of_a_call_refused_by_an_early_refuse_rung_limits_the_run(served: Served) -> None:
    headers = tagged("keeps-back", "r-kept-back")
    served.provider.script(tokens=80)
    assert served.chat(headers, max_tokens=80).status == 200
    for call in ({**headers, "x-workflow-budget-tokens": "100"}, headers):
        reply = served.chat(call, max_tokens=1)
        facts = refusal(reply, 402, "run_budget_exceeded")
        assert (facts["limit"], facts["settled"], facts["reserved"]) == (100, 88, 0)
        assert "kept back" in reply.json()["error"]["message"]
        figures = [reply.headers[f"x-budget-run-{figure}"] for figure in ("limit", "remaining")]
        assert figures == ["100", "12"]
    run = served.gateway.get("/api/runs/r-kept-back").json()
    assert (run["tokens"]["limit"], run["tokens"]["reserved"], run["requests"]["reserved"]) == (100, 0, 0)


def test_budget_header_limits_later_calls_of_a_run_without_a_configured_budget(served: Served) -> None:
    headers = tagged("nobody-limits", "r-header")
    served.provider.script(tokens=5000, times=2)
    assert served.chat({**headers, "x-workflow-budget-tokens": "100"}).status == 200
    facts = refusal(served.chat(headers), 402, "run_budget_exceeded")
    assert (facts["limit"], facts["settled"]) == (100, 100 - RESERVED_TOKENS + PROMPT_TOKENS)


def test_usd_budget_header_clamps_the_output(served: Served) -> None:
    headers = {**tagged("nobody-limits", "r-header-usd"), "x-workflow-budget-usd": "0.00005"}
    assert served.chat(headers).status == 200
    assert served.last.body["max_tokens"] == (50_000 - 100 * RESERVED_TOKENS) // 400


def test_child_run_spends_from_its_parents_budget(served: Served) -> None:
    parent = tagged("parent", "r-parent")
    served.provider.script(tokens=50)
    assert served.chat(parent, max_tokens=50).status == 200
    served.provider.script(tokens=5000)
    child = {**tagged("child", "r-child"), "x-workflow-parent-run-id": "r-parent"}
    assert served.chat(child).status == 200
    assert served.last.body["max_tokens"] == 200 - (PROMPT_TOKENS + 50) - RESERVED_TOKENS
    facts = refusal(served.chat(parent), 402, "run_budget_exceeded")
    assert (facts["settled"], facts["limit"]) == (200 - RESERVED_TOKENS + PROMPT_TOKENS, 200)


# ── windows ──


def test_exhausted_minute_window_is_refused_with_429_and_retry_after(served: Served) -> None:
    if time.time() % 60 > 50:
        time.sleep(61 - time.time() % 60)  # the minute must not turn between the calls
    headers = tagged("by-minute", "r-min")
    assert [served.chat(headers, max_tokens=16).status for _ in range(2)] == [200, 200]
    reply = served.chat(headers, max_tokens=16)
    facts = refusal(reply, 429, "workflow_budget_exceeded")
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert "x-should-retry" not in reply.headers
    assert facts["window"] == "minute"
    assert 0 < datetime.fromisoformat(facts["reset_at"]).timestamp() - time.time() <= 60.5


def test_retry_after_above_60_s_comes_with_x_should_retry_false(served: Served) -> None:
    headers = tagged("by-month", "r-month")
    served.provider.script(tokens=5000)
    assert served.chat(headers).status == 200
    reply = served.chat(headers)
    refusal(reply, 429, "workflow_budget_exceeded")
    if int(reply.headers["retry-after"]) > 60:
        assert reply.headers["x-should-retry"] == "false"


def test_total_budget_spans_runs_and_is_refused_with_402(served: Served) -> None:
    served.provider.script(tokens=5000)
    assert served.chat(tagged("in-total", "r-1")).status == 200
    reply = served.chat(tagged("in-total", "r-2"))
    facts = refusal(reply, 402, "workflow_budget_exceeded")
    assert (facts["scope_id"], facts["settled"], reply.headers["x-should-retry"]) == (
        "in-total",
        60 - RESERVED_TOKENS + PROMPT_TOKENS,
        "false",
    )


# ── concurrent calls ──


def test_call_blocked_by_a_sibling_hold_is_refused_with_429_and_fits_afterwards(served: Served) -> None:
    headers = tagged("tokens", "r-busy")
    served.provider.script(tokens=10, delay_ms=1500)
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(served.chat, headers)
        until(served.seen, 5, "the first call is with the provider")
        reply = served.chat(headers)
        facts = refusal(reply, 429, "run_budget_busy")
        assert reply.headers["retry-after"] == "1"
        assert "x-should-retry" not in reply.headers
        assert (facts["transient"], facts["reserved"], facts["settled"]) == (True, 1000, 0)
        assert holder.result().status == 200
    assert served.chat(headers, max_tokens=100).status == 200, "what was reserved and not used is free at once"


def test_wait_rung_waits_until_a_sibling_settles(served: Served) -> None:
    headers = tagged("patient", "r-patient")
    served.provider.script(tokens=10, delay_ms=700)
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(served.chat, headers, max_tokens=80)
        until(served.seen, 5, "the first call is with the provider")
        reply = served.chat(headers, max_tokens=40)
        assert reply.status == 200
        assert "wait=" in reply.headers["x-budget-actions"]
        assert holder.result().status == 200


def test_100_calls_25_at_a_time_stay_within_a_run_budget_of_10_cents(served: Served) -> None:
    """Each call costs its worst case, 0.164 cents: 60 of them fit, and one more whose output is clamped."""
    headers = tagged("crowd", "r-crowd")
    served.provider.script(tokens=5000, times=None, delay_ms=100)
    with ThreadPoolExecutor(25) as pool:
        replies = list(pool.map(lambda _: served.chat(headers, max_tokens=4096), range(100)))
    statuses = {reply.status for reply in replies}
    assert statuses <= {200, 402, 429}
    granted = [reply for reply in replies if reply.status == 200]
    spent_nano_usd = sum(
        100 * reply.json()["usage"]["prompt_tokens"] + 400 * reply.json()["usage"]["completion_tokens"]
        for reply in granted
    )
    assert spent_nano_usd <= 100_000_000
    assert len(granted) >= 60, "the budget is spent, not only kept"
    facts = refusal(
        served.chat({**headers, "x-workflow-options": "no-clamp"}, words(3000), max_tokens=4000),
        402,
        "run_budget_exceeded",
    )
    assert facts["settled"] == pytest.approx(spent_nano_usd / 1e9, abs=1e-12)
    assert facts["reserved"] == 0


def test_50_concurrent_calls_stay_within_a_run_budget_of_1000_tokens(served: Served) -> None:
    headers = tagged("tokens", "r-parallel")
    served.provider.script(tokens=5000, times=None, delay_ms=20)
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda _: served.chat(headers, max_tokens=50), range(50)))
    used = sum(reply.json()["usage"]["total_tokens"] for reply in replies if reply.status == 200)
    assert used <= 1000
    assert used >= 1000 - 4 * (50 + RESERVED_TOKENS)  # how much is left depends on who came first
    assert served.balance(headers)["settled"] == used


# ── observe ──


def test_observed_budget_reports_would_refuse_and_neither_clamps_nor_refuses(served: Served) -> None:
    headers = tagged("watched", "r-watched")
    for _ in range(3):
        reply = served.chat(headers, max_tokens=60)
        assert reply.status == 200
        assert served.last.body["max_tokens"] == 60, "nothing is clamped"
    assert reply.headers["x-budget-actions"] == "observe=would_refuse"


# ── what refusals and failures report ──


def test_refusal_carries_limit_and_remaining_headers(served: Served) -> None:
    served.chat(tagged("rigid", "r-told"), max_tokens=100)
    reply = served.chat(tagged("rigid", "r-told"), max_tokens=990)
    assert reply.status == 402
    facts = reply.json()["error"]["metadata"]
    figures = (reply.headers["x-budget-run-limit"], reply.headers["x-budget-run-remaining"])
    assert figures == ("1000", str(1000 - facts["settled"]))
    assert "reserve;dur=" in reply.headers["server-timing"]


@pytest.mark.parametrize("fault", [{"reset": "before_headers"}, {"redirect": "http://127.0.0.1:9/elsewhere"}])
def test_failed_call_reports_the_remaining_tokens_after_its_hold_is_voided(
    served: Served, fault: dict[str, Any]
) -> None:
    run = "r-" + next(iter(fault)).replace("_", "-")
    served.provider.script(**fault)
    reply = served.chat(tagged("tokens", run))
    assert reply.status == 502
    assert reply.headers["x-budget-run-remaining"] == "1000"


def test_run_is_exhausted_after_a_refusal_and_active_after_its_budget_is_raised(served: Served) -> None:
    served.chat(tagged("rigid", "r-used"), max_tokens=100)
    assert served.chat(tagged("rigid", "r-used"), max_tokens=980).status == 402
    until(lambda: served.gateway.get("/api/runs/r-used").json()["state"] == "exhausted")
    assert "r-used" in served.gateway.get("/api/runs?state=exhausted").body.decode()
    assert served.gateway.request("POST", "/api/runs/r-used/budget", {"tokens": 5000}).json()["state"] == "active"


# ── histories that the provider keeps ──


@pytest.mark.parametrize("streamed", [False, True])
def test_previous_response_id_reserves_the_tokens_of_the_stored_history(served: Served, streamed: bool) -> None:
    """Only the provider has the text, but its last answer reported its length."""

    def respond(headers: dict[str, str], **fields: Any) -> Reply:
        body = {"model": "fake", "max_output_tokens": 20, **fields}
        return served.gateway.request("POST", "/v1/responses", body, headers)

    first = respond({}, input=words(5000), stream=streamed)
    assert first.status == 200, first.body
    answer_id = re.findall(r"resp_\w+", first.body.decode())[-1]
    headers = {**tagged("roomy", f"r-history-{streamed}"), "x-workflow-options": "no-compress"}
    facts = refusal(respond(headers, input="hi", previous_response_id=answer_id), 402, "request_exceeds_budget")
    assert (facts["limit"], facts["unit"]) == (5000, "tokens")
    assert facts["needed"] > 5000
    assert respond(headers, input="hi", previous_response_id="resp_of_nobody").status == 200
