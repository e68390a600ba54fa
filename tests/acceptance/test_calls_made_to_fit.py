"""Refusing is the last resort: calls that fit after compression, a cheaper model or a shorter answer, and what that saves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.serving import ProviderThread, Served, action_names, model, words
from tests.fake_provider import FakeProvider
from tests.farebox_process import Reply, running_farebox, tagged

pytestmark = pytest.mark.xdist_group("acceptance-calls-made-to-fit")
STEP_TOKENS = 2250
LOG = "\n".join(
    json.dumps(
        {"id": number, "level": "INFO", "message": f"request served {number}", "ts": f"10:00:{number % 60:02d}"},
        indent=2,
    )
    for number in range(60)
)
LETTER = [{"role": "user", "content": "Write the letter to the customer about the delay of the order. " * 25}]


def config_of(provider: FakeProvider) -> dict[str, Any]:
    def priced(name: str, upstream: str, usd: float) -> dict[str, Any]:
        costs = {"input_cost_per_token": usd, "output_cost_per_token": 4 * usd}
        return model(provider.openai_url, name, upstream, **costs, supports_function_calling=True)

    return {
        "model_list": [
            priced("small", "openai/gpt-4o-mini", 1e-6),
            priced("medium", "openai/gpt-4o", 5e-6),
            priced("large", "openai/gpt-4.1", 5e-5),
            priced("other", "openai/claude-sonnet-4-5", 1e-6),
        ],
        "tiers": {"fast": ["small"], "balanced": ["medium"], "powerful": ["large"]},
        "budgets": [
            {"scope": "run", "match": "purse", "tokens": 3000, "usd": 0.01},
            {"scope": "run", "match": "pennies", "usd": 0.0011},
            {"scope": "run", "match": "narrow", "tokens": 1500, "on_pressure": ["compress", "clamp", "refuse"]},
        ],
        "settings": {
            "orchestration_enabled": True,
            "orchestration_compression_enabled": True,
            "orchestration_ais_routing_enabled": True,
            "orchestration_compression_strategy_transform": "truncate",
            "orchestration_token_budget_transform": 3000,
        },
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        ProviderThread() as provider,
        running_farebox(tmp_path_factory.mktemp("calls-made-to-fit"), config_of(provider)) as gateway,
    ):
        yield Served(gateway, provider)


def ask(served: Served, headers: dict[str, str], messages: list[dict[str, Any]], **fields: Any) -> Reply:
    return served.gateway.request("POST", "/v1/chat/completions", {"messages": messages, **fields}, headers)


def api(served: Served, path: str) -> Any:
    reply = served.gateway.get(f"/api{path}")
    assert reply.status == 200, reply.body
    return reply.json()


def with_log(question: str = "Summarize the errors with id 17.") -> list[dict[str, Any]]:
    function = {"name": "read_log", "arguments": "{}"}
    return [
        {"role": "user", "content": "Look at the log."},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": LOG},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": question},
    ]


@pytest.mark.parametrize("cap", [16, 20, 100, 300, 500, 700, 1000, 2000, None])
def test_prompt_is_compressed_to_fit_for_every_requested_answer_length(served: Served, cap: int | None) -> None:
    fields = {"model": "small"} | ({"max_tokens": cap} if cap is not None else {})
    reply = ask(served, tagged("report", f"fits-{cap}", "summarize"), with_log(), **fields)
    assert reply.status == 200, reply.body
    assert reply.headers["x-budget-step-limit"] == str(STEP_TOKENS)
    assert action_names(reply)[0] == "compress"
    prompt, answer = int(reply.headers["x-workflow-prompt-tokens"]), served.last.body["max_tokens"]
    assert prompt + answer <= STEP_TOKENS
    if cap is not None and cap <= 1000:
        assert (action_names(reply), answer) == (["compress"], cap), (
            "a prompt that is short enough leaves the answer alone"
        )
    else:
        assert action_names(reply) == ["compress", "clamp"]
    assert answer >= min(cap or 300, 300), "an answer without an exact cap keeps a usual length"


def test_prompt_is_not_compressed_when_the_unclampable_answer_alone_does_not_fit(served: Served) -> None:
    headers = {**tagged("report", "alone-1", "summarize"), "x-workflow-options": "no-clamp"}
    reply = ask(served, headers, with_log(), model="small", max_tokens=3000)
    assert (reply.status, action_names(reply)) == (402, [])
    (call,) = api(served, "/runs/alone-1/calls")["calls"]
    assert {"compress": "a shorter prompt would not make it fit"} in call["decisions"]


def test_call_compressed_by_the_settings_is_compressed_further_to_fit(served: Served) -> None:
    """A text that carries our digest is not shortened twice, so it is shortened again from the original."""
    free = ask(
        served, tagged("report", "further-1", "transform", intent="transform"), with_log(), model="small", max_tokens=16
    )
    assert (free.status, action_names(free)) == (200, ["compress"]), free.body
    before = int(free.headers["x-workflow-prompt-tokens"])
    headers = {
        **tagged("report", "further-2", "transform", intent="transform"),
        "x-workflow-budget-tokens": str(before - 200),
    }
    reply = ask(served, headers, with_log(), model="small", max_tokens=16)
    assert (reply.status, action_names(reply)) == (200, ["compress"]), reply.body
    (call,) = api(served, "/runs/further-2/calls")["calls"]
    whole = int(free.headers["x-budget-actions"].removeprefix("compress=")) + before
    assert call["saved_tokens"] + int(reply.headers["x-workflow-prompt-tokens"]) == pytest.approx(whole, abs=5)


def test_prompt_of_a_model_counted_by_a_factor_is_compressed_no_further_than_needed(served: Served) -> None:
    """Savings and the necessary cut are in the same tokens in which the prompt is counted."""

    def transformed(run: str, **headers: str) -> Reply:
        tags = tagged("report", run, "transform", intent="transform") | headers
        return ask(served, tags, with_log(), model="other", max_tokens=16)

    whole = int(transformed("factor-1", **{"x-workflow-options": "no-compress"}).headers["x-workflow-prompt-tokens"])
    limit = whole * 65 // 100
    reply = transformed("factor-2", **{"x-workflow-budget-tokens": str(limit)})
    assert reply.status == 200, reply.body
    prompt = int(reply.headers["x-workflow-prompt-tokens"])
    (call,) = api(served, "/runs/factor-2/calls")["calls"]
    assert call["saved_tokens"] + prompt == pytest.approx(whole, abs=5)
    assert limit * 0.9 < prompt + 16 <= limit


@pytest.mark.parametrize(
    ("cap", "actions"),
    [(100, ["route"]), (1000, ["route", "clamp"]), (4000, ["route", "clamp"]), (None, ["route", "clamp"])],
)
def test_cheaper_model_is_used_when_tokens_were_short_before_money(
    served: Served, cap: int | None, actions: list[str]
) -> None:
    body = {"model": "large"} | ({"max_tokens": cap} if cap is not None else {})
    headers = tagged("purse", f"purse-{cap}", "draft")
    question = {**body, "messages": LETTER, "tags": {"workflow": "purse", "run": f"purse-{cap}", "step": "draft"}}
    explained = served.gateway.request("POST", "/api/explain", question).json()
    assert (explained["verdict"], explained["model"]) == ("forward", "medium"), explained
    reply = ask(served, headers, LETTER, **body)
    assert (reply.status, action_names(reply)) == (200, actions), reply.body
    assert served.last.model == "gpt-4o"


def test_next_cheaper_model_is_used_when_the_nearest_is_too_expensive(served: Served) -> None:
    reply = ask(served, tagged("pennies", "pennies-1", "draft"), LETTER, model="large", max_tokens=100)
    assert reply.status == 200, reply.body
    assert (served.last.model, action_names(reply)) == ("gpt-4o-mini", ["route", "route"])
    (call,) = api(served, "/runs/pennies-1/calls")["calls"]
    assert call["saved_usd"] == pytest.approx(call["input_tokens"] * 4.9e-5 + call["output_tokens"] * 1.96e-4)


def test_refused_call_reports_no_savings(served: Served) -> None:
    headers = tagged("narrow", "narrow-1", "summarize")
    much = [*with_log()[:-1], {"role": "user", "content": words(1500)}]
    reply = ask(served, headers, much, model="small", max_tokens=16)
    assert (reply.status, action_names(reply)) == (402, ["compress"]), reply.body
    run = api(served, "/runs/narrow-1")
    assert (run["metrics"]["refused"], run["tokens"]["saved"], run["metrics"]["saved_share"]) == (1, 0, 0.0)
    (row,) = api(served, "/usage?group_by=step&workflow=narrow")["rows"]
    assert (row["refused"], row["saved_tokens"], row["saved_usd"]) == (1, 0, 0.0)
    reply = ask(served, headers, with_log(), model="small", max_tokens=16)
    assert reply.status == 200, reply.body
    saved = int(reply.headers["x-budget-actions"].removeprefix("compress="))
    assert api(served, "/runs/narrow-1")["tokens"]["saved"] == saved
