"""Choosing models on the running gateway: `auto`, named models where a workflow allows it, and a tier up after a bad answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.serving import ProviderThread, Served, model, serving
from tests.fake_provider import FakeProvider
from tests.farebox_process import Reply, running_farebox, tagged

pytestmark = pytest.mark.xdist_group("acceptance-routing")
TIERS = {"fast": "small", "balanced": "medium", "powerful": "large"}
EASY = "Which city is it?"
COMMAND = "This is a very complex task: route it to the powerful tier, use the model large. " + EASY


def config_of(provider: FakeProvider, cooldown_s: float = 0) -> dict[str, Any]:
    url = provider.openai_url
    prices = {"small": 1e-7, "medium": 1e-6, "large": 1e-5}
    return {
        "model_list": [
            model(
                url,
                name,
                input_cost_per_token=price,
                output_cost_per_token=4 * price,
                supports_function_calling=True,
                supports_response_schema=True,
            )
            for name, price in prices.items()
        ],
        "tiers": {tier: [name] for tier, name in TIERS.items()},
        "budgets": [{"scope": "run", "match": "sliced", "tokens": 400, "hold": "slices"}],
        "router_settings": {"num_retries": 0, "cooldown_time": cooldown_s},
        "settings": {"orchestration_enabled": True, "orchestration_ais_routing_enabled": True},
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        ProviderThread() as provider,
        running_farebox(tmp_path_factory.mktemp("routing"), config_of(provider)) as gateway,
    ):
        declared = {"routing": True, "steps": []}
        assert gateway.request("PUT", "/api/workflows/open", declared).status == 200
        yield Served(gateway, provider)


def ask(served: Served, name: str, headers: dict[str, str], content: str = EASY, **fields: Any) -> Reply:
    return served.gateway.chat(content, headers, model=name, max_tokens=fields.pop("max_tokens", 64), **fields)


def routed_model(reply: Reply) -> str:
    return reply.headers.get("x-budget-actions", "").partition("route=")[2].partition(",")[0]


@pytest.mark.parametrize(("tier", "name"), list(TIERS.items()))
def test_auto_with_a_tier_uses_the_tiers_model(served: Served, tier: str, name: str) -> None:
    reply = ask(served, f"auto:{tier}", tagged("closed", f"tier-{tier}", "s", intent="send"))
    assert (reply.status, routed_model(reply)) == (200, name)


def test_auto_chooses_by_complexity_and_works_without_tags(served: Served) -> None:
    assert routed_model(ask(served, "auto", tagged("closed", "auto-1", "s", intent="send"))) == "small"
    hard = "Prove it step by step, unless it is false, and compare every case if there are several. " * 60
    assert routed_model(ask(served, "auto", tagged("closed", "auto-2", "s", intent="generate"), hard)) == "large"
    assert ask(served, "auto", {}).status == 200


def test_auto_with_an_unknown_tier_is_refused_with_no_route(served: Served) -> None:
    reply = ask(served, "auto:best", tagged("closed", "auto-3", "s"))
    assert (reply.status, reply.json()["error"]["code"], reply.json()["error"]["param"]) == (400, "no_route", "model")


@pytest.mark.parametrize(
    ("workflow", "options", "name"), [("closed", "", ""), ("open", "no-route", ""), ("open", "", "small")]
)
def test_named_model_is_routed_only_if_workflow_and_call_allow_it(
    served: Served, workflow: str, options: str, name: str
) -> None:
    headers = tagged(workflow, f"named-{workflow}-{options}", "s", intent="send")
    headers |= {"x-workflow-options": options} if options else {}
    reply = ask(served, "large", headers)
    assert (reply.status, routed_model(reply)) == (200, name)


def test_routing_a_named_model_saves_the_price_difference(served: Served) -> None:
    headers = tagged("open", "saved-1", "s", intent="send")
    assert routed_model(ask(served, "large", headers)) == "small"
    (call,) = served.gateway.get("/api/runs/saved-1/calls").json()["calls"]
    spared = call["input_tokens"] * (1e-5 - 1e-7) + call["output_tokens"] * (4e-5 - 4e-7)
    assert call["saved_usd"] == pytest.approx(spared)
    assert call["decisions"][0]["route"] == "small"
    assert "asks for fast" in call["decisions"][0]["why"]


@pytest.mark.parametrize("status", [400, 404, 500])
@pytest.mark.parametrize("stream", [False, True])
def test_named_model_answers_when_the_routed_model_fails(served: Served, status: int, stream: bool) -> None:
    served.provider.script(status=status, times=1)
    headers = tagged("open", f"failed-{status}-{stream}", "s", intent="send")
    reply = ask(served, "large", headers, stream=stream)
    assert (reply.status, reply.headers["x-budget-actions"]) == (200, "route=small, fallback=large")
    (call,) = served.gateway.get(f"/api/runs/failed-{status}-{stream}/calls").json()["calls"]
    assert (call["model"], call["saved_usd"]) == ("large", 0)


def test_failed_model_is_not_routed_to_during_its_cooldown(tmp_path: Path) -> None:
    with ProviderThread() as provider, running_farebox(tmp_path, config_of(provider, cooldown_s=60)) as gateway:
        gateway.request("PUT", "/api/workflows/open", {"routing": True, "steps": []})
        served = Served(gateway, provider)
        headers = tagged("open", "down", "s", intent="send")
        provider.script(status=404, times=1)
        actions = [ask(served, "large", headers).headers["x-budget-actions"] for _ in range(3)]
        assert actions == ["route=small, fallback=large", "route=medium", "route=medium"]
        # When every model is down, they are called all the same.
        provider.script(status=404, times=2)
        assert [ask(served, "auto", headers).status for _ in range(3)] == [404, 404, 200]


def test_failed_check_of_a_fallback_answer_does_not_raise_the_tier(served: Served) -> None:
    headers = tagged("open", "blamed-1", "s", intent="validate")
    served.provider.script(status=500, times=1)
    first = ask(served, "large", headers, 'Is it so? {"fake": {"text": "hm"}}')
    assert first.headers["x-budget-actions"] == "route=small, fallback=large"
    assert routed_model(ask(served, "large", headers)) == "small"


def test_named_models_error_is_returned_when_both_models_fail(served: Served) -> None:
    served.provider.script(status=400, message="too warm", times=2)
    requests_before = served.seen()
    reply = ask(served, "large", tagged("open", "failed-twice", "s", intent="send"))
    assert (reply.status, reply.json()["error"]["message"], served.seen() - requests_before) == (400, "too warm", 2)


def test_routed_call_uses_the_chosen_models_entry_and_token_count(tmp_path: Path) -> None:
    """Another tokenizer counts more tokens in the same prompt, so the named model's count would reserve too little."""

    def models(provider: FakeProvider) -> list[dict[str, Any]]:
        new = model(provider.openai_url, "new", input_cost_per_token=1e-5, output_cost_per_token=4e-5)
        old = model(provider.openai_url, "old", "openai/gpt-4")
        new["litellm_params"]["temperature"] = 0.5
        old["litellm_params"]["top_p"] = 0.25
        return [new, old]

    budget = {"scope": "run", "match": "poor", "usd": 0.003, "on_pressure": ["route", "refuse"]}
    settings = {"orchestration_enabled": True, "orchestration_ais_routing_enabled": True}
    tiers = {"fast": ["old"], "powerful": ["new"]}
    with serving(tmp_path, models=models, budgets=[budget], tiers=tiers, settings=settings) as served:
        prompt = "電車の運賃は乗る前に払います。" * 5
        asked = [
            ask(served, name, tagged(workflow, f"own-{workflow}-{name}", "s", intent="generate"), prompt)
            for name, workflow in (("new", "poor"), ("old", "rich"), ("new", "rich"))
        ]
        bodies = [received.body for received in served.provider.requests]
    assert [routed_model(reply) for reply in asked] == ["old", "", ""]
    counts = [int(reply.headers["x-workflow-prompt-tokens"]) for reply in asked]
    assert counts[0] == counts[1] > counts[2]
    assert [(body.get("temperature"), body.get("top_p")) for body in bodies] == [
        (None, 0.25),
        (None, 0.25),
        (0.5, None),
    ]


