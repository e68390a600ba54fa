"""/api/explain on the running gateway: it predicts the answer to the call, and leaves no trace."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.serving import ProviderThread, Served, model, serving, words
from tests.fake_provider import FakeProvider
from tests.farebox_process import Reply, running_farebox, tagged
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("acceptance-explain")
BUDGETS = [
    {"scope": "run", "match": "*", "tokens": 5000},
    {"scope": "run", "match": "small", "tokens": 500, "on_pressure": ["compress", {"route": 0.2}, "refuse"]},
    {"scope": "run", "match": "patient", "tokens": 500, "on_pressure": ["wait", "refuse"], "wait_seconds": 30},
    {"scope": "workflow", "match": "priced", "usd": 0.001, "window": "day"},
]


def config_of(provider: FakeProvider) -> dict[str, Any]:
    url = provider.openai_url
    return {
        "model_list": [
            model(url, "fake"),
            model(url, "able", "openai/gpt-4o", input_cost_per_token=1e-6),
            model(url, "secret", "openai/unheard-of", priced=False),
        ],
        "tiers": {"fast": ["fake"], "powerful": ["able"]},
        "router_settings": {"num_retries": 0},
        "budgets": BUDGETS,
        "settings": {
            "orchestration_enabled": True,
            "orchestration_compression_enabled": True,
            "orchestration_ais_routing_enabled": True,
            "orchestration_max_tokens_per_step": 5000,
        },
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        ProviderThread() as provider,
        running_farebox(tmp_path_factory.mktemp("explain"), config_of(provider)) as gateway,
    ):
        yield Served(gateway, provider)


def chat(content: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": content}], "max_tokens": 16, **fields}


def explain(served: Served, body: Any, headers: dict[str, str] | None = None, query: str = "") -> dict[str, Any]:
    reply = served.gateway.request("POST", f"/api/explain{query}", body, headers)
    assert reply.status == 200, reply.body
    explanation: dict[str, Any] = reply.json()
    return explanation


def send(served: Served, body: Any, headers: dict[str, str], path: str = "/v1/chat/completions") -> Reply:
    return served.gateway.request("POST", path, body, headers)


def recorded_state(served: Served) -> tuple[Any, ...]:
    """Everything that a call would leave behind."""
    get = served.gateway.get
    return (
        served.seen(),
        get("/api/usage?group_by=run").json()["rows"],
        get("/api/audit?limit=1000").json()["events"],
        get("/api/runs?limit=1000").json()["runs"],
        get("/api/budgets").json()["budgets"],
    )


def test_explain_predicts_the_answer_of_the_call(served: Served) -> None:
    headers = tagged("letters", "same-1", "draft", intent="generate")
    body = chat(words(100))
    explained = explain(served, body, headers)
    reply = send(served, body, headers)
    assert (explained["verdict"], explained["error"], explained["model"]) == ("forward", None, "fake")
    assert explained["intent"]["intent"] == "generate"
    assert explained["intent"]["source"] == "header"
    assert explained["prompt_tokens_sent"] == int(reply.headers["x-workflow-prompt-tokens"])
    by_scope = {budget["scope"]: budget for budget in explained["budgets"]}
    assert by_scope["step"]["tokens"]["limit"] == int(reply.headers["x-budget-step-limit"])
    assert by_scope["run"]["tokens"]["limit"] == int(reply.headers["x-budget-run-limit"]) == 5000
    assert explained["allocation"]["hard_limit_tokens"] == by_scope["step"]["tokens"]["limit"]
    assert explained["hold"]["tokens"] > 116
    for budget in explained["budgets"]:
        figures = [*budget["tokens"].values(), *budget["requests"].values()]
        assert all(figure is None or type(figure) is int for figure in figures), budget
    assert explained["on_pressure"] == ["compress", "route", "clamp", "refuse"]
    again = explain(served, body, headers)
    spent = reply.json()["usage"]["total_tokens"]
    assert {budget["scope"]: budget["tokens"]["settled"] for budget in again["budgets"]} == {
        "step": spent,
        "run": spent,
    }


def test_integer_above_64_bits_has_the_same_status_as_in_the_call(served: Served) -> None:
    body = chat(seed=2**64)
    explained, reply = explain(served, body), send(served, body, {})
    assert (explained["error"] or {}).get("status", 200) == reply.status


@pytest.mark.parametrize("workflow", ["small", "letters", "priced"])
def test_explain_leaves_no_requests_rows_or_runs(served: Served, workflow: str) -> None:
    body = chat(words(6000 if workflow == "small" else 300), model="auto")
    time.sleep(0.4)  # what calls before this one noted is written a moment later
    before = recorded_state(served)
    first = explain(served, body, tagged(workflow, f"trace-{workflow}", "s", parent_run_id="elder"))
    assert explain(served, body, tagged(workflow, f"trace-{workflow}", "s", parent_run_id="elder")) == first
    time.sleep(0.4)
    assert recorded_state(served) == before
    assert served.gateway.get(f"/api/runs/trace-{workflow}").status == 404


@pytest.mark.parametrize(
    ("workflow", "body", "more"),
    [
        ("small", chat(words(450), max_tokens=200), {}),
        ("small", chat(words(900)), {}),
        ("priced", chat(model="secret"), {}),
        ("letters", chat(model="nothing"), {}),
        ("letters", chat(words(100)), {"budget-tokens": "50"}),
        ("letters", chat(api_base="http://elsewhere"), {}),
        ("letters", chat(), {"priority": "urgent"}),
        ("letters", {"model": "fake"}, {}),
    ],
)
def test_explained_refusal_equals_the_error_of_the_call(
    served: Served, workflow: str, body: dict[str, Any], more: dict[str, str]
) -> None:
    headers = tagged(workflow, "refused-1", "s", **more)
    explained = explain(served, body, headers)
    reply = send(served, body, headers)
    error = reply.json()["error"]
    assert explained["verdict"] == "refuse"
    assert (explained["error"]["status"], explained["error"]["code"]) == (reply.status, error["code"])
    assert explained["error"]["message"] == error["message"]


def test_decisions_list_every_rung_with_its_reason(served: Served) -> None:
    headers = tagged("small", "rungs-1", "s", intent="extract")
    explained = explain(served, chat(words(450), max_tokens=200, model="able"), headers)
    assert explained["on_pressure"] == ["compress", {"route": 0.2}, "refuse"]
    assert [(decision["rung"], decision["result"]) for decision in explained["decisions"] if "rung" in decision] == [
        ("whole", "does not fit"),
        ("compress", "changed nothing"),
        ("route", "changed nothing"),
    ]
    _, whole, compress, _, route, _ = explained["decisions"]
    assert whole["needed"] > whole["remaining"]
    assert compress["compress"] == "every text is protected"
    assert route["route"] == "a cheaper model saves money, and what is short is tokens"


def test_tags_are_read_from_headers_tags_field_or_metadata(served: Served) -> None:
    by_field = explain(served, chat() | {"tags": {"workflow": "small", "run": "f-1", "step": "a", "intent": "send"}})
    by_metadata = explain(served, chat(metadata={"workflow_id": "small", "run_id": "f-1", "step": "a"}))
    by_both = explain(served, chat() | {"tags": {"workflow": "small", "run": "f-1"}}, tagged("letters", "f-2", "b"))
    assert [reply["tags"]["workflow"] for reply in (by_field, by_metadata, by_both)] == ["small", "small", "letters"]
    assert [reply["run"] for reply in (by_field, by_metadata, by_both)] == ["f-1", "f-1", "f-2"]
    assert by_field["intent"]["intent"] == "send"
    untagged = explain(served, chat())
    assert (untagged["tags"], untagged["run"], untagged["budgets"], untagged["verdict"]) == ({}, None, [], "forward")
    wrong = served.gateway.request("POST", "/api/explain", chat() | {"tags": {"wrkflow": "x"}})
    assert (wrong.status, wrong.json()["error"]["param"]) == (400, "tags.wrkflow")
    assert explain(served, chat(), {"x-workflow-id": "letters"})["run"] == "implicit-new"


def test_explain_respects_a_raised_budget_and_a_paused_run(served: Served) -> None:
    headers = tagged("small", "steered-1", "s")
    large = chat(words(300), max_tokens=100)
    assert send(served, chat(words(100)), headers).status == 200
    assert explain(served, large, headers)["error"]["code"] == "run_budget_exceeded"
    raised = served.gateway.request("POST", "/api/runs/steered-1/budget", {"tokens": 4000})
    assert raised.status == 200, raised.body
    assert explain(served, large, headers)["verdict"] == "forward"
    # A caller's own budget above that loosens nothing, however often it is told.
    loose = {**headers, "x-workflow-budget-tokens": "100000"}
    assert send(served, large, loose).status == 200
    run = {budget["scope"]: budget for budget in explain(served, large, headers)["budgets"]}["run"]
    assert run["tokens"]["limit"] == 4000
    assert served.gateway.request("POST", "/api/runs/steered-1/pause").status == 200
    assert explain(served, large, headers)["error"]["code"] == "run_paused"


def test_explain_reports_a_wait_without_waiting(served: Served) -> None:
    headers = tagged("patient", "patient-1", "s")
    slow = chat('{"fake": {"delay_ms": 1500}}', max_tokens=400)
    with ThreadPoolExecutor(1) as pool:
        requests_before = served.seen()
        held = pool.submit(send, served, slow, headers)
        until(lambda: served.seen() > requests_before, 5, "the sibling at the provider")
        explained = explain(served, chat(words(50), max_tokens=200), headers)
        assert not held.done()
        assert held.result().status == 200
    assert explained["error"]["code"] == "step_budget_busy"
    assert [decision["result"] for decision in explained["decisions"]] == ["does not fit", "does not fit"]
    assert explained["actions"] == ["wait=30000ms"]


def test_explained_routing_does_not_change_the_conversations_model(served: Served) -> None:
    headers = tagged("letters", "auto-1", "talk", intent="send")
    hard = chat("Prove it step by step, unless it is false. " * 400, model="auto", reasoning_effort="high")
    easy = chat(model="auto")
    assert explain(served, hard, headers)["model"] == "able"
    explained = explain(served, easy, headers)
    assert explained["model"] == "fake"
    assert explained["actions"] == ["route=fake"]
    assert "asks for fast" in explained["decisions"][0]["why"]
    assert send(served, easy, headers).headers["x-budget-actions"] == "route=fake"


def test_explain_takes_other_protocols_and_refuses_an_unknown_key(served: Served) -> None:
    messages = {"model": "fake", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]}
    explained = explain(served, messages, tagged("letters", "m-1", "s"), "?protocol=messages")
    assert (explained["protocol"], explained["verdict"]) == ("messages", "forward")
    explained = explain(served, {"model": "fake", "input": "hi"}, tagged("letters", "m-2", "s"), "?protocol=responses")
    assert (explained["verdict"], explained["prompt_tokens"]) == ("forward", 8), explained
    reply = served.gateway.request("POST", "/api/explain?key=nobody", chat())
    assert (reply.status, reply.json()["error"]["code"]) == (404, "not_found")


def test_explain_command_prints_the_refusal_and_the_rungs(served: Served) -> None:
    asked = subprocess.run(
        [
            sys.executable,
            "-m",
            "gateway",
            "explain",
            "-",
            "--workflow",
            "small",
            "--run",
            "c-1",
            "--url",
            served.gateway.url,
        ],
        input=json.dumps(chat(words(900))),
        capture_output=True,
        text=True,
        check=False,
        cwd=served.gateway.folder,
    )
    assert asked.returncode == 0, asked.stderr
    assert "It would be refused with 402 request_exceeds_budget: This call needs" in asked.stdout
    assert "- rung whole, result does not fit" in asked.stdout


def test_explained_prompt_counts_are_those_of_the_chosen_model(tmp_path: Path) -> None:
    """The prompt is compressed for one model and then routed to another, whose tokenizer is not known exactly."""

    def models(provider: FakeProvider) -> list[dict[str, Any]]:
        url = provider.openai_url
        return [model(url, "expensive", input_cost_per_token=1e-5), model(url, "cheap", "hosted_vllm/unheard-of")]

    budgets = [{"scope": "run", "match": "*", "usd": 0.003, "on_pressure": ["compress", "route", "refuse"]}]
    tiers = {"fast": ["cheap"], "powerful": ["expensive"]}
    settings = {
        "orchestration_enabled": True,
        "orchestration_compression_enabled": True,
        "orchestration_ais_routing_enabled": True,
        "orchestration_token_budget_summarize": 8000,
        "orchestration_max_tokens_per_step": 8000,
    }
    with serving(tmp_path, models=models, budgets=budgets, tiers=tiers, settings=settings) as served:
        log = json.dumps([{"id": at, "level": "INFO", "message": f"request served {at}"} for at in range(90)], indent=2)
        function = {"name": "read_log", "arguments": "{}"}
        messages = [
            {"role": "user", "content": "Look at the log."},
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "1", "content": log},
            {"role": "user", "content": "Summarize the errors."},
        ]
        headers = tagged("letters", "r-1", "draft", intent="summarize")
        explained = explain(served, chat(model="expensive", messages=messages), headers)
        unchanged = explain(
            served, chat(model="cheap", messages=messages), {**headers, "x-workflow-options": "no-compress"}
        )
    assert (explained["verdict"], explained["model"]) == ("forward", "cheap"), explained
    assert explained["prompt_tokens_sent"] < explained["prompt_tokens"], explained["decisions"]
    assert explained["prompt_tokens"] == pytest.approx(unchanged["prompt_tokens"], rel=0.02)
