"""Prices of a call: reserved on the terms of the request, booked on the terms of the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.pipeline.cost_bounds import booked_cost, plausible_usage, worst_case_cost
from gateway.wire.protocol import Request
from policies.pricing import Usage, price_from_map
from policies.tokens import PromptCount
from tests.gateway.wire_streams import Words, protocol_of

SEARCH = {"search_context_cost_per_query": {"search_context_size_medium": 0.01}}
OPUS = {
    "input_cost_per_token": 5e-06,
    "output_cost_per_token": 2.5e-05,
    "provider_specific_entry": {"us": 1.1, "fast": 2.0},
    **SEARCH,
}
GPT = {
    "input_cost_per_token": 2.5e-06,
    "output_cost_per_token": 1.5e-05,
    "input_cost_per_token_priority": 5e-06,
    "output_cost_per_token_priority": 3e-05,
    "input_cost_per_token_flex": 1.25e-06,
    "output_cost_per_token_flex": 7.5e-06,
    **SEARCH,
}
SAID = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
BODIES: dict[str, dict[str, Any]] = {
    "messages": SAID,
    "chat/completions": SAID,
    "responses": {"model": "m", "input": "hi", "max_output_tokens": 100},
}
OPUS_USD, GPT_USD, SEARCH_USD = 3_000_000, 1_750_000, 10_000_000


def request_of(endpoint: str, **fields: Any) -> Request:
    return protocol_of(endpoint).parse(json.dumps(BODIES[endpoint] | fields).encode())


def held(request: Request, prices: dict[str, Any]) -> int:
    worst = worst_case_cost(request, price_from_map(prices), PromptCount(100, 100, exact=True), 100)
    return worst.prompt_nano_usd + 100 * worst.output_nano_usd_per_token


def booked(endpoint: str, request: Request, prices: dict[str, Any], answer: dict[str, Any], **usage: Any) -> int:
    names = ("prompt_tokens", "completion_tokens") if endpoint.startswith("chat") else ("input_tokens", "output_tokens")
    reported = protocol_of(endpoint).usage({"usage": {names[0]: 100, names[1]: 100, **usage}, **answer})
    assert reported is not None
    return booked_cost(request, price_from_map(prices), reported)


def web_search_tools(tool: str, **fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": tool, "name": "web_search", **fields}, {"type": "function"}, "odd"]}


@pytest.mark.parametrize(
    ("requested", "answered", "hold", "cost"),
    [
        ({}, {}, OPUS_USD, OPUS_USD),
        ({"speed": "fast"}, {}, 2 * OPUS_USD, 2 * OPUS_USD),
        ({"speed": "fast"}, {"speed": "fast"}, 2 * OPUS_USD, 2 * OPUS_USD),
        ({"speed": "fast"}, {"speed": "standard"}, 2 * OPUS_USD, OPUS_USD),
        ({}, {"speed": "fast", "inference_geo": "us"}, OPUS_USD, OPUS_USD * 22 // 10),
        ({"inference_geo": "us"}, {}, OPUS_USD * 11 // 10, OPUS_USD * 11 // 10),
        ({"inference_geo": "us"}, {"inference_geo": "global"}, OPUS_USD * 11 // 10, OPUS_USD),
        (web_search_tools("web_search_20250305", max_uses=10), {}, OPUS_USD + 10 * SEARCH_USD, OPUS_USD),
        (
            web_search_tools("web_search_20250305"),
            {"server_tool_use": {"web_search_requests": 10}},
            OPUS_USD + SEARCH_USD,
            OPUS_USD + 10 * SEARCH_USD,
        ),
        ({}, {"server_tool_use": {"web_search_requests": -1}}, OPUS_USD, OPUS_USD),
        ({}, {"server_tool_use": {"web_search_requests": 10**9}}, OPUS_USD, OPUS_USD),
    ],
)
def test_messages_are_priced_by_speed_region_and_web_searches(
    requested: dict[str, Any], answered: dict[str, Any], hold: int, cost: int
) -> None:
    request = request_of("messages", **requested)
    assert (held(request, OPUS), booked("messages", request, OPUS, {}, **answered)) == (hold, cost)


@pytest.mark.parametrize("endpoint", ["chat/completions", "responses"])
@pytest.mark.parametrize(
    ("requested", "answered", "hold", "cost"),
    [
        (None, None, GPT_USD, GPT_USD),
        (None, "priority", GPT_USD, 2 * GPT_USD),
        ("auto", "priority", GPT_USD, 2 * GPT_USD),
        ("auto", "auto", GPT_USD, GPT_USD),
        ("priority", None, 2 * GPT_USD, 2 * GPT_USD),
        ("priority", "default", 2 * GPT_USD, GPT_USD),
        ("flex", "default", GPT_USD // 2, GPT_USD),
    ],
)
def test_answered_service_tier_is_booked(
    endpoint: str, requested: str | None, answered: str | None, hold: int, cost: int
) -> None:
    request = request_of(endpoint, service_tier=requested)
    assert (held(request, GPT), booked(endpoint, request, GPT, {"service_tier": answered})) == (hold, cost)


def test_responses_web_searches_are_counted_in_the_answer() -> None:
    request = request_of("responses", max_tool_calls=4, **web_search_tools("web_search_preview"))
    output = [{"type": "web_search_call"}, {"type": "message"}, {"type": "web_search_call"}, None]
    counted = {"output": output, "tool_usage": {"web_search": {"num_requests": 1}}}
    assert held(request, GPT) == GPT_USD + 4 * SEARCH_USD
    assert booked("responses", request, GPT, {"output": output}) == GPT_USD + 2 * SEARCH_USD
    assert booked("responses", request, GPT, counted) == GPT_USD + SEARCH_USD


def test_chat_with_web_search_is_billed_one_search_unless_reported() -> None:
    request = request_of("chat/completions", web_search_options={})
    assert held(request, GPT) == booked("chat/completions", request, GPT, {}) == GPT_USD + SEARCH_USD
    usage = {"prompt_tokens_details": {"web_search_requests": 3}}
    assert booked("chat/completions", request, GPT, {}, **usage) == GPT_USD + 3 * SEARCH_USD


HOSTED = {
    **GPT,
    "file_search_cost_per_1k_calls": 2.5,
    "code_interpreter_cost_per_session": 0.03,
    "google_maps_grounding_cost_per_query": 0.025,
}
FILES_USD, SESSION_USD, MAPS_USD = 2_500_000, 30_000_000, 25_000_000


def test_responses_file_searches_and_containers_are_counted_in_the_answer() -> None:
    tools = [{"type": "file_search"}, {"type": "code_interpreter", "container": {"type": "auto"}}]
    request = request_of("responses", max_tool_calls=4, tools=tools)
    ran = {"type": "code_interpreter_call", "container_id": "c1"}
    output = [{"type": "file_search_call"}, ran, {"type": "message"}, ran, {"type": "file_search_call"}]
    assert held(request, HOSTED) == GPT_USD + 4 * FILES_USD + SESSION_USD
    assert booked("responses", request, HOSTED, {"output": output}) == GPT_USD + 2 * FILES_USD + SESSION_USD
    assert booked("responses", request, HOSTED, {"output": []}) == GPT_USD
    assert held(request, GPT) == GPT_USD, "a tool without a price reserves nothing"


@pytest.mark.parametrize("tool", ["googleMaps", "google_maps"])
def test_maps_grounding_is_counted_in_the_answer(tool: str) -> None:
    request = request_of("chat/completions", tools=[{tool: {}}, {"type": "function", "function": {"name": "f"}}])
    assert held(request, HOSTED) == GPT_USD + MAPS_USD
    usage = {"prompt_tokens_details": {"google_maps_grounding_requests": 2}}
    assert booked("chat/completions", request, HOSTED, {}, **usage) == GPT_USD + 2 * MAPS_USD
    assert booked("chat/completions", request, HOSTED, {}) == GPT_USD


@pytest.mark.parametrize("where", ["first", "last"])
def test_service_tier_in_any_chunk_of_a_stream_is_booked(where: str) -> None:
    request = request_of("chat/completions", stream=True)
    relay = protocol_of("chat/completions").relay(request, Words())
    tier = {"service_tier": "priority"}
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 100}},
    ]
    chunks[0 if where == "first" else 1].update(tier)
    relay.feed(b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks))
    assert relay.usage is not None
    assert booked_cost(request, price_from_map(GPT), relay.usage) == 2 * GPT_USD


WINDOW = {"max_input_tokens": 128_000, "max_output_tokens": 16_384}
MOST = (128_000 + 16_384) * 16


@pytest.mark.parametrize(
    ("limits", "usage", "is_believed"),
    [
        (WINDOW, Usage(MOST, 20), True),
        (WINDOW, Usage(MOST + 1, 20), False),
        (WINDOW, Usage(10, MOST + 1), False),
        (WINDOW, Usage(10_000_000, 10_000_000), False),
        ({"max_input_tokens": 1000, "max_tokens": 1000}, Usage(32_001, 0), False),
        ({"max_input_tokens": 1000}, Usage(32_000, 0), True),
        ({}, Usage(10_000_000, 10_000_000), True),
    ],
)
def test_usage_far_above_the_context_window_is_not_believed(
    limits: dict[str, int], usage: Usage, is_believed: bool
) -> None:
    request, price = request_of("chat/completions"), price_from_map(GPT | limits)
    assert plausible_usage(request, price, usage) == (usage if is_believed else None)
    request.has_output = False
    assert plausible_usage(request, price, usage) is usage, "embeddings have no such bound"


def test_usage_bound_is_multiplied_by_choices() -> None:
    assert (
        plausible_usage(request_of("chat/completions", n=2), price_from_map(GPT | WINDOW), Usage(10, MOST + 1))
        is not None
    )
