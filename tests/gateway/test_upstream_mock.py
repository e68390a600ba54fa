"""The mock lane: offline answers in every text protocol, with counted usage."""

from __future__ import annotations

import base64
import itertools
import json
import math
import struct
from typing import Any

import pytest

from gateway.upstream.mock import MockLane
from gateway.upstream.mock_reply import truncate_to_tokens
from gateway.upstream.port import Deployment, ProtocolName, UpstreamAnswer, UpstreamCall
from tests.gateway.litellm_calls import events_of_stream

TEXT = "one two three four five"
BODIES: dict[ProtocolName, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "a b"}, {"role": "user", "content": [{"text": "c"}]}]},
    "completions": {"prompt": "a b c"},
    "responses": {"input": "a b", "instructions": "c"},
    "messages": {"system": "a", "messages": [{"role": "user", "content": "b c"}], "max_tokens": 100},
}
CAPS = {"chat": "max_completion_tokens", "responses": "max_output_tokens"}


def count(text: str) -> int:
    return len(text.split())


@pytest.fixture
def lane() -> MockLane:
    ids = itertools.count(1)
    return MockLane(count=count, now_s=lambda: 1_790_000_000.5, new_id=lambda: f"id{next(ids)}")


def deployment(response: Any, **params: Any) -> Deployment:
    return Deployment("mock/0", "mock", "openai", "mock", "auto", {"mock_response": response, **params}, {})


async def send(
    lane: MockLane, response: Any, protocol: ProtocolName, fields: dict[str, Any], *, stream: bool = False
) -> UpstreamAnswer:
    body = {"model": "mock", **BODIES.get(protocol, {}), **fields}
    return await lane.send(deployment(response), UpstreamCall(protocol, body, stream))


async def events(answer: UpstreamAnswer) -> list[dict[str, Any]]:
    """The data of the events; checks that every event is complete and has its protocol's name."""
    named_events = await events_of_stream(answer)
    assert all(name in ("", value.get("type")) for name, value in named_events)
    return [value for _, value in named_events]


def parts_of_answer(protocol: ProtocolName, body: dict[str, Any]) -> tuple[str, str, int, int]:
    """(text, finish, input tokens, output tokens) of a buffered answer."""
    usage = body["usage"]
    if protocol == "chat":
        choice = body["choices"][0]
        tokens = usage["prompt_tokens"], usage["completion_tokens"]
        return choice["message"]["content"], choice["finish_reason"], *tokens
    if protocol == "completions":
        choice = body["choices"][0]
        return choice["text"], choice["finish_reason"], usage["prompt_tokens"], usage["completion_tokens"]
    tokens = usage["input_tokens"], usage["output_tokens"]
    if protocol == "responses":
        return body["output"][0]["content"][0]["text"], body["status"], *tokens
    return body["content"][0]["text"], body["stop_reason"], *tokens


FINISHES = {
    "chat": ("stop", "length"),
    "completions": ("stop", "length"),
    "responses": ("completed", "incomplete"),
    "messages": ("end_turn", "max_tokens"),
}


@pytest.mark.parametrize("protocol", list(BODIES))
@pytest.mark.parametrize(("cap", "text"), [(None, TEXT), (5, TEXT), (2, "one two"), (0, "")])
async def test_mock_answers_its_text_up_to_the_output_cap(
    lane: MockLane, protocol: ProtocolName, cap: int | None, text: str
) -> None:
    fields = {} if cap is None else {CAPS.get(protocol, "max_tokens"): cap}
    answer = await send(lane, TEXT, protocol, fields)
    answered_text, finish, input_tokens, output_tokens = parts_of_answer(protocol, json.loads(answer.body))
    assert (answer.status, answer.lane, answered_text) == (200, "mock", text)
    assert finish == FINISHES[protocol][text != TEXT]
    framing = 4 * len(BODIES[protocol].get("messages", [])) + 3 if "messages" in BODIES[protocol] else 0
    assert (input_tokens, output_tokens) == (3 + framing, count(text))


