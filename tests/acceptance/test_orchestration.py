"""Orchestration on the running gateway: one process, a provider on a real socket, and a second model that classifies intents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from gateway.orchestration.assembly import ANSWER_TOKENS_MAX
from tests.acceptance.serving import ProviderThread, Served, model, words
from tests.fake_provider import FakeProvider
from tests.farebox_process import FareboxProcess, running_farebox, tagged
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("acceptance-orchestration")
ANSWER = json.dumps({"intent": "enrich", "confidence": 0.9, "reasoning": "it adds facts"})


def config_of(provider: FakeProvider) -> dict[str, Any]:
    asked = model(provider.openai_url, "teller", f"openai/teller?text={quote(ANSWER)}")
    return {
        "model_list": [model(provider.openai_url), asked],
        "router_settings": {"num_retries": 0},
        "classifier": {"model": "teller"},
        "settings": {
            "orchestration_enabled": True,
            "orchestration_max_tokens_per_workflow": 4000,
            "orchestration_intent_classification_confidence_threshold": 0.99,
        },
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        ProviderThread() as provider,
        running_farebox(tmp_path_factory.mktemp("orchestration"), config_of(provider)) as gateway,
    ):
        yield Served(gateway, provider)


def api(gateway: FareboxProcess, method: str, path: str, body: Any = None) -> Any:
    reply = gateway.request(method, f"/api{path}", body)
    assert reply.status == 200, reply.body
    return reply.json()


def classifier_requests(served: Served) -> int:
    return sum(received.model == "teller" for received in served.provider.requests)


STEPS = [
    {"id": "read", "intent": "extract"},
    {
        "id": "both",
        "kind": "parallel",
        "steps": [{"id": "draft", "intent": "generate"}, {"id": "check", "intent": "validate"}],
    },
    {"id": "post", "intent": "send", "budget": {"tokens": 300}},
]


def test_allocate_dry_run_does_not_ask_the_classifier_model(served: Served) -> None:
    dry, real = ({"id": f"vague-{name}", "prompt": f"Go on with {name}."} for name in ("guesswork", "earnest"))
    assert api(served.gateway, "POST", "/allocate", {"workflow": "dry", "steps": [dry]})["allocations"]
    assert classifier_requests(served) == 0
    api(served.gateway, "POST", "/runs", {"workflow": "dry", "run": "dry-1", "steps": [real]})
    until(lambda: classifier_requests(served) > 0, description="the announced step is asked about")
    questions = json.dumps([received.body for received in served.provider.requests if received.model == "teller"])
    assert ("earnest" in questions, "guesswork" in questions) == (True, False)


def test_run_from_headers_alone_gets_the_allocations_of_an_announced_run(served: Served) -> None:
    api(served.gateway, "PUT", "/workflows/letters", {"steps": STEPS})
    announced = api(served.gateway, "POST", "/runs", {"workflow": "letters", "run": "announced"})
    planned = {step["step"]: step for step in announced["steps"]}
    assert sum(step["allocation_tokens"] for step in planned.values()) == announced["pool_tokens"] == 4000
    limits_by_run: dict[str, list[tuple[str, ...]]] = {"announced": [], "headers": []}
    names = ("x-budget-step-limit", "x-budget-run-limit", "x-budget-step-remaining", "x-budget-run-remaining")
    for run, lines in limits_by_run.items():
        for step in planned:
            reply = served.chat(tagged("letters", run, step), words(20), max_tokens=32)
            assert reply.status == 200, reply.body
            lines.append(tuple(reply.headers[name] for name in names))
            assert reply.headers["x-workflow-intent"].startswith(f"{planned[step]['intent']}; confidence=1.00")
    assert limits_by_run["announced"] == limits_by_run["headers"]


def test_step_is_flagged_with_overage_and_refused_at_its_hard_limit(served: Served) -> None:
    headers = tagged("mails", "soft", "send", intent="send")
    first = served.chat(headers, words(580), max_tokens=16)
    assert (first.status, first.headers["x-budget-step-limit"]) == (200, "750")
    second = served.chat(headers, words(50), max_tokens=32)
    assert (second.status, second.headers["x-budget-actions"]) == (200, "overage")
    third = served.chat(headers, words(150), max_tokens=16)
    assert (third.status, third.json()["error"]["code"]) == (402, "step_budget_exceeded")


def test_changed_setting_takes_effect_within_2_s(served: Served) -> None:
    headers = tagged("quick", "q-1", "send", intent="send")
    assert served.chat(headers, max_tokens=16).headers["x-budget-step-limit"] == "750"
    api(served.gateway, "PUT", "/settings/orchestration_token_budget_send", {"value": 800})
    try:
        until(
            lambda: served.chat(headers, max_tokens=16).headers["x-budget-step-limit"] == "1200", 2.0, "the new budget"
        )
    finally:
        api(served.gateway, "PUT", "/settings/orchestration_token_budget_send", {"value": 500})


def test_observed_workflow_counts_would_refuse_and_refuses_nothing(served: Served) -> None:
    api(served.gateway, "PUT", "/workflows/watched", {"mode": "observe", "budget": 200, "steps": []})
    headers = tagged("watched", "o-1", "send", intent="send")
    before = served.metric("farebox_admissions_total", result="observed")
    reply = served.chat(headers, words(900), max_tokens=16)
    assert reply.status == 200
    assert "observe=would_refuse" in reply.headers["x-budget-actions"]
    assert served.metric("farebox_admissions_total", result="observed") == before + 1
    (call,) = api(served.gateway, "GET", "/runs/o-1/calls")["calls"]
    assert (call["status"], call["code"]) == ("ok", "would_refuse")
    api(served.gateway, "PUT", "/workflows/watched", {"mode": "enforce", "budget": 200, "steps": []})
    assert served.chat(headers, words(900), max_tokens=16).status == 402


def test_observed_run_budget_does_not_reduce_step_allocations(served: Served) -> None:
    budget = api(served.gateway, "POST", "/budgets", {"scope": "run", "match": "seen", "tokens": 20, "mode": "observe"})
    try:
        reply = served.chat(tagged("seen", "w-1", "send", intent="send"), words(60), max_tokens=16)
        assert reply.status == 200, reply.body
        assert "observe=would_refuse" in reply.headers["x-budget-actions"]
        assert int(reply.headers["x-budget-step-limit"]) > 20
    finally:
        api(served.gateway, "DELETE", f"/budgets/{budget['id']}")


def test_decisions_are_in_the_audit_trail(served: Served) -> None:
    headers = tagged("noted", "n-1", "send", intent="send")
    served.chat(headers, max_tokens=16)
    assert served.chat(headers, words(3000), max_tokens=16).status == 402

    def recorded_kinds() -> set[str]:
        return {event["action"] for event in api(served.gateway, "GET", "/audit?run=n-1")["events"]}

    until(
        lambda: recorded_kinds() >= {"intent.classified", "budget.allocated", "call.refused"},
        3.0,
        "three kinds of events",
    )


def test_unclear_step_is_classified_by_a_model_once_and_charged_to_orchestration(served: Served) -> None:
    headers = tagged("vague", "v-1", "work-on-it")
    before = classifier_requests(served)
    first = served.chat(headers, "Please proceed.", max_tokens=16)
    assert "source=cache" not in first.headers["x-workflow-intent"]
    until(lambda: classifier_requests(served) == before + 1, 3.0, "the question")

    def intent_header() -> str:
        return served.chat(headers, "Please proceed.", max_tokens=16).headers["x-workflow-intent"]

    until(lambda: intent_header() == "enrich; confidence=0.90; source=cache", 3.0, "the answer")
    assert classifier_requests(served) == before + 1
    question = [received for received in served.provider.requests if received.model == "teller"][-1]
    assert "x-workflow-id" not in question.headers
    assert "BEGIN STEP" in question.body["messages"][-1]["content"]
    run = api(served.gateway, "GET", "/runs/v-1")
    calls = api(served.gateway, "GET", "/runs/v-1/calls")["calls"]
    assert {call["model_requested"] for call in calls} == {"fake"}
    assert run["tokens"]["settled"] == sum(call["total_tokens"] for call in calls)
    by_key = {row["key"]: row for row in api(served.gateway, "GET", "/usage?group_by=key")["rows"]}
    assert by_key["orchestration"]["calls"] >= 1
    assert by_key["orchestration"]["total_tokens"] > 0


def test_classified_intent_is_kept_across_restarts(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("learned")
    headers = tagged("vague", "v-1", "work-on-it")
    with ProviderThread() as provider:
        config = config_of(provider)
        config["classifier"] = {"model": "teller", "wait": True}
        with running_farebox(folder, config) as gateway:
            first = gateway.chat("Please proceed.", headers, max_tokens=16)
            assert first.headers["x-workflow-intent"] == "enrich; confidence=0.90; source=llm"
        requests_before = len(provider.requests)
        with running_farebox(folder, config) as gateway:
            again = gateway.chat("Please proceed.", headers, max_tokens=16)
            assert again.headers["x-workflow-intent"] == "enrich; confidence=0.90; source=cache"
        assert [received.model for received in provider.requests[requests_before:]] == ["gpt-4o-mini"]


def test_question_without_reported_usage_is_booked_at_its_longest_answer(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with ProviderThread() as provider:
        config = config_of(provider)
        silent = f"openai/teller?usage=missing&text={quote(ANSWER)}"
        config["model_list"][1] = model(provider.openai_url, "teller", silent)
        config["classifier"] = {"model": "teller", "wait": True}
        with running_farebox(tmp_path_factory.mktemp("silent"), config) as gateway:
            reply = gateway.chat("Please proceed.", tagged("vague", "v-1", "work-on-it"), max_tokens=16)
            assert "source=llm" in reply.headers["x-workflow-intent"]
            by_key = {row["key"]: row for row in api(gateway, "GET", "/usage?group_by=key")["rows"]}
    assert by_key["orchestration"]["output_tokens"] == ANSWER_TOKENS_MAX
    assert by_key["orchestration"]["input_tokens"] > 50


def test_failing_classifier_fails_no_call(tmp_path_factory: pytest.TempPathFactory) -> None:
    with ProviderThread() as provider:
        config = config_of(provider)
        config["model_list"][1] = model(provider.openai_url, "teller", "openai/teller?status=500")
        config["classifier"] = {"model": "teller", "wait": True, "wait_ms": 100}
        with running_farebox(tmp_path_factory.mktemp("failing"), config) as gateway:
            for _ in range(3):
                reply = gateway.chat("Please proceed.", tagged("vague", "v-1", "work-on-it"), max_tokens=16)
                assert reply.status == 200
                assert "source=llm" not in reply.headers["x-workflow-intent"]
        assert sum(received.model == "teller" for received in provider.requests) == 1
