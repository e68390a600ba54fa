"""A client of one protocol and a model of another: translated both ways, buffered and streamed, within the budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.acceptance.serving import Served
from tests.clients.serving_clients import RUN_TOKENS, TOOL_ARGUMENTS, refusals, roomy, run_of, tiny

pytestmark = pytest.mark.xdist_group("clients-crossing")

TEXT = "time people way"
QUESTION: Any = [{"role": "user", "content": "What is the weather in Bremen?"}]
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OF_MESSAGES: Any = [{"name": "weather", "description": "The weather of a city", "input_schema": SCHEMA}]
OF_RESPONSES: Any = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]


@pytest.fixture
def claude(served: Served) -> Iterator[anthropic.Anthropic]:
    """Anthropic's client."""
    with anthropic.Anthropic(base_url=served.gateway.url, api_key="local") as opened:
        yield opened


@pytest.fixture
def gpt(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.gateway.url + "/v1", api_key="local") as opened:
        yield opened


def settled(served: Served, run: str) -> int:
    return int(run_of(served, run)["tokens"]["settled"])


# ── Messages, with a model of OpenAI ──


def message(client: anthropic.Anthropic, run: str, stream: bool, **fields: Any) -> anthropic.types.Message:
    request: Any = {"model": "fake", "max_tokens": 100, "messages": QUESTION, "extra_headers": roomy(run), **fields}
    if not stream:
        answer: anthropic.types.Message = client.messages.create(**request)
        return answer
    with client.messages.stream(**request) as opened:
        return opened.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
def test_message_from_an_openai_model_is_translated_and_charged(
    served: Served, claude: anthropic.Anthropic, stream: bool
) -> None:
    served.provider.script(text=TEXT)
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    run = f"x-message-{stream}"
    answer = message(claude, run, stream, system=system, stop_sequences=["END"])
    assert [block.text for block in answer.content if block.type == "text"] == [TEXT]
    assert answer.stop_reason == "end_turn"
    assert settled(served, run) == answer.usage.input_tokens + answer.usage.output_tokens > 0
    assert served.last.path == "/v1/chat/completions"
    assert [sent["role"] for sent in served.last.body["messages"]] == ["system", "user"]
    assert "Be brief." in json.dumps(served.last.body["messages"][0])


