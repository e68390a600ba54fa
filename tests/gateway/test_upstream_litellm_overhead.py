"""Work of LiteLLM that the lane avoids: records that nobody reads, prices, and the transformation of plain requests."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.upstream.litellm_lane import LiteLLMLane
from gateway.upstream.port import ProtocolName
from tests.fake_provider import FakeProvider
from tests.gateway.litellm_calls import TEXT_PROTOCOLS, call, deployment, events_of_stream

pytestmark = pytest.mark.filterwarnings("ignore")  # LiteLLM emits its own warnings


@pytest.mark.parametrize("name", ["openai", "anthropic"])
@pytest.mark.parametrize("protocol", TEXT_PROTOCOLS)
@pytest.mark.parametrize("stream", [False, True])
async def test_litellm_records_no_calls(
    provider: FakeProvider,
    lane: LiteLLMLane,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    protocol: ProtocolName,
    stream: bool,
) -> None:
    """LiteLLM would record every call, in its own tasks and queues, for callbacks that do not exist."""
    import litellm.utils
    from litellm.litellm_core_utils import litellm_logging

    records: list[str] = []

    async def queue(*_given: Any, **_fields: Any) -> None:
        records.append("queued")

    monkeypatch.setattr(litellm.utils, "_client_async_logging_helper", queue)
    monkeypatch.setattr(
        litellm_logging, "get_standard_logging_object_payload", lambda *_given, **_fields: records.append("recorded")
    )
    answer = await lane.send(deployment(provider, name), call(protocol, stream=stream))
    if stream:
        await events_of_stream(answer)
    await asyncio.sleep(0.05)  # for its background tasks
    assert records == []


async def test_litellm_computes_no_price(
    provider: FakeProvider, lane: LiteLLMLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    monkeypatch.setattr(litellm, "response_cost_calculator", lambda **_fields: pytest.fail("a price was looked up"))
    answer = await lane.send(deployment(provider), call())
    assert answer.status == 200
    assert json.loads(answer.body)["usage"]["total_tokens"] > 0


def costs(value: Any) -> list[Any]:
    """Every `cost` anywhere in an answer."""
    if isinstance(value, list):
        return [cost for item in value for cost in costs(item)]
    if not isinstance(value, dict):
        return []
    own = [value["cost"]] if "cost" in value else []
    return own + [cost for item in value.values() for cost in costs(item)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", TEXT_PROTOCOLS)
@pytest.mark.parametrize(("name", "model"), [("openai", "gpt-4o"), ("anthropic", "claude-sonnet-4-5")])
async def test_answer_has_no_cost_unless_the_provider_gave_one(
    provider: FakeProvider, lane: LiteLLMLane, name: str, model: str, protocol: ProtocolName, stream: bool
) -> None:
    priced = replace(deployment(provider, name), model=model)
    answer = await lane.send(priced, call(protocol, stream=stream, **usage_asked(protocol, stream)))
    received = [data for _, data in await events_of_stream(answer)] if stream else json.loads(answer.body)
    assert '"usage"' in json.dumps(received)
    assert costs(received) == []


async def test_cost_given_by_the_provider_is_passed_on(provider: FakeProvider, lane: LiteLLMLane) -> None:
    usage = {"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11, "cost": 0.25}
    provider.script(times=2, usage_json=json.dumps(usage))
    answer = await lane.send(deployment(provider), call(stream=True, **usage_asked("chat", True)))
    assert set(costs([data for _, data in await events_of_stream(answer)])) == {0.25}


def usage_asked(protocol: ProtocolName, stream: bool) -> dict[str, Any]:
    """The fields with which the gateway always requests usage."""
    return {"stream_options": {"include_usage": True}} if stream and protocol in ("chat", "completions") else {}


# Every kind of message and content part.
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {"role": "developer", "content": [{"type": "text", "text": "and kind"}]},
    {
        "role": "user",
        "name": "ann",
        "content": [
            {"type": "text", "text": "what is it? ä"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "a cat", "odd": [None, 1.5]},
    {"role": "user", "content": "so?"},
]


async def test_plain_request_equals_the_one_of_the_openai_client(
    provider: FakeProvider, lane: LiteLLMLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openai._utils import async_maybe_transform
    from openai.resources.chat.completions import completions

    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    schema = {"name": "s", "schema": {"type": "object"}}
    fields: dict[str, Any] = {
        "messages": CONVERSATION,
        "tools": tools,
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "response_format": {"type": "json_schema", "json_schema": schema},
        "logit_bias": {"5": 1},
        "stop": ["a"],
        "metadata": {"a": "b"},
    }
    await lane.send(deployment(provider), call(**fields))
    sent = provider.last.body
    assert len(sent["messages"]) == len(CONVERSATION)
    monkeypatch.setattr(completions, "async_maybe_transform", async_maybe_transform)
    await lane.send(deployment(provider), call(**fields))
    assert list(provider.last.body.items()) == list(sent.items())


async def test_plain_request_skips_the_openai_clients_transformation(
    lane: LiteLLMLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openai import omit
    from openai._utils import _transform
    from openai.resources.chat.completions import completions
    from openai.types.chat import ChatCompletionMessage
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

    async def sent(message: Any) -> Any:
        fields = {"messages": [message], "seed": omit}
        return await vars(completions)["async_maybe_transform"](fields, CompletionCreateParamsNonStreaming)

    message = ChatCompletionMessage(role="assistant", content="hi")
    assert await sent(message) == {"messages": [{"role": "assistant", "content": "hi"}]}
    monkeypatch.setattr(_transform, "_async_transform_recursive", None)
    assert await sent({"role": "user", "content": "hi"}) == {"messages": [{"role": "user", "content": "hi"}]}
