"""The LiteLLM lane against a provider on a real socket.

Importing LiteLLM takes seconds of CPU, so what needs the real one is here and in `test_upstream_litellm_overhead`. It warns of itself
(sessions that it leaves to the garbage collector, its own deprecated calls): not our warnings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from typing import Any

import pytest

from gateway.upstream.litellm_lane import LiteLLMLane
from gateway.upstream.port import (
    ProtocolName,
    Timeouts,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.fake_provider import FakeProvider
from tests.gateway.litellm_calls import KEY, TEXT_PROTOCOLS, call, deployment, events_of_stream

pytestmark = pytest.mark.filterwarnings("ignore")

PROVIDERS = ["openai", "hosted_vllm", "anthropic"]


async def test_endpoint_that_the_provider_lacks_is_400(provider: FakeProvider, lane: LiteLLMLane) -> None:
    answer = await lane.send(deployment(provider), call("rerank"))
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["code"]) == (400, "unsupported_endpoint")
    assert "its provider 'openai' has no rerank" in error["message"]
    assert provider.requests == []


def text_of(protocol: ProtocolName, body: dict[str, Any]) -> str:
    if protocol == "chat":
        return str(body["choices"][0]["message"]["content"])
    if protocol == "completions":
        return str(body["choices"][0]["text"])
    if protocol == "responses":
        return str(body["output"][0]["content"][0]["text"])
    return str(body["content"][0]["text"])


def text_of_stream(protocol: ProtocolName, events: list[tuple[str, dict[str, Any]]]) -> str:
    data = [item for _name, item in events]
    if protocol == "chat":
        return "".join(item["choices"][0]["delta"].get("content") or "" for item in data if item["choices"])
    if protocol == "completions":
        return "".join(item["choices"][0].get("text") or "" for item in data if item["choices"])
    if protocol == "responses":
        return "".join(item["delta"] for item in data if item["type"] == "response.output_text.delta")
    return "".join(item["delta"]["text"] for item in data if item["type"] == "content_block_delta")


async def test_litellm_is_loaded_once_without_callbacks_or_side_effects(lane: LiteLLMLane) -> None:
    import litellm

    again = LiteLLMLane(environment={"TIKTOKEN_CACHE_DIR": "ours"})
    again.prepare()
    await again.ready()
    assert again._loader.loaded is litellm
    assert again._environment["TIKTOKEN_CACHE_DIR"] == "ours"
    assert litellm.callbacks == litellm.success_callback == []
    assert os.environ["LITELLM_MODE"] == "PRODUCTION"
    assert "fastapi" not in sys.modules
    assert "openai.resources.chat" in sys.modules  # otherwise the first call would import it and block all others


async def test_missing_litellm_is_unreachable_until_it_is_installed(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "litellm", None)
    lane = LiteLLMLane(environment={})
    with pytest.raises(UpstreamUnreachable, match="cannot be loaded"):
        await lane.send(deployment(provider), call())
    monkeypatch.undo()
    assert (await lane.send(deployment(provider), call())).status == 200
    await lane.close()


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("protocol", TEXT_PROTOCOLS)
async def test_every_text_protocol_works_with_every_kind_of_provider(
    provider: FakeProvider, lane: LiteLLMLane, name: str, protocol: ProtocolName
) -> None:
    provider.script(text="the word of people", times=None)
    answer = await lane.send(deployment(provider, name), call(protocol))
    assert (answer.status, answer.lane, answer.headers["content-type"]) == (200, "litellm", "application/json")
    body = json.loads(answer.body)
    assert text_of(protocol, body) == "the word of people"
    usage = body["usage"]
    assert usage.get("completion_tokens", usage.get("output_tokens")) == 4

    # Chat and completions clients ask for usage; in the other protocols, LiteLLM requests it itself.
    options = {"stream_options": {"include_usage": True}} if protocol in ("chat", "completions") else {}
    streamed = await lane.send(deployment(provider, name), call(protocol, stream=True, **options))
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = await events_of_stream(streamed)
    assert text_of_stream(protocol, events) == "the word of people"
    assert [item.credential for item in provider.requests] == [KEY, KEY]
    assert provider.last.headers["x-team"] == "a"
    assert provider.last.headers["x-farebox-hops"] == "1"


@pytest.mark.parametrize("name", PROVIDERS)
async def test_stream_usage_is_in_a_separate_last_chunk(provider: FakeProvider, lane: LiteLLMLane, name: str) -> None:
    provider.script(tokens=4)
    answer = await lane.send(deployment(provider, name), call(stream=True, stream_options={"include_usage": True}))
    *chunks, last = [data for _name, data in await events_of_stream(answer)]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("name", "protocol", "path"),
    [
        ("openai", "embeddings", "/v1/embeddings"),
        ("openai", "moderations", "/v1/moderations"),
        ("openai", "images", "/v1/images/generations"),
        ("openai", "transcriptions", "/v1/audio/transcriptions"),
        ("hosted_vllm", "rerank", "/v1/rerank"),
    ],
)
async def test_non_text_protocols_reach_their_path(
    provider: FakeProvider, lane: LiteLLMLane, name: str, protocol: ProtocolName, path: str
) -> None:
    answer = await lane.send(deployment(provider, name), call(protocol))
    assert answer.status == 200
    assert isinstance(json.loads(answer.body), dict)
    assert provider.last.path == path
    assert "extra_headers" not in provider.last.body


async def test_speech_answer_is_audio(provider: FakeProvider, lane: LiteLLMLane) -> None:
    answer = await lane.send(deployment(provider), call("speech"))
    assert (answer.headers["content-type"], answer.body[:3]) == ("audio/mpeg", b"ID3")


@pytest.mark.parametrize("name", PROVIDERS)
async def test_unknown_fields_reach_the_provider_unchanged(
    provider: FakeProvider, lane: LiteLLMLane, name: str
) -> None:
    await lane.send(deployment(provider, name), call(odd={"a": [1, None]}, temperature=0.5))
    assert provider.last.body["odd"] == {"a": [1, None]}
    assert provider.last.body["temperature"] == 0.5
    assert "extra_body" not in provider.last.body


async def test_fields_of_the_entry_are_defaults(provider: FakeProvider, lane: LiteLLMLane) -> None:
    entry = deployment(provider, temperature=0.2, top_p=0.3, num_retries=5, rpm=3, max_tokens=9)
    await lane.send(entry, call(top_p=0.9))
    sent = provider.last.body
    assert (sent["temperature"], sent["top_p"], sent["max_completion_tokens"]) == (0.2, 0.9, 30)
    assert not {"max_tokens", "rpm", "num_retries"} & sent.keys()


# ── control stays with the gateway ──


@pytest.mark.parametrize(
    "fields",
    [
        {"api_base": "http://evil.invalid"},
        {"base_url": "http://evil.invalid"},
        {"api_key": "x"},
        {"mock_response": "free"},
        {"fallbacks": ["gpt-5"]},
        {"custom_llm_provider": "anthropic"},
        {"aws_bedrock_runtime_endpoint": "http://evil.invalid"},
        {"vertex_credentials": "{}"},
        {"litellm_metadata": {}},
        {"extra_headers": {"authorization": "x"}},
        {"input_cost_per_token": 0},
        {"tools": [{"type": "mcp", "server_url": "litellm_proxy/mcp"}]},
    ],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.parametrize("protocol", ["chat", "messages"])
async def test_client_fields_that_control_litellm_are_refused(
    provider: FakeProvider, lane: LiteLLMLane, fields: dict[str, Any], protocol: ProtocolName
) -> None:
    answer = await lane.send(deployment(provider), call(protocol, **fields))
    assert answer.status == 400
    assert next(iter(fields)) in json.loads(answer.body)["error"]["message"]
    assert provider.requests == []


@pytest.mark.parametrize(
    ("protocol", "field"),
    [
        ("chat", "max_output_tokens"),
        ("chat", "best_of"),
        ("messages", "n"),
        ("messages", "max_completion_tokens"),
        ("responses", "max_tokens"),
        ("responses", "candidateCount"),
        ("completions", "maxOutputTokens"),
        ("chat", "num_predict"),
    ],
)
async def test_output_cap_of_another_protocol_is_refused(
    provider: FakeProvider, lane: LiteLLMLane, protocol: ProtocolName, field: str
) -> None:
    """LiteLLM would overwrite the reserved cap with such a field: Gemini's `max_output_tokens`, Bedrock's `maxTokens`."""
    cap: dict[str, Any] = {field: 8000}
    for name in ("gemini", "openai"):
        answer = await lane.send(deployment(provider, name), call(protocol, **cap))
        assert answer.status == 400
        assert field in json.loads(answer.body)["error"]["message"]
    assert provider.requests == []


async def test_file_search_is_refused_instead_of_emulated(provider: FakeProvider, lane: LiteLLMLane) -> None:
    """LiteLLM would make further model calls for it, for which nothing is reserved."""
    answer = await lane.send(deployment(provider, "anthropic"), call("responses", tools=[{"type": "file_search"}]))
    assert answer.status == 400
    assert provider.requests == []


async def test_advisor_model_is_not_called(provider: FakeProvider, lane: LiteLLMLane) -> None:
    tools = [{"type": "advisor_20260301", "name": "advisor", "model": "other-model"}]
    await lane.send(deployment(provider, "hosted_vllm"), call("messages", tools=tools))
    assert {item.model for item in provider.requests} <= {"gpt-x"}


async def test_image_url_of_a_client_is_not_fetched(provider: FakeProvider, lane: LiteLLMLane) -> None:
    async with FakeProvider() as elsewhere:
        picture = {"type": "image_url", "image_url": {"url": f"{elsewhere.url}/cat.png"}}
        content = [{"type": "text", "text": "what is it?"}, picture]
        entry = deployment(provider, "gemini", api_base=None, api_key="not-a-key")
        answer = await lane.send(entry, call(messages=[{"role": "user", "content": content}]))
        assert answer.status == 400
        assert elsewhere.requests == []


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("protocol", ["chat", "responses", "messages"])
async def test_redirects_are_not_followed(
    provider: FakeProvider, lane: LiteLLMLane, name: str, protocol: ProtocolName
) -> None:
    async with FakeProvider() as elsewhere:
        provider.script(redirect=f"{elsewhere.url}/v1/chat/completions")
        with pytest.raises(UpstreamBroken, match="redirects are never followed"):
            await lane.send(deployment(provider, name), call(protocol))
        assert elsewhere.requests == []
        assert len(provider.requests) == 1


async def test_key_from_the_environment_is_not_sent_to_an_api_base(
    provider: FakeProvider, lane: LiteLLMLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    await lane.send(deployment(provider, api_key=None), call())
    assert provider.last.credential != "sk-of-the-environment"
    asked = call()
    asked.client_credential = "sk-of-the-client"
    await lane.send(deployment(provider, api_key=None), asked)
    assert provider.last.credential == "sk-of-the-client"


# ── errors ──


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("protocol", TEXT_PROTOCOLS)
@pytest.mark.parametrize("status", [400, 401, 404, 408, 429, 500, 503, 529])
async def test_provider_error_keeps_its_status_message_and_retry_after(
    provider: FakeProvider, lane: LiteLLMLane, name: str, protocol: ProtocolName, status: int
) -> None:
    provider.script(status=status, message=f"The cause is {KEY}", retry_after="7", times=None)
    answer = await lane.send(deployment(provider, name), call(protocol))
    body = json.loads(answer.body)
    assert (answer.status, body["error"]["message"]) in [
        (status, "The cause is ***"),
        (status, "The cause is REDACTED"),
    ]
    assert (body.get("type") == "error") == (protocol == "messages")
    assert answer.headers["retry-after"] == "7"
    assert len(provider.requests) == 1


@pytest.mark.parametrize("protocol", ["chat", "completions", "responses"])
async def test_provider_error_keeps_its_type_param_and_code(
    provider: FakeProvider, lane: LiteLLMLane, protocol: ProtocolName
) -> None:
    provider_error = {"type": "insufficient_quota", "param": f"user {KEY}", "code": "billing_hard_limit"}
    provider.script(
        status=429,
        error_type=provider_error["type"],
        param=provider_error["param"],
        code=provider_error["code"],
        times=None,
    )
    answer = await lane.send(deployment(provider, "openai"), call(protocol))
    error = json.loads(answer.body)["error"]
    assert {name: error[name] for name in provider_error} == {**provider_error, "param": "user ***"}


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("form", ["html", "none", "text"])
async def test_error_that_is_not_json_gets_a_clean_message(
    provider: FakeProvider, lane: LiteLLMLane, name: str, form: Any
) -> None:
    provider.script(status=503, body=form, message="told to fail")
    answer = await lane.send(deployment(provider, name), call())
    message = json.loads(answer.body)["error"]["message"]
    assert answer.status == 503
    assert message
    assert not {"<", "litellm", "Exception"} & set(message.split())


@pytest.mark.parametrize("protocol", ["chat", "completions", "responses", "messages", "embeddings"])
@pytest.mark.parametrize("name", ["openai", "hosted_vllm"])
async def test_connection_reset_is_not_retried_by_litellm(
    provider: FakeProvider, lane: LiteLLMLane, name: str, protocol: ProtocolName
) -> None:
    provider.script(reset="before_headers", times=None)
    with pytest.raises(UpstreamBroken) as caught:
        await lane.send(deployment(provider, name), call(protocol))
    assert not caught.value.bytes_received
    assert len(provider.requests) == 1


@pytest.mark.parametrize("name", PROVIDERS)
async def test_truncated_answer_is_upstream_broken(provider: FakeProvider, lane: LiteLLMLane, name: str) -> None:
    provider.script(cut_after=10)
    with pytest.raises(UpstreamBroken):
        await lane.send(deployment(provider, name), call())


@pytest.mark.parametrize("name", PROVIDERS)
async def test_unreachable_provider_hides_its_address(lane: LiteLLMLane, provider: FakeProvider, name: str) -> None:
    with pytest.raises(UpstreamUnreachable) as caught:
        await lane.send(deployment(provider, name, api_base="http://127.0.0.1:1/v1"), call())
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("stream", [False, True])
async def test_provider_that_does_not_answer_times_out_and_is_disconnected(
    provider: FakeProvider, lane: LiteLLMLane, name: str, stream: bool
) -> None:
    await lane.send(deployment(provider, name), call())  # imports what LiteLLM needs for this provider
    provider.script(delay_ms=60_000)
    asked = call(stream=stream)
    asked.timeouts = Timeouts(first_byte_ms=500)
    with pytest.raises(UpstreamTimeout):
        await lane.send(deployment(provider, name), asked)
    assert len(provider.requests) == 2
    await provider.until(lambda: provider.last.disconnected_s is not None)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("protocol", ["chat", "messages"])
async def test_broken_stream_is_upstream_broken_with_bytes_received(
    provider: FakeProvider, lane: LiteLLMLane, name: str, protocol: ProtocolName
) -> None:
    provider.script(tokens=6, cut_after=2, chunk_delay_ms=20)
    answer = await lane.send(deployment(provider, name), call(protocol, stream=True))
    with pytest.raises(UpstreamBroken) as caught:
        await events_of_stream(answer)
    assert caught.value.bytes_received


async def test_silent_stream_times_out_and_is_disconnected(provider: FakeProvider, lane: LiteLLMLane) -> None:
    provider.script(tokens=6, stall_after=2)
    asked = call(stream=True)
    asked.timeouts = Timeouts(first_byte_ms=20_000, idle_ms=150)
    answer = await lane.send(deployment(provider), asked)
    with pytest.raises(UpstreamTimeout):
        await events_of_stream(answer)
    await provider.until(lambda: provider.last.disconnected_s is not None)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("protocol", ["chat", "completions", "messages"])
async def test_closing_a_stream_disconnects_from_the_provider_within_1_s(
    provider: FakeProvider, lane: LiteLLMLane, name: str, protocol: ProtocolName
) -> None:
    provider.script(tokens=1_000, ignore_max=True, chunk_delay_ms=5)
    answer = await lane.send(deployment(provider, name), call(protocol, stream=True))
    assert answer.pieces is not None
    assert answer.close is not None
    await anext(answer.pieces)
    left_s = asyncio.get_running_loop().time()
    await answer.close()
    await answer.close()
    await provider.until(lambda: provider.last.disconnected_s is not None)
    assert provider.last.disconnected_s is not None
    assert provider.last.disconnected_s - left_s < 1.0


async def test_cancelled_call_disconnects_from_the_provider(provider: FakeProvider, lane: LiteLLMLane) -> None:
    provider.script(delay_ms=60_000)
    sending = asyncio.create_task(lane.send(deployment(provider), call()))
    await provider.until(lambda: provider.concurrent == 1)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await provider.until(lambda: provider.concurrent == 0)


def raw(body: str, content_type: str = "application/json", status: str = "200 OK") -> str:
    return f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\nconnection: close\r\n\r\n{body}"


def chunk(content: str = "The answer is", index: int = 0) -> str:
    choice = {"index": index, "delta": {"role": "assistant", "content": content}, "finish_reason": None}
    event = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x", "choices": [choice]}
    return f"data: {json.dumps(event)}\n\n"


@pytest.mark.parametrize("protocol", ["chat", "messages"])
@pytest.mark.parametrize("body", [chunk(), "", '{"error": {"message": "quota"}}', "<html>busy</html>"])
async def test_stream_without_finish_reason_is_upstream_broken(
    provider: FakeProvider, lane: LiteLLMLane, protocol: ProtocolName, body: str
) -> None:
    provider.script(raw=raw(body, "text/event-stream"))
    answer = await lane.send(deployment(provider), call(protocol, stream=True))
    with pytest.raises(UpstreamBroken) as broken:
        await events_of_stream(answer)
    assert broken.value.bytes_received


@pytest.mark.parametrize("content", ["\ud800"])
async def test_event_that_cannot_be_encoded_breaks_the_stream(
    provider: FakeProvider, lane: LiteLLMLane, content: str
) -> None:
    provider.script(raw=raw(chunk(content) + chunk(), "text/event-stream"))
    answer = await lane.send(deployment(provider), call(stream=True))
    with pytest.raises(UpstreamBroken):
        await events_of_stream(answer)


@pytest.mark.parametrize("name", ["openai", "hosted_vllm", "anthropic"])
@pytest.mark.parametrize("body", ["not json", "<html>fine</html>"])
async def test_unreadable_answer_counts_as_bytes_received(
    provider: FakeProvider, lane: LiteLLMLane, name: str, body: str
) -> None:
    provider.script(raw=raw(body))
    with pytest.raises(UpstreamBroken) as broken:
        await lane.send(deployment(provider, name), call())
    assert broken.value.bytes_received
    assert len(provider.requests) == 1


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "500 Internal Server Error"])
@pytest.mark.parametrize("stream", [False, True])
async def test_only_the_beginning_of_an_invalid_answer_is_parsed(
    provider: FakeProvider, lane: LiteLLMLane, status: str, stream: bool
) -> None:
    provider.script(raw=raw("busy " * 400_000, "text/plain", status))
    began_s = time.process_time()
    with contextlib.suppress(UpstreamBroken):
        answer = await lane.send(deployment(provider), call(stream=stream))
        if answer.pieces is None:
            assert answer.status >= 400
        else:
            await events_of_stream(answer)
    assert time.process_time() - began_s < 3, "LiteLLM alone takes 10 s of CPU for these two megabytes"


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
async def test_provider_whose_retries_cannot_be_set_is_called_once(
    provider: FakeProvider, lane: LiteLLMLane, streamed: bool
) -> None:
    provider.script(status=500, message="out of order", times=None)
    answer = await lane.send(deployment(provider, "gradient_ai"), call(stream=streamed))
    assert (answer.status, json.loads(answer.body)["error"]["message"]) == (500, "out of order")
    assert len(provider.requests) == 1
