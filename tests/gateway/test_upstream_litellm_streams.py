"""Streams through the LiteLLM lane that LiteLLM would misread: when the request is sent, and how the answer ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.upstream.litellm_lane import LiteLLMLane
from gateway.upstream.port import Deployment, ProtocolName, UpstreamBroken, UpstreamUnreachable
from tests.fake_provider import FakeProvider
from tests.gateway.litellm_calls import call, deployment, events_of_stream

pytestmark = pytest.mark.filterwarnings("ignore")

PROTOCOLS: list[ProtocolName] = ["chat", "responses", "messages"]
USAGE = {"usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 2, "totalTokenCount": 10}}


def gemini(provider: FakeProvider, **params: Any) -> Deployment:
    return deployment(provider, "gemini", **{"api_base": provider.url, **params})


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    return {"candidates": [{**candidate, "finishReason": reason} if reason else candidate]}


def stream_of(*events: dict[str, Any]) -> str:
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    return head + "".join(f"data: {json.dumps(event)}\n\n" for event in events)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("status", "form"), [(429, "json"), (400, "json"), (502, "html")])
async def test_error_of_a_stream_request_keeps_its_status_and_message(
    provider: FakeProvider, lane: LiteLLMLane, protocol: ProtocolName, status: int, form: Any
) -> None:
    provider.script(status=status, body=form, message="slow down", retry_after="7")
    answer = await lane.send(gemini(provider), call(protocol, stream=True))
    assert (answer.status, answer.pieces) == (status, None)
    assert answer.headers["retry-after"] == "7"
    message = json.loads(answer.body)["error"]["message"]
    assert message == "slow down" if form == "json" else "nginx says 502" in message
    assert len(provider.requests) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_stream_request_to_an_unreachable_provider_is_unreachable(
    provider: FakeProvider, lane: LiteLLMLane, protocol: ProtocolName
) -> None:
    with pytest.raises(UpstreamUnreachable):
        await lane.send(gemini(provider, api_base="http://127.0.0.1:1"), call(protocol, stream=True))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_stream_without_a_finish_reason_is_broken(
    provider: FakeProvider, lane: LiteLLMLane, protocol: ProtocolName
) -> None:
    provider.script(raw=stream_of(piece("The answer"), piece(" is")))
    answer = await lane.send(gemini(provider), call(protocol, stream=True))
    with pytest.raises(UpstreamBroken, match="ended in the middle of the answer"):
        await events_of_stream(answer)


@pytest.mark.parametrize(
    "last", [[piece(" time", "STOP") | USAGE], [piece(" time", "STOP"), USAGE]], ids=["in", "after"]
)
async def test_stream_with_a_finish_reason_is_complete_wherever_its_usage_is(
    provider: FakeProvider, lane: LiteLLMLane, last: list[dict[str, Any]]
) -> None:
    provider.script(raw=stream_of(piece("The"), *last))
    answer = await lane.send(gemini(provider), call("chat", stream=True, stream_options={"include_usage": True}))
    events = [data for _, data in await events_of_stream(answer)]
    reasons = [choice.get("finish_reason") for event in events for choice in event["choices"]]
    assert [reason for reason in reasons if reason] == ["stop"]
    assert [event["usage"]["completion_tokens"] for event in events if event.get("usage")] == [2]


@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
async def test_redirect_is_reported_as_one(
    provider: FakeProvider, lane: LiteLLMLane, name: str, streamed: bool
) -> None:
    provider.script(redirect=f"{provider.url}/elsewhere")
    entry = gemini(provider) if name == "gemini" else deployment(provider, name)
    with pytest.raises(UpstreamBroken, match="307; redirects are never followed"):
        await lane.send(entry, call("chat", stream=streamed))


COHERE_EVENTS: list[dict[str, Any]] = [
    {"type": "message-start", "id": "1", "delta": {"message": {"role": "assistant", "content": []}}},
    {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "The"}}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": " time"}}}},
    {"type": "content-end", "index": 0},
    {
        "type": "message-end",
        "delta": {"finish_reason": "MAX_TOKENS", "usage": {"tokens": {"input_tokens": 8, "output_tokens": 2}}},
    },
]


def lines_of(events: list[dict[str, Any]], *, is_sse: bool) -> str:
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/stream+json\r\nconnection: close\r\n\r\n"
    if is_sse:
        return head + "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return head + "".join(f"{json.dumps(event)}\n" for event in events)


@pytest.mark.parametrize("is_sse", [False, True], ids=["lines", "events"])
async def test_coheres_stream_has_its_text_finish_reason_and_usage(
    provider: FakeProvider, lane: LiteLLMLane, is_sse: bool
) -> None:
    provider.script(raw=lines_of(COHERE_EVENTS, is_sse=is_sse))
    entry = deployment(provider, "cohere_chat", api_base=f"{provider.url}/v2/chat")
    answer = await lane.send(entry, call("chat", stream=True, stream_options={"include_usage": True}))
    events = [data for _, data in await events_of_stream(answer)]
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "The time"
    assert [choice["finish_reason"] for choice in choices if choice.get("finish_reason")] == ["length"]
    (usage,) = [event["usage"] for event in events if event.get("usage")]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (8, 2)


async def test_coheres_stream_without_its_last_event_is_broken(provider: FakeProvider, lane: LiteLLMLane) -> None:
    provider.script(raw=lines_of(COHERE_EVENTS[:-1], is_sse=False))
    entry = deployment(provider, "cohere_chat", api_base=f"{provider.url}/v2/chat")
    answer = await lane.send(entry, call("chat", stream=True))
    with pytest.raises(UpstreamBroken, match="ended in the middle of the answer"):
        await events_of_stream(answer)


def openai_lines(*texts: str, reason: str | None = "stop") -> str:
    head: dict[str, object] = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices: list[object] = [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in texts]
    choices += [{"index": 0, "delta": {}, "finish_reason": reason}] if reason else []
    return stream_of(*({**head, "choices": [choice]} for choice in choices)) + "data: [DONE]\n\n"


@pytest.mark.parametrize("name", ["hosted_vllm", "mistral", "openai"])
async def test_text_that_mentions_done_does_not_end_the_stream(
    provider: FakeProvider, lane: LiteLLMLane, name: str
) -> None:
    texts = ["It ends with ", "[DONE]", " and nothing else."]
    provider.script(raw=openai_lines(*texts))
    answer = await lane.send(deployment(provider, name), call("chat", stream=True))
    choices = [choice for _, event in await events_of_stream(answer) for choice in event["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "".join(texts)


@pytest.mark.parametrize("name", ["hosted_vllm", "mistral", "openai"])
@pytest.mark.parametrize("before", ["", 'data: {"choices": [{"delta": {"con\n\n'], ids=["alone", "after garbage"])
async def test_stream_of_nothing_but_done_is_broken(
    provider: FakeProvider, lane: LiteLLMLane, name: str, before: str
) -> None:
    provider.script(raw=stream_of() + before + "data: [DONE]\n\n")
    answer = await lane.send(deployment(provider, name), call("chat", stream=True))
    with pytest.raises(UpstreamBroken):
        await events_of_stream(answer)
