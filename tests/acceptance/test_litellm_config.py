"""A gateway that runs on a LiteLLM user's configuration: wildcards, aliases, fallbacks, translation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.serving import Served, serving
from tests.fake_provider import FakeProvider
from tests.farebox_process import tagged

pytestmark = pytest.mark.xdist_group("acceptance-litellm-config")


def models(provider: FakeProvider) -> list[dict[str, Any]]:
    openai = {"api_base": provider.openai_url, "api_key": "os.environ/UPSTREAM_KEY"}
    return [
        {"model_name": "openai/*", "litellm_params": {"model": "openai/*", **openai}},
        {"model_name": "small", "litellm_params": {"model": "openai/gpt-4o-mini", **openai}},
        {
            "model_name": "claude",
            "litellm_params": {
                "model": "anthropic/claude-sonnet-4-5",
                "api_base": provider.anthropic_url,
                "api_key": "upstream-key",
            },
        },
    ]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("litellm"),
        models=models,
        budgets=[{"scope": "run", "match": "paid", "usd": 0.5}],
        environment_variables={"UPSTREAM_KEY": "of-the-file"},
        litellm_settings={"drop_params": True, "callbacks": ["prometheus"], "default_fallbacks": ["small"]},
        router_settings={
            "num_retries": 0,
            "model_group_alias": {"gpt-4": "small", "unseen": {"model": "small", "hidden": True}},
            "redis_host": "nowhere",
        },
        general_settings={"master_key": "sk-1234"},
    ) as running:
        yield running


def test_ignored_litellm_settings_are_logged_at_start(served: Served) -> None:
    assert "general_settings: ignored (master_key)" in served.gateway.log
    assert "router_settings: ignored redis_host" in served.gateway.log


def test_wildcard_entry_serves_and_prices_every_model_of_its_provider(served: Served) -> None:
    reply = served.chat(tagged("paid", "r-star"), model="openai/gpt-4o-mini")
    assert reply.status == 200, reply.body
    assert served.last.body["model"] == "gpt-4o-mini"
    assert served.last.credential == "of-the-file"
    assert 0.49 < float(reply.headers["x-budget-run-remaining-usd"]) < 0.5
    assert served.gateway.get("/v1/models/openai/gpt-4o-mini").json()["id"] == "openai/gpt-4o-mini"
    assert {item["id"] for item in served.gateway.get("/v1/models").json()["data"]} == {"small", "claude", "gpt-4"}


def test_unpriced_model_of_a_wildcard_is_refused_under_a_usd_budget_only(served: Served) -> None:
    reply = served.chat(tagged("paid", "r-unpriced"), model="openai/brand-new")
    assert (reply.status, reply.json()["error"]["code"]) == (400, "unpriced_model")
    assert served.chat(model="openai/brand-new").status == 200
    assert served.chat(model="mistral/brand-new").json()["error"]["code"] == "model_not_found"


def test_model_group_alias_forwards_to_its_model(served: Served) -> None:
    for alias in ("gpt-4", "unseen"):
        assert served.chat(model=alias).status == 200
        assert served.last.body["model"] == "gpt-4o-mini"


def test_default_fallback_answers_when_a_model_fails(served: Served) -> None:
    served.provider.script(status=503)
    reply = served.chat(tagged("paid", "r-fallback"), model="openai/gpt-4o")
    assert reply.status == 200, reply.body
    assert "fallback=small" in reply.headers["x-budget-actions"]
    assert [request.body["model"] for request in served.provider.requests] == ["gpt-4o", "gpt-4o-mini"]


def test_drop_params_removes_fields_the_provider_does_not_support(served: Served) -> None:
    reply = served.chat(model="claude", logprobs=True, top_logprobs=2, seed=3)
    assert reply.status == 200, reply.body
    assert "logprobs" not in served.last.body
    thinking = {"type": "enabled", "budget_tokens": 1024}
    question = [{"role": "user", "content": "hi"}]
    body = {"model": "small", "max_tokens": 2000, "thinking": thinking, "messages": question}
    assert served.gateway.request("POST", "/v1/messages", body).status == 200, (
        "as Claude Code asks a model that cannot think"
    )