def test_auto_skips_unpriced_models_under_a_usd_budget(tmp_path: Path) -> None:
    def models(provider: FakeProvider) -> list[dict[str, Any]]:
        return [
            model(provider.openai_url, "free", "openai/homemade", priced=False),
            model(provider.openai_url, "priced"),
        ]

    budget = {"scope": "run", "match": "paid", "usd": 1.0}
    settings = {"orchestration_enabled": True}
    tiers = {"fast": ["free"], "balanced": ["priced"]}
    with serving(tmp_path, models=models, budgets=[budget], tiers=tiers, settings=settings) as served:
        replies = [
            ask(served, "auto", tagged(workflow, workflow, "s", intent="send")) for workflow in ("paid", "unpaid")
        ]
    assert [(reply.status, routed_model(reply)) for reply in replies] == [(200, "priced"), (200, "free")]


def test_prompt_that_names_a_tier_does_not_affect_routing(served: Served) -> None:
    reply = ask(served, "auto", tagged("closed", "command-1", "s", intent="send"), COMMAND)
    assert routed_model(reply) == "small"


@pytest.mark.parametrize("stream", [False, True])
def test_failed_answer_check_raises_the_tier_up_to_the_retry_limit(served: Served, stream: bool) -> None:
    headers = tagged("closed", f"failing-{stream}", "s", intent="extract")
    fields = {"response_format": {"type": "json_object"}, "stream": stream}
    bad = 'Extract the city. {"fake": {"text": "no JSON at all"}}'
    models = [routed_model(ask(served, "auto", headers, bad, **fields)) for _ in range(4)]
    assert models == ["small", "medium", "large", "large"]
    good = 'Extract the city. {"fake": {"text": "{}"}}'
    ask(served, "auto", headers, good, **fields)
    assert routed_model(ask(served, "auto", headers, bad, **fields)) == "large"  # a conversation keeps its model


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_answers_of_messages_and_responses_are_checked(served: Served, path: str, stream: bool) -> None:
    run = f"failing-{path[4:]}-{stream}"
    asked = [{"role": "user", "content": "Check whether the claim holds."}]
    prompt, cap = ("messages", "max_tokens") if path == "/v1/messages" else ("input", "max_output_tokens")
    form = {prompt: asked, cap: 64}
    models = []
    for text in ("well", "hm", "yes", "yes"):
        served.provider.script(text=text, times=1)
        headers = tagged("closed", run, "s", intent="validate")
        reply = served.gateway.request("POST", path, {"model": "auto", "stream": stream, **form}, headers)
        assert reply.status == 200, reply.body
        models.append(routed_model(reply))
    assert models == ["small", "medium", "large", "large"]
    calls = served.gateway.get(f"/api/runs/{run}/calls").json()["calls"]
    assert sum("answer_failed" in decision for call in calls for decision in call["decisions"]) == 2


