"""Prices, limits and capabilities from LiteLLM's wheel, and how an entry's are found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.upstream.port import Deployment
from gateway.upstream.price_map import PriceMap, PriceMapDamaged, installed_price_map

SMALL_MAP: dict[str, dict[str, Any]] = {
    "sample_spec": {"litellm_provider": "one of many", "input_cost_per_token": 0.0},
    "gpt-x": {
        "litellm_provider": "openai",
        "input_cost_per_token": 1e-6,
        "max_tokens": 99,
        "max_input_tokens": 1000,
        "max_output_tokens": 50,
        "mode": "chat",
        "supports_vision": True,
        "source": "a link that nobody needs",
    },
    "old": {"litellm_provider": "openai", "max_tokens": "many"},
    "ft:gpt-x": {"litellm_provider": "openai", "input_cost_per_token": 3e-6},
    "azure/gpt-x": {"litellm_provider": "azure", "input_cost_per_token": 2e-6},
    "us.claude": {"litellm_provider": "bedrock_converse", "input_cost_per_token": 4e-6},
    "vertex-claude": {"litellm_provider": "vertex_ai-anthropic_models", "input_cost_per_token": 5e-6},
    "mistral/large": {"litellm_provider": "mistral", "input_cost_per_token": 6e-6},
    "openrouter/mistral/large": {"litellm_provider": "openrouter", "input_cost_per_token": 7e-6},
}


@pytest.fixture
def prices(tmp_path: Path) -> PriceMap:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(SMALL_MAP))
    return PriceMap(path)


def deployment(
    provider: str, model: str, params: dict[str, Any] | None = None, info: dict[str, Any] | None = None
) -> Deployment:
    return Deployment("m/0", "m", provider, model, "auto", params or {}, info or {})


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        (deployment("openai", "gpt-x"), "gpt-x"),
        (deployment("openai", "responses/gpt-x"), "gpt-x"),
        (deployment("openai", "ft:gpt-x:org::42"), "ft:gpt-x"),
        (deployment("text-completion-openai", "gpt-x"), "gpt-x"),
        (deployment("azure", "gpt-x"), "azure/gpt-x"),
        (deployment("azure", "our-name"), None),
        (deployment("azure", "our-name", info={"base_model": "gpt-x"}), "azure/gpt-x"),
        (deployment("azure", "our-name", params={"base_model": "azure/gpt-x"}), "azure/gpt-x"),
        (deployment("bedrock", "us.claude"), "us.claude"),
        (deployment("bedrock", "converse/us.claude"), "us.claude"),
        (deployment("bedrock", "us-east-1/us.claude"), "us.claude"),
        (deployment("vertex_ai", "vertex-claude"), "vertex-claude"),
        (deployment("mistral", "large"), "mistral/large"),
        (deployment("openrouter", "mistral/large"), "openrouter/mistral/large"),
        (deployment("hosted_vllm", "gpt-x"), None),
        (deployment("together_ai", "mistral/large"), None),
        (deployment("one of many", "sample_spec"), None),
        (deployment("openai", "unknown"), None),
    ],
    ids=lambda value: f"{value.provider}/{value.model}" if isinstance(value, Deployment) else str(value),
)
def test_entry_is_found_by_provider_and_model(prices: PriceMap, entry: Deployment, key: str | None) -> None:
    price_entry = prices.entry(entry)
    assert price_entry.key == key
    expected = SMALL_MAP[key].get("input_cost_per_token") if key else None
    assert price_entry.raw.get("input_cost_per_token") == expected


def test_configuration_overrides_the_map_field_by_field(prices: PriceMap) -> None:
    entry = deployment(
        "openai",
        "gpt-x",
        params={"output_cost_per_token": 9e-6, "input_cost_per_token": 8e-6, "api_key": "secret"},
        info={"input_cost_per_token": 7e-6, "max_output_tokens": 12, "mode": None},
    )
    price_entry = prices.entry(entry)
    assert (price_entry.raw["input_cost_per_token"], price_entry.raw["output_cost_per_token"]) == (7e-6, 9e-6)
    assert (price_entry.max_output_tokens, price_entry.max_input_tokens, price_entry.mode) == (12, 1000, "chat")
    assert "api_key" not in price_entry.raw


def test_container_price_of_a_provider_applies_to_its_known_models() -> None:
    prices, field = PriceMap(installed_price_map()), "code_interpreter_cost_per_session"
    assert prices.entry(deployment("openai", "gpt-4o")).raw[field] == 0.03
    assert prices.entry(deployment("azure", "gpt-4o")).raw[field] == 0.033
    assert prices.entry(deployment("openai", "gpt-4o", info={field: 0.05})).raw[field] == 0.05
    assert field not in prices.entry(deployment("openai", "nobody-knows-it")).raw
    assert field not in prices.entry(deployment("anthropic", "claude-sonnet-4-5")).raw


def test_limits_and_capabilities_are_read(prices: PriceMap) -> None:
    price_entry = prices.entry(deployment("openai", "gpt-x"))
    assert (price_entry.max_output_tokens, price_entry.supports("vision"), price_entry.supports("tools")) == (
        50,
        True,
        None,
    )
    assert "source" not in price_entry.raw
    old = prices.entry(deployment("openai", "old", info={"max_tokens": 77}))
    assert old.max_output_tokens == 77
    assert prices.entry(deployment("openai", "old")).max_output_tokens is None


def test_without_a_map_only_the_configuration_applies() -> None:
    price_entry = PriceMap(None).entry(deployment("openai", "gpt-x", info={"input_cost_per_token": 1e-6}))
    assert (price_entry.key, dict(price_entry.raw)) == (None, {"input_cost_per_token": 1e-6})


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_damaged_map_is_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(PriceMapDamaged, match="install LiteLLM again"):
        PriceMap(path).entry(deployment("openai", "gpt-x"))


def test_installed_map_has_prices_of_common_models() -> None:
    prices = PriceMap(installed_price_map())
    for provider, model in (
        ("openai", "gpt-4o-mini"),
        ("anthropic", "claude-sonnet-4-5"),
        ("gemini", "gemini-2.5-pro"),
        ("bedrock", "us.anthropic.claude-sonnet-4-6"),
        ("mistral", "mistral-large-latest"),
        ("deepseek", "deepseek-chat"),
    ):
        price_entry = prices.entry(deployment(provider, model))
        assert price_entry.raw["input_cost_per_token"] > 0, model
        assert price_entry.mode == "chat"
        assert price_entry.max_output_tokens
        assert price_entry.supports("function_calling")


def test_reading_the_map_does_not_import_litellm() -> None:
    code = (
        "import sys; from gateway.upstream.price_map import *;"
        "assert PriceMap(installed_price_map()).raw('gpt-4o-mini'); sys.exit('litellm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