@pytest.mark.parametrize("stream", [False, True])
def test_message_tool_call_and_result_are_translated_for_an_openai_model(
    served: Served, claude: anthropic.Anthropic, stream: bool
) -> None:
    run = f"x-message-tool-{stream}"
    served.provider.script(tool="weather", arguments=TOOL_ARGUMENTS)
    first = message(claude, run, stream, tools=OF_MESSAGES)
    block = first.content[0]
    assert (block.type, first.stop_reason) == ("tool_use", "tool_use")
    assert block.type == "tool_use"
    assert (block.name, block.input) == ("weather", {"city": "Bremen"})
    result: Any = {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
    history: Any = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    served.provider.script(text=TEXT)
    second = message(claude, run, stream, tools=OF_MESSAGES, messages=history)
    assert [block.text for block in second.content if block.type == "text"] == [TEXT]
    assert "rain" in json.dumps(served.last.body)
    assert run_of(served, run)["requests"]["settled"] == 2


def test_max_tokens_of_a_message_reaches_an_openai_model(served: Served, claude: anthropic.Anthropic) -> None:
    served.provider.script(tokens=500)
    answer = message(claude, "x-message-cap", False, max_tokens=40)
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 40


def test_refused_message_is_not_retried(served: Served, claude: anthropic.Anthropic) -> None:
    before = refusals(served)
    with pytest.raises(anthropic.APIStatusError, match="run 'x-refused'") as caught:
        message(claude, "x", False, extra_headers=tiny("x-refused"))
    assert caught.value.status_code == 402
    assert (refusals(served) - before, served.seen()) == (1, 0)


# ── Responses, with a model of Anthropic ──


def response(client: openai.OpenAI, run: str, stream: bool, **fields: Any) -> Any:
    request: Any = {"model": "claude", "input": QUESTION, "extra_headers": roomy(run), **fields}
    if not stream:
        return client.responses.create(**request)
    with client.responses.stream(**request) as opened:
        return opened.get_final_response()


@pytest.mark.parametrize("stream", [False, True])
def test_response_from_an_anthropic_model_is_translated_and_charged(
    served: Served, gpt: openai.OpenAI, stream: bool
) -> None:
    served.provider.script(text=TEXT)
    run = f"x-response-{stream}"
    answer = response(gpt, run, stream, instructions="Be brief.", max_output_tokens=100)
    assert (answer.output_text, answer.status) == (TEXT, "completed")
    assert served.last.body["max_tokens"] == 100
    assert "Be brief." in json.dumps(served.last.body["system"])
    assert settled(served, run) == answer.usage.total_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_response_tool_call_and_result_are_translated_for_an_anthropic_model(
    served: Served, gpt: openai.OpenAI, stream: bool
) -> None:
    run = f"x-response-tool-{stream}"
    served.provider.script(tool="weather", arguments=TOOL_ARGUMENTS)
    first = response(gpt, run, stream, tools=OF_RESPONSES)
    call = next(item for item in first.output if item.type == "function_call")
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Bremen"})
    tool_call: Any = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    served.provider.script(text=TEXT)
    second = response(gpt, run, stream, tools=OF_RESPONSES, input=[*QUESTION, tool_call, result])
    assert second.output_text == TEXT
    assert served.last.body["messages"][-1]["content"][0]["type"] == "tool_result"
    assert run_of(served, run)["requests"]["settled"] == 2


def test_response_stream_from_an_anthropic_model_has_openai_events(served: Served, gpt: openai.OpenAI) -> None:
    served.provider.script(text=TEXT)
    with gpt.responses.create(
        model="claude", input=QUESTION, stream=True, extra_headers=roomy("x-response-events")
    ) as events:
        kinds: list[str] = [event.type for event in events]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert kinds.count("response.output_text.delta") >= 1
    order = [kinds.index(f"response.{name}") for name in ("output_item.added", "output_text.delta", "output_text.done")]
    assert order == sorted(order)


def test_previous_response_id_with_an_anthropic_model_is_refused(served: Served, gpt: openai.OpenAI) -> None:
    first = response(gpt, "x-response-earlier", False)
    served.provider.requests.clear()
    with pytest.raises(openai.BadRequestError, match="keeps no earlier answers for 'previous_response_id'") as caught:
        response(gpt, "x-response-earlier", False, previous_response_id=first.id)
    assert caught.value.code == "unsupported_field"
    assert served.seen() == 0
    assert run_of(served, "x-response-earlier")["tokens"]["reserved"] == 0


# ── chat, with a model of Anthropic ──


def test_unsupported_parameter_is_refused_naming_drop_params(served: Served, gpt: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"parameters: .'seed'.*litellm_settings\.drop_params") as caught:
        gpt.chat.completions.create(model="claude", messages=QUESTION, seed=3, extra_headers=roomy("x-chat-seed"))
    assert "allowed_openai_params" not in str(caught.value), "a field that no client may send"
    assert served.seen() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_chat_tool_call_from_an_anthropic_model_is_translated_and_charged(
    served: Served, gpt: openai.OpenAI, stream: bool
) -> None:
    run = f"x-chat-{stream}"
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    served.provider.script(tool="weather", arguments=TOOL_ARGUMENTS)
    request: Any = {"model": "claude", "messages": QUESTION, "tools": tools, "extra_headers": roomy(run)}
    if stream:
        with gpt.chat.completions.stream(**request) as opened:
            answer: Any = opened.get_final_completion()
    else:
        answer = gpt.chat.completions.create(**request)
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Bremen"})
    assert 0 < settled(served, run) < RUN_TOKENS
