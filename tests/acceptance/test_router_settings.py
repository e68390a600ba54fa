"""LiteLLM's router settings on the running gateway: deployments that share a name, cool down, time out, and have fallbacks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.acceptance.serving import Served, model, serving, words
from tests.fake_provider import FakeProvider
from tests.fake_provider.received import Received
from tests.farebox_process import tagged

pytestmark = pytest.mark.xdist_group("acceptance-deployments")


def entry(provider: FakeProvider, name: str, upstream: str, price: float = 1e-7, **params: Any) -> dict[str, Any]:
    model_entry = model(provider.openai_url, name, f"openai/{upstream}", priced=False)
    model_entry["litellm_params"] |= params
    model_entry["model_info"] |= {"input_cost_per_token": price, "output_cost_per_token": price}
    return model_entry


def models(provider: FakeProvider) -> list[dict[str, Any]]:
    return [
        entry(provider, "pair", "pair-a"),
        entry(provider, "pair", "pair-b"),
        entry(provider, "busy", "busy-a"),
        entry(provider, "busy", "busy-b"),
        entry(provider, "weighted", "weighted-never", weight=0),
        entry(provider, "weighted", "weighted-always", weight=7),
        entry(provider, "slow", "slow", timeout=0.4),
        entry(provider, "cheap", "cheap"),
        entry(provider, "expensive", "expensive", price=1e-2),
        entry(provider, "spare", "spare"),
        entry(provider, "exact", "gpt-4o-mini"),
        entry(provider, "wordy", "claude-sonnet-4-5"),
        entry(provider, "shaped", "shaped", temperature=0.1, max_tokens=30, n=2),
        entry(provider, "sharp", "sharp", top_p=0.5),
        entry(provider, "single", "single"),
        entry(provider, "triple", "triple", n=3),
    ]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    router = {
        "num_retries": 1,
        "allowed_fails": 1,
        "cooldown_time": 600,
        "routing_strategy": "least-busy",
        "fallbacks": [
            {"slow": ["spare"]},
            {"cheap": ["expensive", "spare"]},
            {"exact": ["wordy"]},
            {"shaped": ["sharp"]},
            {"single": ["triple"]},
        ],
    }
    with serving(
        tmp_path_factory.mktemp("deployments"),
        models=models,
        budgets=[{"scope": "run", "match": "paid", "usd": 0.1}, {"scope": "run", "match": "counted", "tokens": 1000}],
        router_settings=router,
    ) as running:
        yield running


def models_asked(served: Served) -> list[str]:
    return [str(request.body["model"]) for request in served.provider.requests]


def is_for(name: str) -> Any:
    def holds(request: Received) -> bool:
        return bool(request.body.get("model") == name)

    return holds


def test_failing_deployment_is_retried_elsewhere_and_cools_down(served: Served) -> None:
    served.provider.script(status=500, times=None, when=is_for("pair-a"))
    assert [served.chat(model="pair").status for _ in range(8)] == [200] * 8
    assert models_asked(served).count("pair-a") <= 2, "it may fail once; after the second failure it cools down"
    assert models_asked(served).count("pair-b") == 8


def test_least_busy_strategy_chooses_the_idle_deployment(served: Served) -> None:
    served.provider.script(delay_ms=700, times=2)
    with ThreadPoolExecutor(2) as pool:
        assert [reply.status for reply in pool.map(lambda _: served.chat(model="busy"), range(2))] == [200, 200]
    assert sorted(models_asked(served)) == ["busy-a", "busy-b"]


def test_deployment_of_weight_0_gets_no_calls(served: Served) -> None:
    for _ in range(6):
        assert served.chat(model="weighted").status == 200
    assert set(models_asked(served)) == {"weighted-always"}


def test_model_that_times_out_is_replaced_by_its_fallback(served: Served) -> None:
    served.provider.script(delay_ms=5000, times=None, when=is_for("slow"))
    reply = served.chat(tagged("paid", "r-slow"), model="slow")
    assert reply.status == 200, reply.body
    assert models_asked(served) == ["slow", "slow", "spare"]
    assert reply.headers["x-budget-actions"] == "fallback=spare"


def test_fallback_whose_price_does_not_fit_is_skipped(served: Served) -> None:
    served.provider.script(status=503, times=None, when=is_for("cheap"))
    reply = served.chat(tagged("paid", "r-expensive"), model="cheap", max_tokens=50)
    assert reply.status == 200, reply.body
    assert "expensive" not in models_asked(served)
    assert models_asked(served)[-1] == "spare"
    unlimited = served.chat(tagged("unpaid", "r-expensive-2"), model="cheap", max_tokens=50)
    assert unlimited.headers["x-budget-actions"] == "fallback=expensive"


@pytest.mark.parametrize(("output_tokens", "is_asked"), [(200, False), (50, True)])
def test_fallback_that_counts_more_tokens_is_used_only_if_they_fit(
    served: Served, output_tokens: int, is_asked: bool
) -> None:
    """615 tokens of a prompt of 600 words are reserved for the one model, and 860 for the other."""
    served.provider.script(status=503, times=None, when=is_for("gpt-4o-mini"))
    reply = served.chat(
        tagged("counted", f"r-counted-{output_tokens}"), words(600), model="exact", max_tokens=output_tokens
    )
    assert reply.status == (200 if is_asked else 503), reply.body
    assert ("claude-sonnet-4-5" in models_asked(served)) is is_asked


def test_each_deployment_gets_only_the_fields_of_its_own_entry(served: Served) -> None:
    served.provider.script(status=503, times=None, when=is_for("shaped"))
    reply = served.chat(model="shaped", seed=7)
    assert reply.status == 200, reply.body
    sent = {str(request.body["model"]): request.body for request in served.provider.requests}
    ours = {"temperature", "max_tokens", "n", "top_p", "seed"}
    assert {name: sent["shaped"][name] for name in ours & sent["shaped"].keys()} == {
        "temperature": 0.1,
        "max_tokens": 30,
        "n": 2,
        "seed": 7,
    }
    assert {name: sent["sharp"][name] for name in ours & sent["sharp"].keys()} == {"top_p": 0.5, "seed": 7}


@pytest.mark.parametrize(("output_tokens", "is_asked"), [(400, False), (300, True)])
def test_fallback_with_a_configured_n_is_used_only_if_all_choices_fit(
    served: Served, output_tokens: int, is_asked: bool
) -> None:
    """17 tokens of the prompt and one answer are held for the one, three answers for the other, of 1,000 tokens."""
    served.provider.script(status=503, times=None, when=is_for("single"))
    reply = served.chat(tagged("counted", f"r-three-{output_tokens}"), model="single", max_tokens=output_tokens)
    assert reply.status == (200 if is_asked else 503), reply.body
    assert ("triple" in models_asked(served)) is is_asked