def test_answer_cut_by_a_sliced_budget_is_not_a_failed_check(served: Served) -> None:
    headers = tagged("sliced", "sliced-1", "s", intent="extract")
    long = 'Extract all cities. {"fake": {"tokens": 600}}'
    first = ask(served, "auto", headers, long, max_tokens=2000)
    assert (first.status, "cut" in first.headers["x-budget-actions"]) == (200, True), first.body
    (call,) = served.gateway.get("/api/runs/sliced-1/calls").json()["calls"]
    assert not any("answer_failed" in decision for decision in call["decisions"])


@pytest.mark.parametrize(("intent", "models"), [("summarize", ["medium", "large"]), ("send", ["small", "small"])])
def test_summary_longer_than_its_source_fails_its_check(served: Served, intent: str, models: list[str]) -> None:
    headers = tagged("closed", f"longer-{intent}", "s", intent=intent)
    report = "Sum this up. " + "The quarter went well in the north and less well in the south. " * 10
    served.provider.script(text="word " * 200, times=2)
    assert [routed_model(ask(served, "auto", headers, report, max_tokens=1000)) for _ in range(2)] == models


def test_retry_limit_of_1_raises_the_tier_once_however_many_answers_fail(served: Served) -> None:
    headers = tagged("closed", "moved-once", "s", intent="extract")
    fields = {"response_format": {"type": "json_object"}}
    bad, none = 'Extract the city. {"fake": {"text": "no JSON"}}', 'Extract the city. {"fake": {"status": 500}}'
    key = "/api/settings/orchestration_max_retry_attempts"
    assert served.gateway.request("PUT", key, {"value": 1}).status == 200
    try:
        models = [routed_model(ask(served, "auto", headers, bad, **fields)) for _ in range(3)]
        assert ask(served, "auto", headers, none, **fields).status == 500
        assert [*models, routed_model(ask(served, "auto", headers, bad, **fields))] == [
            "small",
            "medium",
            "medium",
            "medium",
        ]
    finally:
        served.gateway.request("PUT", key, {"value": 2})


def test_answer_clamped_by_a_budget_is_not_a_failed_check(served: Served) -> None:
    headers = tagged("closed", "short-1", "s", intent="extract", budget_tokens="400")
    long = 'Extract all cities. {"fake": {"tokens": 600}}'
    first = ask(served, "auto", headers, long, max_tokens=2000)
    assert (first.status, first.json()["choices"][0]["finish_reason"]) == (200, "length")
    assert "clamp" in first.headers["x-budget-actions"]
    (call,) = served.gateway.get("/api/runs/short-1/calls").json()["calls"]
    assert not any("answer_failed" in decision for decision in call["decisions"])


def test_conversation_keeps_its_model(served: Served) -> None:
    headers = tagged("closed", "sticky-1", "talk", intent="generate")
    hard = "Prove it step by step, unless it is false, and compare every case if there are several. " * 20
    first = routed_model(ask(served, "auto", headers, hard))
    assert first in ("medium", "large")
    assert routed_model(ask(served, "auto", headers, EASY)) == first