@pytest.mark.parametrize("protocol", list(BODIES))
async def test_stream_has_the_text_and_usage_of_the_buffered_answer(lane: MockLane, protocol: ProtocolName) -> None:
    fields = {CAPS.get(protocol, "max_tokens"): 3, "stream_options": {"include_usage": True}}
    whole = json.loads((await send(lane, TEXT, protocol, fields)).body)
    sent = await events(await send(lane, TEXT, protocol, fields, stream=True))
    if protocol == "chat":
        text = "".join(item["choices"][0]["delta"].get("content", "") for item in sent if item["choices"])
        assert sent[-1]["choices"] == []
        assert sent[-1]["usage"] == whole["usage"]
        assert sent[-2]["choices"][0]["finish_reason"] == "length"
    elif protocol == "completions":
        text = "".join(item["choices"][0]["text"] for item in sent if item["choices"])
        assert sent[-1]["usage"] == whole["usage"]
    elif protocol == "responses":
        text = "".join(item["delta"] for item in sent if item["type"] == "response.output_text.delta")
        assert [item["sequence_number"] for item in sent] == list(range(len(sent)))
        assert sent[-1]["type"] == "response.incomplete"
        assert sent[-1]["response"]["usage"] == whole["usage"]
    else:
        text = "".join(item["delta"]["text"] for item in sent if item["type"] == "content_block_delta")
        assert sent[0]["message"]["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
        assert sent[-2]["usage"] == whole["usage"]
        assert sent[-1] == {"type": "message_stop"}
    assert text == "one two three" == parts_of_answer(protocol, whole)[0]


async def test_usage_is_streamed_only_if_requested(lane: MockLane) -> None:
    chunks = await events(await send(lane, TEXT, "chat", {}, stream=True))
    assert chunks
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
async def test_n_choices_multiply_completion_tokens(lane: MockLane, stream: bool) -> None:
    answer = await send(lane, TEXT, "chat", {"n": 3, "stream_options": {"include_usage": True}}, stream=stream)
    if stream:
        sent = await events(answer)
        assert {item["choices"][0]["index"] for item in sent if item["choices"]} == {0, 1, 2}
        usage = sent[-1]["usage"]
    else:
        body = json.loads(answer.body)
        assert len(body["choices"]) == 3
        usage = body["usage"]
    assert usage["completion_tokens"] == 15


@pytest.mark.parametrize(
    ("response", "status", "code"),
    [
        ("litellm.RateLimitError", 429, "rate_limit_exceeded"),
        ("litellm.ContextWindowExceededError", 400, "context_length_exceeded"),
        ("litellm.InternalServerError", 500, None),
        ("Exception: content_filter_policy violated", 400, "content_policy_violation"),
        ("Exception: mock_streaming_error", 529, None),
    ],
)
async def test_exception_names_become_error_answers(
    lane: MockLane, response: str, status: int, code: str | None
) -> None:
    answer = await send(lane, response, "chat", {})
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
    anthropic_answer = await send(lane, response, "messages", {})
    assert json.loads(anthropic_answer.body)["type"] == "error"


@pytest.mark.parametrize("protocol", list(BODIES))
async def test_mock_streaming_error_ends_the_stream_with_an_error_event(lane: MockLane, protocol: ProtocolName) -> None:
    sent = await events(await send(lane, "Exception: mock_streaming_error", protocol, {}, stream=True))
    assert len(sent) == 4
    assert "error" in sent[-1] or sent[-1]["type"] == "error"


async def test_complete_answer_can_be_configured(lane: MockLane) -> None:
    complete_answer = {"id": "x", "choices": [{"message": {"role": "assistant", "content": "a b c"}}], "extra": 1}
    assert json.loads((await send(lane, complete_answer, "chat", {})).body) == complete_answer
    assert (
        parts_of_answer("messages", json.loads((await send(lane, complete_answer, "messages", {})).body))[0] == "a b c"
    )


async def test_embeddings_are_deterministic_unit_vectors(lane: MockLane) -> None:
    answer = await send(lane, "unused", "embeddings", {"input": ["a b", "c", "a b"], "dimensions": 12})
    body = json.loads(answer.body)
    first, second, third = (item["embedding"] for item in body["data"])
    assert first == third != second
    assert math.isclose(sum(x * x for x in first), 1.0)
    assert len(first) == 12
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


async def test_embeddings_can_be_fixed_and_base64_encoded(lane: MockLane) -> None:
    answer = await send(lane, [0.5, -1.0], "embeddings", {"input": [1, 2, 3], "encoding_format": "base64"})
    body = json.loads(answer.body)
    assert struct.unpack("<2f", base64.b64decode(body["data"][0]["embedding"])) == (0.5, -1.0)
    assert body["usage"]["total_tokens"] == 3


async def test_prompt_tokens_come_from_count_prompt_if_given() -> None:
    lane = MockLane(count=count, now_s=lambda: 0.0, new_id=lambda: "x", count_prompt=lambda _protocol, _body: 1234)
    assert json.loads((await send(lane, TEXT, "chat", {})).body)["usage"]["prompt_tokens"] == 1234


@pytest.mark.parametrize(("prompt", "choices"), [(["a", "b"], 4), ([[1, 2], [3]], 4), ([1, 2], 2), ("a", 2)])
async def test_every_prompt_of_a_completion_gets_n_choices(lane: MockLane, prompt: Any, choices: int) -> None:
    answer = json.loads((await send(lane, TEXT, "completions", {"prompt": prompt, "n": 2})).body)
    assert [choice["index"] for choice in answer["choices"]] == list(range(choices))


async def test_other_protocols_are_unsupported(lane: MockLane) -> None:
    answer = await send(lane, TEXT, "speech", {})
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "unsupported_endpoint")


async def test_delayed_stream_can_be_closed_twice(lane: MockLane) -> None:
    entry = deployment(TEXT, mock_delay_ms=1, mock_chunk_delay_ms=1)
    answer = await lane.send(entry, UpstreamCall("chat", {"model": "mock", **BODIES["chat"]}, True))
    assert answer.pieces is not None
    assert answer.close is not None
    await anext(answer.pieces)
    await answer.close()
    await answer.close()
    assert [piece async for piece in answer.pieces] == []


@pytest.mark.parametrize(
    ("text", "tokens_max", "expected"),
    [
        ("", 0, ("", "stop")),
        ("a b", None, ("a b", "stop")),
        ("a b", 2, ("a b", "stop")),
        ("a  b\n c ", 2, ("a  b", "length")),
        ("a b", 0, ("", "length")),
    ],
)
def test_text_is_cut_to_whole_words_within_the_token_limit(
    text: str, tokens_max: int | None, expected: tuple[str, str]
) -> None:
    assert truncate_to_tokens(text, tokens_max, count) == expected


def test_too_long_word_is_cut_inside() -> None:
    assert truncate_to_tokens("abcdef", 3, len) == ("abc", "length")
