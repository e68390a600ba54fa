"""What keeps a run alive before it is refused, on the running gateway: compression, cheaper models, the ladder between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.acceptance.serving import ProviderThread, Served, model
from tests.fake_provider import FakeProvider
from tests.farebox_process import Reply, running_farebox, tagged

pytestmark = pytest.mark.xdist_group("acceptance-kept-alive")
DEAR_USD = 1e-5  # a token of a prompt to the dear model
CONDENSED = "The ferry to Skagen leaves at 9:40 from pier 7; tickets cost 240 kroner, and dogs travel free."
LADDERS = {
    "early": [{"compress": 0.5}, {"route": 0.4}, {"clamp": 0.3}, {"refuse": 0.1}],
    "patient-early": [{"wait": 0.9}, "refuse"],
    "refusing": ["refuse"],
    "empty": [],
    "clamp-first": ["clamp", "compress", "refuse"],
    "compressing": ["compress", "refuse"],
    "routing": ["route", "refuse"],
}


def config_of(provider: FakeProvider) -> dict[str, Any]:
    url = provider.openai_url
    dear = {"input_cost_per_token": 1e-5, "output_cost_per_token": 4e-5, "cache_read_input_token_cost": 1e-6}
    return {
        "model_list": [
            model(url, "dear", "openai/gpt-4o", **dear, quality=9, supports_function_calling=True),
            model(url, "cheap", f"openai/gpt-4o-mini?text={quote(CONDENSED)}", supports_function_calling=True),
            model(url, "broken", "openai/gpt-4o-mini?status=500"),
        ],
        "tiers": {"fast": ["cheap"], "powerful": ["dear"]},
        "router_settings": {"num_retries": 0},
        "compression": {"memory_tokens_max": 60},
        "budgets": [
            {"scope": "run", "match": "tight", "tokens": 3000, "on_pressure": ["compress", "clamp", "refuse"]},
            {"scope": "run", "match": "*", "tokens": 200_000},
            *(
                {"scope": "run", "match": name, "tokens": 4000, "on_pressure": ladder, "wait_seconds": 5}
                for name, ladder in LADDERS.items()
                if name not in ("early", "routing")
            ),
            {"scope": "run", "match": "early", "tokens": 4000, "on_pressure": LADDERS["early"]},
            {"scope": "run", "match": "routing", "usd": 0.05, "on_pressure": LADDERS["routing"]},
        ],
        "settings": {
            "orchestration_enabled": True,
            "orchestration_compression_enabled": True,
            "orchestration_ais_routing_enabled": True,
            "orchestration_compression_strategy_summarize": "semantic",
            "orchestration_compression_strategy_extract": "structural",
            "orchestration_compression_min_quality": 0.1,
            "orchestration_max_tokens_per_step": 200_000,
            "orchestration_max_tokens_per_workflow": 200_000,
            "orchestration_token_budget_summarize": 100_000,
            "orchestration_token_budget_extract": 100_000,
        },
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        ProviderThread() as provider,
        running_farebox(tmp_path_factory.mktemp("kept-alive"), config_of(provider)) as gateway,
    ):
        yield Served(gateway, provider)


def ask(served: Served, headers: dict[str, str], messages: list[dict[str, Any]], **fields: Any) -> Reply:
    body = {"model": "dear", "max_tokens": 32, "messages": messages, **fields}
    return served.gateway.request("POST", "/v1/chat/completions", body, headers)


def api(served: Served, path: str) -> Any:
    reply = served.gateway.get(f"/api{path}")
    assert reply.status == 200, reply.body
    return reply.json()


def story(number: int, sentences: int = 60) -> str:
    """Prose that says little, and its facts at the end."""
    said = " ".join(
        f"In the {number}th year and on day {day} the harbour was quiet and the keeper wrote nothing of note down."
        for day in range(sentences)
    )
    return f"{said} {CONDENSED}"


def asking_for(number: int, question: str = "When does the ferry leave?") -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "You answer about ferries."},
        {"role": "user", "content": "Read the book."},
        {"role": "assistant", "content": story(number)},
        {"role": "user", "content": question},
    ]


def asked_of(served: Served, name: str) -> int:
    return sum(one.model.startswith(name) for one in served.provider.requests)


def calls_of(served: Served, run: str) -> list[dict[str, Any]]:
    return list(reversed(api(served, f"/runs/{run}/calls")["calls"]))


def test_a_cheap_model_condenses_once_and_the_run_pays_for_it(served: Served) -> None:
    headers = tagged("ferries", "semantic-1", "read", intent="summarize")
    before = asked_of(served, "gpt-4o-mini")
    first = ask(served, headers, asking_for(1))
    assert first.status == 200, first.body
    assert first.headers["x-budget-actions"].startswith("compress=")
    sent = served.last.body["messages"]
    assert sent[2]["content"].startswith(CONDENSED)
    assert [sent[0], sent[1], sent[3]] == [message for at, message in enumerate(asking_for(1)) if at != 2]
    second = ask(served, headers, [*asking_for(1), {"role": "assistant", "content": "9:40"}, asking_for(1)[3]])
    assert second.headers["x-budget-actions"].startswith("compress=")
    assert asked_of(served, "gpt-4o-mini") == before + 1

    run = api(served, "/runs/semantic-1")
    condensing, *calls = sorted(calls_of(served, "semantic-1"), key=lambda call: call["actions"] != "condense")
    assert (condensing["actions"], condensing["model"], condensing["step"]) == ("condense", "cheap", "read")
    assert condensing["request_id"] not in {call["request_id"] for call in calls}
    assert run["tokens"]["settled"] == condensing["total_tokens"] + sum(call["total_tokens"] for call in calls)
    assert run["tokens"]["reserved"] == 0
    assert run["tokens"]["saved"] == sum(call["saved_tokens"] for call in calls) > 0
    # What asking cost is taken from what the first call saved.
    paying, resting = calls
    assert paying["saved_usd"] == pytest.approx(paying["saved_tokens"] * DEAR_USD - condensing["cost_usd"])
    assert resting["saved_usd"] == pytest.approx(resting["saved_tokens"] * DEAR_USD)


def test_nobody_is_asked_where_the_budget_has_no_room_for_it(served: Served) -> None:
    before = asked_of(served, "gpt-4o-mini")
    reply = ask(served, tagged("tight", "semantic-2", "read", intent="summarize"), asking_for(2))
    assert (reply.status, asked_of(served, "gpt-4o-mini")) == (200, before), reply.body
    (call,) = calls_of(served, "semantic-2")
    assert call["decisions"][0]["asking"] == "the budget has no room for asking"


def test_a_condensed_text_of_low_quality_is_paid_and_not_used(served: Served) -> None:
    key = "/api/settings/orchestration_compression_min_quality"
    assert served.gateway.request("PUT", key, {"value": 0.95}).status == 200
    try:
        reply = ask(served, tagged("ferries", "semantic-3", "read", intent="summarize"), asking_for(3))
    finally:
        assert served.gateway.request("PUT", key, {"value": 0.1}).status == 200
    assert reply.status == 200
    assert "x-budget-actions" not in reply.headers
    assert served.last.body["messages"] == asking_for(3)
    run = api(served, "/runs/semantic-3")
    assert run["calls"] == 2
    assert run["tokens"]["reserved"] == run["tokens"]["saved"] == 0
