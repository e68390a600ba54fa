"""Whole answers through the LiteLLM lane in which the provider reports no usage."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from gateway.upstream.litellm_lane import LiteLLMLane
from gateway.upstream.port import Deployment, ProtocolName
from gateway.wire.protocols import PROTOCOLS
from tests.fake_provider import FakeProvider
from tests.gateway.litellm_calls import KEY, call

pytestmark = pytest.mark.filterwarnings("ignore")

TEXT: Final = "The time is ten."
MESSAGE: Final = {"role": "assistant", "content": TEXT}
PARTS: Final = {"role": "assistant", "content": [{"type": "text", "text": TEXT}]}
CHAT: Final = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
}
CLAUDE: Final = {"id": "m", "type": "message", "model": "m", "stop_reason": "end_turn", **PARTS}
GEMINI: Final = {"candidates": [{"content": {"parts": [{"text": TEXT}]}, "finishReason": "STOP", "index": 0}]}
CONVERSE: Final = {
    "output": {"message": {"role": "assistant", "content": [{"text": TEXT}]}},
    "stopReason": "end_turn",
    "metrics": {},
}
ANSWERS: Final[dict[str, dict[str, Any]]] = {
    "gemini/gemini-2.0-flash": GEMINI,
    "bedrock/converse/amazon.nova-lite-v1:0": CONVERSE,
    "bedrock/invoke/anthropic.claude-3-haiku-20240307-v1:0": CLAUDE,
    "anthropic/claude-3-haiku": CLAUDE,
    "cohere_chat/v2/command-r": {"id": "c", "finish_reason": "COMPLETE", "message": PARTS},
    "databricks/dbrx": CHAT,
    "fireworks_ai/llama": CHAT,
    "groq/llama": CHAT,
    "openai/gpt-4o": CHAT,
}
# These speak the protocol themselves.
NATIVE: Final = (
    ("anthropic/claude-3-haiku", "messages"),
    ("openai/gpt-4o", "responses"),
    ("fireworks_ai/llama", "responses"),
)
PROTOCOL_NAMES: Final[tuple[ProtocolName, ...]] = ("chat", "messages", "responses")
TRANSLATED: Final[list[tuple[str, ProtocolName]]] = [
    (name, protocol) for name in ANSWERS for protocol in PROTOCOL_NAMES if (name, protocol) not in NATIVE
]


def _deployment(provider: FakeProvider, name: str) -> Deployment:
    company, _, model = name.partition("/")
    params = {"api_base": provider.url, "api_key": KEY}
    if company == "bedrock":
        params = {"aws_bedrock_runtime_endpoint": provider.url, "aws_region_name": "us-east-1"}
        params |= {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    return Deployment("m/0", "m", company, model, "litellm", params, {})


@pytest.mark.parametrize(("name", "protocol"), TRANSLATED)
async def test_whole_answer_without_usage_arrives_and_reports_none(
    provider: FakeProvider, lane: LiteLLMLane, name: str, protocol: ProtocolName
) -> None:
    body = json.dumps(ANSWERS[name])
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    provider.script(raw=head + body)
    answer = await lane.send(_deployment(provider, name), call(protocol))
    wire = next(item for item in PROTOCOLS.values() if item.name == protocol)
    value = json.loads(answer.body)
    assert (answer.status, wire.output_text(value), wire.usage(value)) == (200, TEXT, None)
