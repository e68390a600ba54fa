"""Calls through the LiteLLM lane, and reading their answers."""

from __future__ import annotations

import json
from typing import Any

from gateway.upstream.port import Deployment, ProtocolName, Timeouts, UpstreamAnswer, UpstreamCall
from tests.fake_provider import FakeProvider

KEY = "sk-canary-0123456789"
TIMEOUTS = Timeouts(first_byte_ms=20_000)  # the first test waits for the import
BODIES: dict[ProtocolName, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 30},
    "completions": {"prompt": "hi", "max_tokens": 30},
    "responses": {"input": "hi", "max_output_tokens": 30},
    "messages": {"max_tokens": 30, "messages": [{"role": "user", "content": "hi"}]},
    "embeddings": {"input": ["one two", "three"]},
    "moderations": {"input": "hi"},
    "images": {"prompt": "a cat"},
    "speech": {"input": "hi", "voice": "alloy"},
    "transcriptions": {"file": ("talk.mp3", b"ID3", "audio/mpeg")},
    "rerank": {"query": "a", "documents": ["b"]},
}
TEXT_PROTOCOLS: list[ProtocolName] = ["chat", "completions", "responses", "messages"]


def deployment(provider: FakeProvider, name: str = "openai", **params: Any) -> Deployment:
    base, model = (provider.anthropic_url, "claude-x") if name == "anthropic" else (provider.openai_url, "gpt-x")
    return Deployment("m/0", "m", name, model, "litellm", {"api_base": base, "api_key": KEY, **params}, {})


def call(protocol: ProtocolName = "chat", *, stream: bool = False, **fields: Any) -> UpstreamCall:
    body = {"model": "m", **BODIES[protocol], **fields}
    return UpstreamCall(protocol, body, stream, headers={"x-team": "a"}, timeouts=TIMEOUTS)


async def events_of_stream(answer: UpstreamAnswer) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of the events, without the final `[DONE]` of OpenAI's streams, which is checked."""
    assert answer.pieces is not None
    text = b"".join([piece async for piece in answer.pieces]).decode()
    assert text.endswith("\n\n")
    events = []
    for block in text.strip().split("\n\n"):
        name, _, data = block.rpartition("data: ")
        if data == "[DONE]":
            assert text.endswith("data: [DONE]\n\n")
            continue
        events.append((name.strip().removeprefix("event: "), json.loads(data)))
    return events
