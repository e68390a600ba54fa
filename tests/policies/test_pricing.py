"""Prices from LiteLLM's map, exact costs, and the bound that is reserved before a call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.pricing import (
    HostedTools,
    Price,
    PriceError,
    Usage,
    WorstCase,
    cost_nano_usd,
    price_from_map,
    worst_case,
    worst_media_nano_usd,
)


def priced(**entry: Any) -> Price:
    price = price_from_map(entry)
    assert price is not None
    return price


# As in the price map of LiteLLM 1.106.2.
GPT_4O_MINI = {
    "mode": "chat",
    "input_cost_per_token": 1.5e-07,
    "output_cost_per_token": 6e-07,
    "cache_read_input_token_cost": 7.5e-08,
    "input_cost_per_token_priority": 2.5e-07,
    "output_cost_per_token_priority": 1e-06,
    "cache_read_input_token_cost_priority": 1.25e-07,
}
HAIKU = {
    "mode": "chat",
    "input_cost_per_token": 1e-07,
    "output_cost_per_token": 5e-07,
    "cache_read_input_token_cost": 1e-08,
    "cache_creation_input_token_cost": 1.25e-07,
    "cache_creation_input_token_cost_above_1hr": 2e-07,
    "input_cost_per_token_above_100k_tokens": 5e-07,
    "output_cost_per_token_above_100k_tokens": 2.5e-06,
    "cache_read_input_token_cost_above_100k_tokens": 5e-08,
    "cache_creation_input_token_cost_above_100k_tokens": 6.25e-07,
    "cache_creation_input_token_cost_above_1hr_above_100k_tokens": 1e-06,
}
GPT_5_4 = {
    "mode": "chat",
    "input_cost_per_token": 2.5e-06,
    "output_cost_per_token": 1.5e-05,
    "cache_read_input_token_cost": 2.5e-07,
    "input_cost_per_token_priority": 5e-06,
    "output_cost_per_token_priority": 3e-05,
    "cache_read_input_token_cost_priority": 5e-07,
    "input_cost_per_token_above_272k_tokens": 5e-06,
    "output_cost_per_token_above_272k_tokens": 2.25e-05,
    "cache_read_input_token_cost_above_272k_tokens": 5e-07,
    "input_cost_per_token_flex": 1.25e-06,
    "output_cost_per_token_flex": 7.5e-06,
}
GPT_6 = {
    "mode": "chat",
    "input_cost_per_token": 1e-05,
    "output_cost_per_token": 5e-05,
    "input_cost_per_token_priority": 2e-05,
    "output_cost_per_token_priority": 1e-04,
    "input_cost_per_token_ultrafast": 6e-05,
    "output_cost_per_token_ultrafast": 3e-04,
    "input_cost_per_token_above_272k_tokens_ultrafast": 1.2e-04,
    "output_cost_per_token_above_272k_tokens_ultrafast": 4.5e-04,
}
GEMINI = {
    "mode": "chat",
    "input_cost_per_token": 3e-07,
    "output_cost_per_token": 2.5e-06,
    "output_cost_per_reasoning_token": 2.5e-06,
    "cache_read_input_token_cost": 3e-08,
    "input_cost_per_audio_token": 1e-06,
}
QWEN = {
    "mode": "chat",
    "tiered_pricing": [
        {"input_cost_per_token": 5e-07, "output_cost_per_token": 2.5e-06, "range": [32000.0, 128000.0]},
        {
            "input_cost_per_token": 3e-07,
            "output_cost_per_token": 1.5e-06,
            "cache_read_input_token_cost": 8e-08,
            "range": [0, 32000.0],
        },
    ],
}
GROK = {
    "mode": "chat",
    "litellm_provider": "xai",
    "input_cost_per_token": 1e-06,
    "output_cost_per_token": 2e-06,
    "input_cost_per_token_above_200k_tokens": 2e-06,
    "output_cost_per_token_above_200k_tokens": 4e-06,
}
WRITE_1H = Usage(100, cache_write_tokens=100, cache_write_1h_tokens=40)


@pytest.mark.parametrize(
    ("entry", "usage", "service_tier", "cost"),
    [
        (GPT_4O_MINI, Usage(1000, 100), None, 1000 * 150 + 100 * 600),
        (GPT_4O_MINI, Usage(1, 0), None, 150),
        (GPT_4O_MINI, Usage(1000, 100, cache_read_tokens=600), None, 400 * 150 + 600 * 75 + 100 * 600),
        (GPT_4O_MINI, Usage(1000, 100), "priority", 1000 * 250 + 100 * 1000),
        (GPT_4O_MINI, Usage(1000, 100, cache_read_tokens=1000), "priority", 1000 * 125 + 100 * 1000),
        (GPT_4O_MINI, Usage(1000, 100), "default", 1000 * 150 + 100 * 600),
        (GPT_4O_MINI, Usage(1000, 100), "never heard of", 1000 * 150 + 100 * 600),
        (GPT_4O_MINI, Usage(1000, 100), ["a", "list"], 1000 * 150 + 100 * 600),
        (HAIKU, Usage(1000, 10, cache_write_tokens=1000), None, 1000 * 125 + 10 * 500),
        (HAIKU, WRITE_1H, None, 60 * 125 + 40 * 200),
        (HAIKU, Usage(100_000, 1), None, 100_000 * 100 + 500),
        (HAIKU, Usage(100_001, 1), None, 100_001 * 500 + 2500),
        (HAIKU, Usage(100_001, 0, cache_read_tokens=100_000), None, 500 + 100_000 * 50),
        (GPT_5_4, Usage(10, 10), "flex", 10 * 1250 + 10 * 7500),
        (GPT_6, Usage(10, 10), "ultrafast", 10 * 60_000 + 10 * 300_000),
        (GPT_6, Usage(300_000, 10), "ultrafast", 300_000 * 120_000 + 10 * 450_000),
        (GPT_6, Usage(10, 10), "fast", 10 * 20_000 + 10 * 100_000),  # billed as priority
        (GPT_6, Usage(10, 10), "Priority", 10 * 20_000 + 10 * 100_000),
        (GPT_6, Usage(10, 10), "flex", 10 * 10_000 + 10 * 50_000),  # has no price of its own
        # No published price for long prompts at this tier: the dearer of the two that are.
        (GPT_5_4, Usage(300_000, 10), "priority", 300_000 * 5000 + 10 * 30_000),
        (GPT_5_4, Usage(300_000, 10), None, 300_000 * 5000 + 10 * 22_500),
        (GEMINI, Usage(10, 100, reasoning_tokens=80), None, 10 * 300 + 100 * 2500),
        (GEMINI, Usage(10, 0, audio_input_tokens=10), None, 10 * 1000),
        (QWEN, Usage(32_000, 1), None, 32_000 * 300 + 1500),
        (QWEN, Usage(32_001, 1), None, 32_001 * 500 + 2500),
        (QWEN, Usage(500_000, 1), None, 500_000 * 500 + 2500),
        (GROK, Usage(199_999, 1), None, 199_999 * 1000 + 2000),
        (GROK, Usage(200_000, 1), None, 200_000 * 2000 + 4000),
        (GPT_4O_MINI, Usage(), None, 0),
    ],
)
def test_cost_by_entry_usage_and_service_tier(
    entry: Mapping[str, Any], usage: Usage, service_tier: object, cost: int
) -> None:
    assert cost_nano_usd(priced(**entry), usage, service_tier) == cost


def test_fraction_of_a_nano_usd_is_rounded_up_once() -> None:
    price = priced(mode="embedding", input_cost_per_token="1.00001e-8")
    assert [cost_nano_usd(price, Usage(tokens)) for tokens in (0, 1, 2, 99_999, 100_000)] == [
        0,
        11,
        21,
        10**6,
        1_000_010,
    ]


def test_sum_of_10000_tiny_costs_is_exact() -> None:
    price = priced(input_cost_per_token=1e-07, output_cost_per_token=1e-07)
    assert sum(cost_nano_usd(price, Usage(1)) for _ in range(10_000)) == cost_nano_usd(price, Usage(10_000)) == 10**6


def test_images_seconds_characters_and_queries_are_priced() -> None:
    image = priced(mode="image_generation", output_cost_per_image=0.06)
    speech = priced(mode="audio_transcription", input_cost_per_second=3.333e-05)
    voice = priced(mode="audio_speech", input_cost_per_character=1.5e-05)
    rerank = priced(mode="rerank", input_cost_per_query=0.001)
    assert cost_nano_usd(image, Usage(images=3)) == 180_000_000
    assert cost_nano_usd(speech, Usage(audio_ms=1500)) == 49_995
    assert cost_nano_usd(voice, Usage(characters=1000)) == 15_000_000
    assert cost_nano_usd(rerank, Usage(queries=2)) == 2_000_000


GPT_IMAGE = {"mode": "image_generation", "input_cost_per_token": 5e-06, "output_cost_per_image_token": 4e-05}
MAI_IMAGE = {**GPT_IMAGE, "output_cost_per_token": 1e-06, "output_cost_per_image": 0.05}


@pytest.mark.parametrize(
    ("entry", "usage", "cost"),
    [
        (GPT_IMAGE, Usage(10, 1000, images=1), 10 * 5000 + 1000 * 40_000),
        (MAI_IMAGE, Usage(10, 1000, images=1), 10 * 5000 + 1000 * 40_000),
        (MAI_IMAGE, Usage(images=2), 100_000_000),
        ({"mode": "image_generation", "output_cost_per_image": 0.05}, Usage(10, 1000, images=1), 50_000_000),
    ],
)
def test_generated_image_is_billed_by_its_tokens_or_per_image(entry: dict[str, Any], usage: Usage, cost: int) -> None:
    assert cost_nano_usd(priced(**entry), usage) == cost


@pytest.mark.parametrize(
    ("entry", "tokens", "units", "used"),
    [
        (GPT_IMAGE, 2000, Usage(images=2), Usage(0, 2000, images=2)),
        (MAI_IMAGE, 100, Usage(images=2), Usage(images=2)),
        (
            {"mode": "audio_transcription", "input_cost_per_token": 1e-06, "input_cost_per_audio_token": 3e-06},
            200,
            Usage(audio_ms=10_000),
            Usage(200, audio_input_tokens=200),
        ),
        (
            {"mode": "audio_transcription", "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-05},
            200,
            Usage(audio_ms=10_000),
            Usage(100, 100),
        ),
        (
            {"mode": "audio_transcription", "input_cost_per_token": 1e-06, "input_cost_per_second": 1e-04},
            200,
            Usage(audio_ms=10_000),
            Usage(audio_ms=10_000),
        ),
        ({"mode": "rerank", "input_cost_per_query": 0.002}, 50, Usage(queries=3), Usage(queries=3)),
    ],
)
def test_worst_media_cost_bounds_billing_by_tokens_and_by_units(
    entry: dict[str, Any], tokens: int, units: Usage, used: Usage
) -> None:
    price = priced(**entry)
    assert 0 < cost_nano_usd(price, used) <= worst_media_nano_usd(price, tokens, units)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"mode": "chat", "max_tokens": 4096},
        {"input_cost_per_token": None, "output_cost_per_token": None},
        # With half a price the other half would be free, and seconds are not known before a call.
        {"mode": "chat", "input_cost_per_token": 1e-06},
        {"input_cost_per_token": 1e-06},
        {"mode": "chat", "output_cost_per_token": 1e-06},
        {"mode": "chat", "input_cost_per_second": 0.001, "output_cost_per_second": 0.001},
        {"mode": "chat", "tiered_pricing": [{"input_cost_per_token": 1e-06, "range": [0, 1000]}]},
    ],
)
def test_entry_without_complete_token_prices_has_no_price(entry: dict[str, Any]) -> None:
    assert price_from_map(entry) is None


def test_explicit_zero_is_a_price() -> None:
    free = priced(input_cost_per_token=0, output_cost_per_token="0.0")
    assert cost_nano_usd(free, Usage(10**6, 10**6)) == 0
    assert worst_case(free, 10**6, 10**6) == WorstCase(0, 0)


@pytest.mark.parametrize("written", [2.5e-06, "2.5e-06", "0.0000025", "2.5E-6"])
def test_price_is_read_exactly_from_its_decimal_text(written: object) -> None:
    assert priced(input_cost_per_token=written, output_cost_per_token=0).rates.input == 2_500_000_000


@pytest.mark.parametrize(
    "value", [-1e-06, "-0.1", float("nan"), float("inf"), "NaN", "cheap", True, [], {}, 2, "1e400", "1e999999999"]
)
@pytest.mark.parametrize("key", ["input_cost_per_token", "output_cost_per_token_priority"])
def test_invalid_price_is_refused_with_its_key(key: str, value: object) -> None:
    with pytest.raises(PriceError, match=key):
        price_from_map({"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6, key: value})


OPUS = {
    "mode": "chat",
    "input_cost_per_token": 5e-06,
    "output_cost_per_token": 2.5e-05,
    "cache_read_input_token_cost": 5e-07,
    "provider_specific_entry": {"us": 1.1, "fast": 2.0, "schema": "x"},
    "search_context_cost_per_query": {"search_context_size_low": 0.005, "search_context_size_high": 0.01},
}


def test_hosted_tools_are_priced_per_use_of_each() -> None:
    price = priced(
        input_cost_per_token=0,
        output_cost_per_token=0,
        google_maps_grounding_cost_per_query=0.025,
        file_search_cost_per_1k_calls=2.5,
        code_interpreter_cost_per_session=0.03,
    )
    assert price.hosted == HostedTools(0, 25_000_000, 2_500_000, 30_000_000)
    assert cost_nano_usd(price, Usage(1, 1, hosted=HostedTools(9, 2, 3, 1))) == 50_000_000 + 7_500_000 + 30_000_000
    assert HostedTools(1, 5).unitwise_max(HostedTools(2, 0, 3)) == HostedTools(2, 5, 3)


def test_fast_mode_and_region_multiply_only_the_cost_of_tokens() -> None:
    price, usage = priced(**OPUS), Usage(100, 100, cache_read_tokens=50, hosted=HostedTools(3))
    tokens = 50 * 5000 + 50 * 500 + 100 * 25_000
    searches = 3 * 10_000_000
    assert cost_nano_usd(price, usage) == tokens + searches, "a search at its highest price"
    assert cost_nano_usd(price.with_factors("fast", None), usage) == 2 * tokens + searches
    assert cost_nano_usd(price.with_factors("fast", "US"), usage) == 2 * tokens * 11 // 10 + searches
    assert price.with_factors("standard", "global") is price
    assert price.with_factors(["fast"], "schema") is price
    assert worst_case(price.with_factors("fast"), 1000, 10) == WorstCase(2 * 1000 * 5000, 50_000)


# --- the bound ---


@pytest.mark.parametrize(
    ("entry", "prompt_tokens", "service_tier", "audio", "expected"),
    [
        (GPT_4O_MINI, 1000, None, False, WorstCase(150_000, 600)),
        (GPT_4O_MINI, 1000, "priority", False, WorstCase(250_000, 1000)),
        (HAIKU, 1000, None, False, WorstCase(200_000, 500)),
        (HAIKU, 100_001, None, False, WorstCase(100_001 * 1000, 2500)),
        (GEMINI, 1000, None, False, WorstCase(300_000, 2500)),
        (GEMINI, 1000, None, True, WorstCase(1_000_000, 2500)),
    ],
)
def test_worst_case_takes_the_dearest_rates_that_may_apply(
    entry: Mapping[str, Any], prompt_tokens: int, service_tier: str | None, audio: bool, expected: WorstCase
) -> None:
    assert worst_case(priced(**entry), prompt_tokens, 100, service_tier, audio=audio) == expected


def test_worst_case_without_output_tokens_has_no_output_cost() -> None:
    assert worst_case(priced(**GPT_4O_MINI), 1000, 0) == WorstCase(150_000, 0)


rates = st.decimals(0, Decimal("0.001"), places=12).map(str)
NAMES = (
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
    "cache_creation_input_token_cost_above_1hr",
    "output_cost_per_reasoning_token",
    "input_cost_per_audio_token",
    "output_cost_per_audio_token",
    "input_cost_per_token_above_1k_tokens",
    "output_cost_per_token_above_1k_tokens",
    "cache_read_input_token_cost_above_2k_tokens",
    "input_cost_per_token_above_2k_tokens",
    "input_cost_per_token_priority",
    "output_cost_per_token_priority",
    "output_cost_per_token_above_2k_tokens_priority",
    "cache_creation_input_token_cost_flex",
    "input_cost_per_token_flex",
)
entries = st.fixed_dictionaries(
    {"input_cost_per_token": rates, "output_cost_per_token": rates}, optional=dict.fromkeys(NAMES, rates)
)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    parts = [draw(st.integers(0, 1500)) for _ in range(4)]
    answer = [draw(st.integers(0, 1500)) for _ in range(3)]
    return Usage(
        input_tokens=sum(parts),
        output_tokens=sum(answer),
        cache_read_tokens=parts[0],
        cache_write_tokens=parts[1],
        cache_write_1h_tokens=draw(st.integers(0, parts[1])),
        audio_input_tokens=parts[2],
        reasoning_tokens=answer[0],
        audio_output_tokens=answer[1],
    )


@settings(deadline=None, max_examples=300)  # the machine may be busy
@given(entries, usages(), st.integers(0, 3000), st.integers(0, 3000), st.sampled_from([None, "priority", "flex"]))
def test_worst_case_bounds_the_cost_of_any_usage(
    entry: dict[str, str], usage: Usage, prompt_spare: int, output_spare: int, service_tier: str | None
) -> None:
    price = priced(**entry)
    bound = worst_case(
        price, usage.input_tokens + prompt_spare, usage.output_tokens + output_spare, service_tier, audio=True
    )
    cost = cost_nano_usd(price, usage, service_tier)
    assert 0 <= cost <= bound.prompt_nano_usd + bound.output_nano_usd_per_token * usage.output_tokens


# --- the price map of the installed LiteLLM ---


def _map() -> dict[str, dict[str, Any]]:
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        pytest.skip("litellm is not installed, so its price map is not there")
    path = Path(spec.origin).parent / "model_prices_and_context_window_backup.json"
    entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    del entries["sample_spec"]
    return entries


def test_every_entry_of_litellms_price_map_can_be_read() -> None:
    entries = _map()
    text = {name: entry for name, entry in entries.items() if entry.get("mode") in ("chat", "responses", "completion")}
    prices = {name: price_from_map(entry) for name, entry in entries.items()}
    unpriced = [name for name in text if prices[name] is None]
    assert len(text) > 2500
    assert len(unpriced) < len(text) * 0.05
    for name, price in prices.items():
        if price is not None and name in text and name not in unpriced:
            assert worst_case(price, 300_000, 1000).prompt_nano_usd >= cost_nano_usd(price, Usage(300_000)), name


@pytest.mark.parametrize(
    ("model", "usage", "cost"),
    [
        ("gpt-4o-mini", Usage(1_000_000, 0), 150_000_000),
        ("gpt-5.4", Usage(1000, 1000, reasoning_tokens=500), 2_500_000 + 15_000_000),
        ("claude-sonnet-4-5-20250929", Usage(1000, 1000, cache_read_tokens=1000), 300_000 + 15_000_000),
        ("dashscope/qwen3-coder-flash", Usage(32_001, 0), 32_001 * 500),
    ],
)
def test_cost_of_models_in_litellms_price_map(model: str, usage: Usage, cost: int) -> None:
    price = price_from_map(_map()[model])
    assert price is not None
    assert cost_nano_usd(price, usage) == cost
