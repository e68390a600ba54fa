"""The ladder of pressure on the running gateway: compression, cheaper models, waiting and clamping before a refusal, and what they save."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from policies.holdout import Arm, arm_of
from tests.acceptance.serving import ProviderThread, Served, action_names, budget_comment, events_of, model, words
from tests.fake_provider import FakeProvider
from tests.farebox_process import Reply, running_farebox, tagged
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("acceptance-pressure-ladder")
EXPENSIVE_USD = 1e-5  # a token of a prompt to the expensive model
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
    expensive = {"input_cost_per_token": 1e-5, "output_cost_per_token": 4e-5, "cache_read_input_token_cost": 1e-6}
    return {
        "model_list": [
            model(url, "expensive", "openai/gpt-4o", **expensive, quality=9, supports_function_calling=True),
            model(url, "cheap", f"openai/gpt-4o-mini?text={quote(CONDENSED)}", supports_function_calling=True),
            model(url, "broken", "openai/gpt-4o-mini?status=500"),
        ],
        "tiers": {"fast": ["cheap"], "powerful": ["expensive"]},
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
            {"scope": "run", "match": "early", "tokens": 20_000, "on_pressure": LADDERS["early"]},
            {"scope": "run", "match": "thrifty", "usd": 0.02, "on_pressure": ["compress", "refuse"]},
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
            "orchestration_token_budget_conditional": 100_000,
        },
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        ProviderThread() as provider,
        running_farebox(tmp_path_factory.mktemp("pressure-ladder"), config_of(provider)) as gateway,
    ):
        yield Served(gateway, provider)


def ask(served: Served, headers: dict[str, str], messages: list[dict[str, Any]], **fields: Any) -> Reply:
    body = {"model": "expensive", "max_tokens": 32, "messages": messages, **fields}
    return served.gateway.request("POST", "/v1/chat/completions", body, headers)


def api(served: Served, path: str) -> Any:
    reply = served.gateway.get(f"/api{path}")
    assert reply.status == 200, reply.body
    return reply.json()


def story(number: int, sentences: int = 60) -> str:
    """Prose with little content, and its facts at the end."""
    text = " ".join(
        f"In the {number}th year and on day {day} the harbour was quiet and the keeper wrote nothing of note down."
        for day in range(sentences)
    )
    return f"{text} {CONDENSED}"


def asking_for(number: int, question: str = "When does the ferry leave?") -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "You answer about ferries."},
        {"role": "user", "content": "Read the book."},
        {"role": "assistant", "content": story(number)},
        {"role": "user", "content": question},
    ]


def requests_to(served: Served, name: str) -> int:
    return sum(received.model.startswith(name) for received in served.provider.requests)


def calls_of(served: Served, run: str) -> list[dict[str, Any]]:
    return list(reversed(api(served, f"/runs/{run}/calls")["calls"]))


def test_semantic_compression_asks_the_cheap_model_once_and_charges_the_run(served: Served) -> None:
    headers = tagged("ferries", "semantic-1", "read", intent="summarize")
    before = requests_to(served, "gpt-4o-mini")
    first = ask(served, headers, asking_for(1))
    assert first.status == 200, first.body
    assert first.headers["x-budget-actions"].startswith("compress=")
    sent = served.last.body["messages"]
    assert sent[2]["content"].startswith(CONDENSED)
    assert [sent[0], sent[1], sent[3]] == [message for at, message in enumerate(asking_for(1)) if at != 2]
    second = ask(served, headers, [*asking_for(1), {"role": "assistant", "content": "9:40"}, asking_for(1)[3]])
    assert second.headers["x-budget-actions"].startswith("compress=")
    assert requests_to(served, "gpt-4o-mini") == before + 1

    run = api(served, "/runs/semantic-1")
    condensing, *calls = sorted(calls_of(served, "semantic-1"), key=lambda call: call["actions"] != "condense")
    assert (condensing["actions"], condensing["model"], condensing["step"]) == ("condense", "cheap", "read")
    assert condensing["request_id"] not in {call["request_id"] for call in calls}
    assert run["tokens"]["settled"] == condensing["total_tokens"] + sum(call["total_tokens"] for call in calls)
    assert run["tokens"]["reserved"] == 0
    assert run["tokens"]["saved"] == sum(call["saved_tokens"] for call in calls) > 0
    # The cost of the question is subtracted from what the first call saved.
    paying, resting = calls
    assert paying["saved_usd"] == pytest.approx(paying["saved_tokens"] * EXPENSIVE_USD - condensing["cost_usd"])
    assert resting["saved_usd"] == pytest.approx(resting["saved_tokens"] * EXPENSIVE_USD)


def test_semantic_compression_is_skipped_when_the_budget_has_no_room(served: Served) -> None:
    before = requests_to(served, "gpt-4o-mini")
    reply = ask(served, tagged("tight", "semantic-2", "read", intent="summarize"), asking_for(2))
    assert (reply.status, requests_to(served, "gpt-4o-mini")) == (200, before), reply.body
    (call,) = calls_of(served, "semantic-2")
    assert call["decisions"][0]["asking"] == "the budget has no room for asking"


def test_condensed_text_below_the_quality_minimum_is_charged_and_not_sent(served: Served) -> None:
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


LOG = "\n".join(
    f"2026-11-20 09:{minute:02d}:00   INFO    worker-{minute % 3}     heartbeat     ok            "
    for minute in range(60)
)


def with_log(question: str = "What does the log say?") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Read the log."},
        {"role": "assistant", "content": None, "tool_calls": [call_of("c1")]},
        {"role": "tool", "tool_call_id": "c1", "content": LOG},
        {"role": "user", "content": question},
    ]


def call_of(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "read", "arguments": "{}"}}


def spend(served: Served, headers: dict[str, str], tokens: int) -> None:
    """Spends this many tokens of a run, and a few more."""
    reply = ask(served, {**headers, "x-workflow-options": "no-compress"}, [{"role": "user", "content": words(tokens)}])
    assert reply.status == 200, reply.body


def rung_results(call: dict[str, Any]) -> list[tuple[str, str]]:
    return [(decision["rung"], decision["result"]) for decision in call["decisions"] if "rung" in decision]


def test_rungs_with_a_share_are_taken_in_turn_as_the_budget_is_spent(served: Served) -> None:
    headers = tagged("early", "early-1", "read", intent="extract")
    assert action_names(ask(served, headers, with_log())) == []
    spend(served, headers, 9900)
    assert action_names(ask(served, headers, with_log())) == ["compress"]
    spend(served, headers, 1500)
    assert action_names(ask(served, headers, with_log())) == ["compress", "route"]
    assert served.last.model == "gpt-4o-mini"
    spend(served, headers, 1500)
    clamped = ask(served, headers, with_log(), max_tokens=4000)
    assert action_names(clamped) == ["compress", "route", "clamp"]
    left = int(clamped.headers["x-budget-run-remaining"]) + clamped.json()["usage"]["total_tokens"]
    assert served.last.body["max_tokens"] < left / 2
    spend(served, headers, 4000)
    refused = ask(served, headers, with_log())
    assert (refused.status, refused.json()["error"]["code"]) == (402, "run_budget_exceeded")
    assert "The last 10% of this budget are kept back for others." in refused.json()["error"]["message"]
    last = calls_of(served, "early-1")[-1]
    assert rung_results(last) == [(rung, "taken early") for rung in ("compress", "route", "clamp", "refuse")]
    page = served.gateway.get("/admin/runs/early-1")
    assert (page.status, page.body.decode().count("taken early") >= 4) == (200, True)


def test_decisions_about_a_call_that_did_not_fit_name_every_rung(served: Served) -> None:
    headers = tagged("compressing", "told-1", "read", intent="extract")
    spend(served, headers, 3600)
    assert ask(served, {**headers, "x-workflow-options": "no-compress"}, with_log()).status == 402
    assert ask(served, headers, with_log()).status == 402
    forbidden, tried = calls_of(served, "told-1")[1:]
    assert rung_results(forbidden) == [("compress", "not tried"), ("whole", "does not fit")]
    assert forbidden["decisions"][0]["why"] == "the caller forbids it with no-compress"
    whole, compress = (decision for decision in tried["decisions"] if "rung" in decision)
    assert (whole["why"], whole["account"], whole["unit"]) == ("exceeded", "run/told-1", "tokens")
    assert whole["needed"] > whole["remaining"] > 0
    assert compress["rung"] == "compress"


@pytest.mark.parametrize(
    ("workflow", "status", "actions"),
    [("refusing", 402, []), ("empty", 402, []), ("clamp-first", 200, ["clamp"]), ("compressing", 402, [])],
)
def test_only_the_rungs_of_a_budget_are_taken_in_its_order(
    served: Served, workflow: str, status: int, actions: list[str]
) -> None:
    headers = tagged(workflow, f"order-{workflow}", "read", intent="extract")
    spend(served, headers, 3000)
    reply = ask(served, headers, [{"role": "user", "content": "Write."}], max_tokens=2000)
    assert (reply.status, action_names(reply)) == (status, actions), reply.body


def test_route_rung_uses_a_cheaper_model_when_money_is_short(served: Served) -> None:
    headers = tagged("routing", "routing-1", "read", intent="extract")
    messages = [{"role": "user", "content": words(300)}]
    assert ask(served, headers, messages, max_tokens=300).headers.get("x-budget-actions") is None
    reply = ask(served, headers, messages, max_tokens=2000)
    assert (reply.status, action_names(reply)) == (200, ["route"])
    call = calls_of(served, "routing-1")[-1]
    assert (call["model_requested"], call["model"]) == ("expensive", "cheap")
    assert rung_results(call) == [("whole", "does not fit"), ("route", "fits")]
    saved = call["input_tokens"] * (1e-5 - 1e-7) + call["output_tokens"] * (4e-5 - 4e-7)
    assert call["saved_usd"] == pytest.approx(saved)
    by_run = api(served, "/usage?group_by=run&workflow=routing")["rows"][0]
    assert by_run["saved_usd"] == pytest.approx(saved)


def test_wait_rung_with_a_share_ends_when_siblings_settle(served: Served) -> None:
    headers = tagged("patient-early", "patient-1", "read", intent="extract")
    requests_before = served.seen()
    slow = [{"role": "user", "content": '{"fake": {"delay_ms": 1200}}'}]
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(ask, served, headers, slow, max_tokens=3000)
        until(lambda: served.seen() > requests_before, 5, "the sibling at the provider")
        reply = ask(served, headers, [{"role": "user", "content": "hi"}])
        assert held.result().status == 200
    assert (reply.status, action_names(reply)) == (200, ["wait"])


def test_savings_agree_in_headers_streams_runs_and_reports(served: Served) -> None:
    headers = tagged("streams", "streams-1", "read", intent="extract")
    buffered = ask(served, headers, with_log())
    streamed = ask(served, headers, with_log(), stream=True)
    note = budget_comment(events_of(streamed.body.decode()))
    assert note["actions"] == [buffered.headers["x-budget-actions"]] == [streamed.headers["x-budget-actions"]]
    saved = int(buffered.headers["x-budget-actions"].removeprefix("compress="))
    assert api(served, "/runs/streams-1")["tokens"]["saved"] == 2 * saved
    for group in ("workflow", "step", "intent", "run"):
        (row,) = api(served, f"/usage?group_by={group}&workflow=streams")["rows"]
        assert (row["saved_tokens"], row["calls"]) == (2 * saved, 2)
    (row,) = api(served, "/usage?group_by=savings&workflow=streams")["rows"]
    assert (row["savings"], row["saved_tokens"]) == ("compress", 2 * saved)
    assert 0 < row["saved_usd"] <= 2 * saved * EXPENSIVE_USD


def test_memory_message_is_compressed_to_its_limit_and_keeps_the_newest_lines(served: Served) -> None:
    runs = [f"2026-10-{day:02d}: the run of that day fetched {day} pages and stored them." for day in range(1, 29)]
    memory = "\n".join(["The user prefers Danish.", *runs])
    messages = [
        {"role": "user", "name": "memory", "content": memory},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "What now?"},
    ]
    reply = ask(served, tagged("remembering", "memory-1", "read", intent="extract"), messages)
    assert action_names(reply) == ["compress"]
    memory_sent = served.last.body["messages"][0]["content"]
    assert "prefers Danish" in memory_sent
    assert "2026-10-28" in memory_sent
    assert "2026-10-03" not in memory_sent
    assert len(memory_sent) < len(memory) / 4


def test_history_of_a_responses_request_is_compressed(served: Served) -> None:
    headers = tagged("protocols", "protocols-1", "read", intent="extract")
    items = [
        {"role": "user", "content": "Read the log."},
        {"type": "function_call", "call_id": "c1", "name": "read", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": LOG},
        {"role": "user", "content": "What does it say?"},
    ]
    body = {"model": "expensive", "input": items, "max_output_tokens": 32}
    reply = served.gateway.request("POST", "/v1/responses", body, headers)
    assert (reply.status, action_names(reply)) == (200, ["compress"]), reply.body
    sent = served.last.body["input"]
    assert [sent[0], sent[1], sent[3]] == [items[0], items[1], items[3]]
    assert len(sent[2]["output"]) < len(LOG) * 0.6
    assert sent[2]["call_id"] == "c1"


def test_compression_is_skipped_when_it_would_cost_more_prompt_cache_than_it_saves(served: Served) -> None:
    """At first the log is the newest turn and is sent unchanged; then it is history, cached by the provider at a tenth of its price."""
    question = {"role": "user", "content": "And now?"}
    first = [{"role": "user", "content": f"{LOG}\n{story(7)}"}]
    grown = [*first, {"role": "assistant", "content": "It is quiet."}, question]
    cached = {"role": "system", "content": '{"fake": {"cached_tokens": 1500}}'}
    headers = tagged("caching", "cached-1", "read", intent="extract")
    for messages in ([cached, *first], [cached, *grown]):
        reply = ask(served, headers, messages)
        assert (reply.status, action_names(reply)) == (200, []), reply.body
        assert served.last.body["messages"] == messages
    assert calls_of(served, "cached-1")[-1]["decisions"][-1]["compress"].startswith(
        "not done: the prompt cache would lose"
    )
    # If the provider reports no cached tokens, there is no cache to lose.
    bare = tagged("caching", "uncached-1", "read", intent="extract")
    ask(served, bare, first)
    ask(served, bare, grown)
    again = ask(served, bare, [*grown, {"role": "assistant", "content": "Still quiet."}, question])
    assert action_names(again) == ["compress"]


def test_failed_semantic_compression_costs_nothing_and_the_call_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with ProviderThread() as provider:
        config = config_of(provider)
        config["compression"] = {"semantic_model": "broken"}
        config["savings"] = {"holdout_share": 0.5}
        with running_farebox(tmp_path_factory.mktemp("failing"), config) as gateway:
            served = Served(gateway, provider)
            treated = next(run for run in "abcdefgh" if arm_of("default", run, 0.5) is Arm.TREATED)
            reply = ask(served, tagged("ferries", treated, "read", intent="summarize"), asking_for(1))
            assert (reply.status, action_names(reply)) == (200, [])
            assert served.last.body["messages"] == asking_for(1)
            run = api(served, f"/runs/{treated}")
            assert (run["calls"], run["tokens"]["reserved"]) == (1, 0)
            check_the_holdout(served)


def check_the_holdout(served: Served) -> None:
    """Whole runs are left alone, and the report compares both groups."""
    arms: dict[Arm, list[str]] = {Arm.TREATED: [], Arm.HOLDOUT: []}
    for number in range(8):
        run = f"held-{number}"
        arms[arm_of("default", run, 0.5)].append(run)
        for _ in range(2):
            reply = ask(served, tagged("logs", run, "read", intent="extract"), with_log())
            is_held = run in arms[Arm.HOLDOUT]
            assert action_names(reply) == (["holdout"] if is_held else ["compress"])
            assert (served.last.body["messages"] == with_log()) is is_held
    assert all(arms.values()), "the names of the runs fall on both sides"
    report = api(served, "/usage?group_by=savings&workflow=logs")
    assert {row["savings"] for row in report["rows"]} == {"compress+treated", "holdout"}
    sides = report["comparison"]
    assert sides["treated"]["calls"] == 2 * len(arms[Arm.TREATED])
    assert sides["holdout"]["calls"] == 2 * len(arms[Arm.HOLDOUT])
    assert sides["holdout"]["saved_tokens"] == 0
    assert sides["treated"]["input_tokens_per_call"] < sides["holdout"]["input_tokens_per_call"]
    assert sides["input_tokens_saved_share"] == pytest.approx(
        1 - sides["treated"]["input_tokens_per_call"] / sides["holdout"]["input_tokens_per_call"], abs=1e-4
    )


def test_prompt_is_compressed_to_fit_a_usd_budget(served: Served) -> None:
    """0.02 USD pay for 2,000 prompt tokens of the expensive model; the requested answer uses up 1,600 of them."""
    headers = tagged("thrifty", "thrifty-1", "read", intent="conditional")
    messages = with_log("And the workers?")
    assert ask(served, {**headers, "x-workflow-options": "no-compress"}, messages, max_tokens=400).status == 402
    reply = ask(served, headers, messages, max_tokens=400)
    assert (reply.status, action_names(reply)) == (200, ["compress"]), reply.body
    whole, compressed = (decision for decision in calls_of(served, "thrifty-1")[-1]["decisions"] if "rung" in decision)
    assert (whole["unit"], compressed["result"]) == ("nano_usd", "fits")
