"""The direct lane against a provider on a real socket: what it sends, and what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from gateway.errors import LedgerOutage
from gateway.upstream.direct import DirectLane, DirectLimits
from gateway.upstream.port import Deployment, ProtocolName, Timeouts, UpstreamAnswer, UpstreamCall
from gateway.upstream.request import request_body
from gateway.upstream.timeouts import effective_timeouts
from tests.fake_provider import FakeProvider

CHAT = {"model": "public-name", "messages": [{"role": "user", "content": "tell me"}]}
MESSAGES = {**CHAT, "max_tokens": 50}
BODIES: dict[ProtocolName, dict[str, Any]] = {
    "chat": CHAT,
    "completions": {"model": "public-name", "prompt": "tell me"},
    "responses": {"model": "public-name", "input": "tell me"},
    "messages": MESSAGES,
    "embeddings": {"model": "public-name", "input": ["one two", "three"]},
}
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}


@pytest.fixture
async def lane() -> AsyncIterator[DirectLane]:
    direct_lane = DirectLane(environment={})
    yield direct_lane
    await direct_lane.close()


def deployment(provider: FakeProvider, *, name: str = "openai", model: str = "gpt-x", **params: Any) -> Deployment:
    base = provider.anthropic_url if name == "anthropic" else provider.openai_url
    parameters = {"api_base": base, "api_key": "sk-the-entrys-key", **params}
    return Deployment("public-name/0", "public-name", name, model, "auto", parameters, {})


def call(protocol: ProtocolName = "chat", *, stream: bool = False, **fields: Any) -> UpstreamCall:
    return UpstreamCall(protocol, {**BODIES[protocol], **fields}, stream)


def caps_of(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name.startswith("max_")}


async def text_of(answer: UpstreamAnswer) -> str:
    assert answer.pieces is not None
    return b"".join([piece async for piece in answer.pieces]).decode()


@pytest.mark.parametrize("protocol", list(BODIES))
async def test_buffered_answer_is_returned_unchanged(
    provider: FakeProvider, lane: DirectLane, protocol: ProtocolName
) -> None:
    provider_name = "anthropic" if protocol == "messages" else "openai"
    answer = await lane.send(deployment(provider, name=provider_name), call(protocol))
    assert (answer.status, answer.lane, answer.pieces) == (200, "direct", None)
    assert json.loads(answer.body)["model"] == "gpt-x"
    assert provider.last.path == PATHS[protocol]
    assert provider.last.body == {**BODIES[protocol], "model": "gpt-x"}
    assert provider.last.credential == "sk-the-entrys-key"


class RecordingObserver:
    """A send observer that records how many requests the provider had seen at each event."""

    def __init__(self, provider: FakeProvider, refusal: Exception | None = None) -> None:
        self.provider = provider
        self.refusal = refusal
        self.events: list[tuple[str, int]] = []

    def on_waiting(self) -> None:
        self.events.append(("on_waiting", len(self.provider.requests)))

    def before_send(self) -> Awaitable[None]:
        return self._leave()

    async def _leave(self) -> None:
        await asyncio.sleep(0.02)
        self.events.append(("before_send", len(self.provider.requests)))
        if self.refusal is not None:
            raise self.refusal


async def test_request_is_sent_after_its_send_observer_agrees(provider: FakeProvider, lane: DirectLane) -> None:
    """Over a new connection, and over one that another call has used."""
    for connections_before in (0, 1):
        send_observer = RecordingObserver(provider)
        asked = replace(call(), send_observer=send_observer)
        assert (await lane.send(deployment(provider), asked)).status == 200
        assert send_observer.events == [("on_waiting", connections_before), ("before_send", connections_before)]


async def test_nothing_is_sent_if_the_send_observer_refuses(provider: FakeProvider, lane: DirectLane) -> None:
    asked = replace(call(), send_observer=RecordingObserver(provider, LedgerOutage()))
    with pytest.raises(LedgerOutage):
        await lane.send(deployment(provider), asked)
    assert provider.requests == []
    assert (await lane.send(deployment(provider), call())).status == 200


@pytest.mark.parametrize("protocol", ["chat", "completions", "responses", "messages"])
async def test_stream_is_relayed_completely(provider: FakeProvider, lane: DirectLane, protocol: ProtocolName) -> None:
    provider.script(tokens=3, split_bytes=7)
    provider_name = "anthropic" if protocol == "messages" else "openai"
    answer = await lane.send(deployment(provider, name=provider_name), call(protocol, stream=True))
    text = await text_of(answer)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert provider.last.body["stream"] is True
    ends = {"chat": "data: [DONE]", "completions": "data: [DONE]", "messages": '"message_stop"}'}
    assert text.rstrip().endswith(ends.get(protocol, "}"))
    assert text.count("\n\n") == len([part for part in text.split("\n\n") if part])


async def test_only_listed_headers_are_sent_with_the_providers_credential(
    provider: FakeProvider, lane: DirectLane
) -> None:
    asked = call("messages")
    asked.headers = {
        "anthropic-beta": "tools-2026",
        "authorization": "Bearer the-clients",
        "x-api-key": "the-clients",
        "accept-encoding": "gzip",
        "host": "elsewhere",
    }
    await lane.send(deployment(provider, name="anthropic"), asked)
    sent_headers = provider.last.headers
    assert sent_headers.pop("host") == provider.url.removeprefix("http://")
    assert sent_headers == {
        "accept": "application/json",
        "accept-encoding": "identity",
        "anthropic-beta": "tools-2026",
        "anthropic-version": "2023-06-01",
        "content-length": str(len(provider.last.raw)),
        "content-type": "application/json",
        "user-agent": "farebox",
        "x-api-key": "sk-the-entrys-key",
        "x-farebox-hops": "1",
    }


async def test_anthropic_oauth_token_is_sent_as_bearer_token(provider: FakeProvider, lane: DirectLane) -> None:
    await lane.send(deployment(provider, name="anthropic", api_key="sk-ant-oat01-x"), call("messages"))
    assert provider.last.headers["authorization"] == "Bearer sk-ant-oat01-x"
    assert "x-api-key" not in provider.last.headers


@pytest.mark.parametrize(
    ("params", "environment", "of_client", "sent"),
    [
        ({"api_key": "entry"}, {"OPENAI_API_KEY": "variable"}, "client", "entry"),
        ({"api_key": None}, {"OPENAI_API_KEY": "variable"}, "client", "client"),
        ({"api_key": None}, {"OPENAI_API_KEY": "variable"}, None, None),
        ({"api_key": None, "api_base": None}, {"OPENAI_API_KEY": "variable"}, "client", "variable"),
    ],
)
async def test_credential_comes_from_entry_client_or_environment(
    provider: FakeProvider, params: dict[str, Any], environment: dict[str, str], of_client: str | None, sent: str | None
) -> None:
    """The provider's variable goes to the provider's own address only, never to an `api_base` of an entry."""
    lane = DirectLane(environment={"OPENAI_BASE_URL": provider.openai_url, **environment})
    asked = call()
    asked.client_credential = of_client
    await lane.send(deployment(provider, **params), asked)
    await lane.close()
    assert provider.last.credential == sent


async def test_entry_fields_are_defaults_and_connection_settings_are_not_sent(
    provider: FakeProvider, lane: DirectLane
) -> None:
    entry = deployment(
        provider,
        temperature=0.2,
        top_p=0.5,
        max_tokens=77,
        rpm=5,
        aws_secret_access_key="canary",
        extra_body={"chat_template_kwargs": {"thinking": False}, "model": "no"},
        extra_headers={"X-Team": "a"},
    )
    await lane.send(entry, call(top_p=0.9, unknown_field=[1, {"a": None}]))
    assert provider.last.body == {
        **CHAT,
        "model": "gpt-x",
        "temperature": 0.2,
        "top_p": 0.9,
        "max_tokens": 77,
        "unknown_field": [1, {"a": None}],
        "chat_template_kwargs": {"thinking": False},
    }
    assert provider.last.headers["x-team"] == "a"


async def test_output_cap_of_the_entry_is_not_sent_beside_the_requests(
    provider: FakeProvider, lane: DirectLane
) -> None:
    await lane.send(deployment(provider, max_tokens=77), call(max_completion_tokens=5))
    assert provider.last.body["max_completion_tokens"] == 5
    assert "max_tokens" not in provider.last.body


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"max_completion_tokens": 9, "max_tokens": 4}, {"max_tokens": 4}),
        ({"max_tokens": 4}, {"max_tokens": 4}),
    ],
)
async def test_server_that_knows_only_max_tokens_gets_that(
    provider: FakeProvider, lane: DirectLane, fields: Mapping[str, Any], sent: Mapping[str, int]
) -> None:
    await lane.send(deployment(provider, name="deepseek"), call(**fields))
    assert caps_of(provider.last.body) == sent


@pytest.mark.parametrize("model", ["o3-mini", "gpt-5-nano", "openai/gpt-5"])
@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"max_tokens": 9}, {"max_completion_tokens": 9}),
        ({"max_completion_tokens": 9, "max_tokens": 4}, {"max_completion_tokens": 4}),
        ({"max_completion_tokens": 4}, {"max_completion_tokens": 4}),
        ({}, {}),
    ],
)
async def test_reasoning_model_gets_max_completion_tokens(
    provider: FakeProvider, lane: DirectLane, model: str, fields: Mapping[str, Any], sent: Mapping[str, int]
) -> None:
    await lane.send(deployment(provider, model=model), call(**fields))
    assert caps_of(provider.last.body) == sent


@pytest.mark.parametrize(
    ("name", "base", "newer"),
    [
        ("openai", None, True),
        ("openai", "https://api.openai.com/v1", True),
        ("openai", "https://api.openai.com.example/v1", False),
        ("openai", "http://127.0.0.1:8000/v1", False),
        ("mistral", None, False),
    ],
)
def test_openai_itself_gets_max_completion_tokens_for_every_model(name: str, base: str | None, newer: bool) -> None:
    entry = Deployment("m/0", "m", name, "gpt-x", "auto", {"api_base": base} if base else {}, {})
    assert caps_of(request_body(entry, call(max_tokens=7))) == {"max_completion_tokens" if newer else "max_tokens": 7}


async def test_stream_options_are_removed_from_a_buffered_request(provider: FakeProvider, lane: DirectLane) -> None:
    await lane.send(deployment(provider), call(stream_options={"include_usage": True}))
    assert provider.last.body == {**CHAT, "model": "gpt-x"}


async def test_only_listed_answer_headers_are_returned(provider: FakeProvider, lane: DirectLane) -> None:
    provider.script(cookie=True)
    answer = await lane.send(deployment(provider), call())
    assert dict(answer.headers) == {
        "content-type": "application/json",
        "openai-processing-ms": "12",
        "x-ratelimit-remaining-requests": "99",
        "x-ratelimit-remaining-tokens": "9999",
        "x-upstream-request-id": "req_1",
    }


async def test_buffered_answer_to_a_stream_request_becomes_a_stream(provider: FakeProvider, lane: DirectLane) -> None:
    provider.script(ignore_stream=True)
    answer = await lane.send(deployment(provider), call(stream=True))
    assert answer.headers["content-type"] == "text/event-stream"
    events = await text_of(answer)
    assert events.startswith('data: {"id":"chatcmpl-')
    assert events.endswith("data: [DONE]\n\n")


async def test_connection_is_reused(provider: FakeProvider, lane: DirectLane) -> None:
    for stream in (False, True, True, False):
        answer = await lane.send(deployment(provider), call(stream=stream))
        if stream:
            await text_of(answer)
            assert answer.close is not None
            await answer.close()
    assert len({item.peer for item in provider.requests}) == 1


@pytest.mark.parametrize("size", [1_000, 3_000_000])
async def test_request_of_any_size_arrives_whole(provider: FakeProvider, lane: DirectLane, size: int) -> None:
    text = "ä" * size
    await lane.send(deployment(provider), call(messages=[{"role": "user", "content": text}]))
    assert provider.last.body["messages"][0]["content"] == text


async def test_transcription_is_sent_as_a_multipart_form(provider: FakeProvider, lane: DirectLane) -> None:
    body = {
        "model": "public-name",
        "file": ("talk.mp3", b"ID3", "audio/mpeg"),
        "timestamp_granularities": ["word", "segment"],
        "temperature": 0,
    }
    answer = await lane.send(deployment(provider), UpstreamCall("transcriptions", body, False))
    assert json.loads(answer.body) == {"text": "the time of people"}
    assert provider.last.headers["content-type"].startswith("multipart/form-data; boundary=")
    for part in (b'filename="talk.mp3"', b"ID3", b'name="timestamp_granularities[]"', b"segment", b"gpt-x"):
        assert part in provider.last.raw


async def test_speech_answer_is_returned_unchanged(provider: FakeProvider, lane: DirectLane) -> None:
    asked = UpstreamCall("speech", {"model": "public-name", "input": "hi", "voice": "a"}, False)
    answer = await lane.send(deployment(provider), asked)
    assert answer.headers["content-type"] == "audio/mpeg"
    assert answer.body.startswith(b"ID3")


@pytest.mark.parametrize(
    ("base", "name", "protocol", "path"),
    [
        ("/v1", "openai", "chat", "/v1/chat/completions"),
        ("/v1/", "openai", "embeddings", "/v1/embeddings"),
        ("/v1/chat/completions", "hosted_vllm", "chat", "/v1/chat/completions"),
        ("", "anthropic", "messages", "/v1/messages"),
        ("/v1", "anthropic", "messages", "/v1/messages"),
        ("/v1/messages", "anthropic", "messages", "/v1/messages"),
    ],
)
async def test_request_path_is_derived_from_api_base(
    provider: FakeProvider, lane: DirectLane, base: str, name: str, protocol: ProtocolName, path: str
) -> None:
    await lane.send(deployment(provider, name=name, api_base=provider.url + base), call(protocol))
    assert provider.last.path == path


@pytest.mark.parametrize(
    ("stream", "expected"),
    [(False, Timeouts(5_000, 2_000, 60_000, 2_000)), (True, Timeouts(5_000, 1_000, 60_000, 600_000))],
)
def test_timeouts_of_the_entry_shorten_the_defaults(provider: FakeProvider, stream: bool, expected: Timeouts) -> None:
    entry = deployment(provider, timeout=2, stream_timeout=1.0)
    assert effective_timeouts(entry, call(stream=stream)) == expected


def test_default_limits_bound_memory() -> None:
    limits = DirectLimits()
    assert limits.answer_bytes_max <= 2**27
    assert limits.error_bytes_max <= 2**20
