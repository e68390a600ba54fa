"""openai-python, as people use it: chat, responses, embeddings, completions, helpers for streams, shapes and tools; sync and async."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.acceptance.serving import Served
from tests.clients.serving_clients import RUN_TOKENS, TINY_TOKENS, TOOL_ARGUMENTS, refusals, roomy, run_of, tiny

pytestmark = pytest.mark.xdist_group("clients-openai-python")

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Bremen?"}]
TEXT = "time people way"
CHAT_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
RESPONSES_TOOL: Any = {"type": "function", **CHAT_TOOL["function"]}


class Place(pydantic.BaseModel):
    city: str


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.gateway.url + "/v1", api_key="local") as opened:
        yield opened


@pytest.fixture
async def async_client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=served.gateway.url + "/v1", api_key="local") as opened:
        yield opened


# ── chat ──


def test_chat_is_charged_to_its_run_budget(served: Served, client: openai.OpenAI) -> None:
    served.provider.script(text=TEXT)
    raw = client.chat.completions.with_raw_response.create(
        model="fake", messages=MESSAGES, extra_headers=roomy("o-chat")
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == TEXT
    assert answer.usage is not None
    assert raw.headers["x-budget-run-remaining"] == str(RUN_TOKENS - answer.usage.total_tokens)
    assert answer._request_id == raw.headers["x-request-id"]
    shown = run_of(served, "o-chat")
    assert shown["tokens"]["settled"] == answer.usage.total_tokens
    assert served.seen() == 1


def test_metadata_tags_a_call(served: Served, client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="fake", messages=MESSAGES, metadata={"workflow_id": "roomy", "run_id": "o-meta", "step": "draft"}
    )
    assert run_of(served, "o-meta")["workflow"] == "roomy"
    assert "metadata" not in served.last.body


@pytest.mark.parametrize("ignored", [False, True], ids=["streamed", "buffered by the provider"])
def test_chat_stream_has_no_usage_unless_asked_for(served: Served, client: openai.OpenAI, ignored: bool) -> None:
    served.provider.script(text=TEXT, ignore_stream=ignored)
    with client.chat.completions.create(
        model="fake", messages=MESSAGES, stream=True, extra_headers=roomy(f"o-stream-{ignored}")
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert all(chunk.usage is None for chunk in chunks), "usage reaches only those who asked"
    assert run_of(served, f"o-stream-{ignored}")["tokens"]["settled"] > 0


def test_chat_stream_with_include_usage_ends_with_the_charged_usage(served: Served, client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="fake",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers=roomy("o-usage"),
    ) as stream:
        *_, last = stream
    assert last.usage is not None
    assert run_of(served, "o-usage")["tokens"]["settled"] == last.usage.total_tokens


def test_chat_stream_helper_yields_tool_call_events(served: Served, client: openai.OpenAI) -> None:
    served.provider.script(tool="weather", arguments=TOOL_ARGUMENTS)
    with client.chat.completions.stream(
        model="fake", messages=MESSAGES, tools=[CHAT_TOOL], extra_headers=roomy("o-helper")
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.arguments == TOOL_ARGUMENTS


def test_chat_tool_call_and_its_result_are_passed_on(served: Served, client: openai.OpenAI) -> None:
    served.provider.script(tool="weather", arguments=TOOL_ARGUMENTS)
    first = client.chat.completions.create(
        model="fake", messages=MESSAGES, tools=[CHAT_TOOL], extra_headers=roomy("o-tool")
    )
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    call = message.tool_calls[0]
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Bremen"})
    history = [*MESSAGES, message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    served.provider.script(text=TEXT)
    second = client.chat.completions.create(
        model="fake", messages=history, tools=[CHAT_TOOL], extra_headers=roomy("o-tool")
    )
    assert second.choices[0].message.content == TEXT
    assert served.last.body["tools"] == [CHAT_TOOL], "tools go upstream as they are"
    assert run_of(served, "o-tool")["requests"]["settled"] == 2


def test_chat_structured_output_is_parsed(served: Served, client: openai.OpenAI) -> None:
    served.provider.script(text='{"city":"Bremen"}')
    answer = client.chat.completions.parse(
        model="fake", messages=MESSAGES, response_format=Place, extra_headers=roomy("o-parse")
    )
    assert answer.choices[0].message.parsed == Place(city="Bremen")
    assert served.last.body["response_format"]["json_schema"]["schema"]["required"] == ["city"]


# ── responses ──


def test_response_is_charged_to_its_run_budget(served: Served, client: openai.OpenAI) -> None:
    served.provider.script(text=TEXT)
    answer = client.responses.create(
        model="fake", input="What is the weather?", instructions="Be brief.", extra_headers=roomy("o-responses")
    )
    assert answer.output_text == TEXT
    assert answer.usage is not None
    assert run_of(served, "o-responses")["tokens"]["settled"] == answer.usage.total_tokens


@pytest.mark.parametrize("ignored", [False, True], ids=["streamed", "buffered by the provider"])
def test_streamed_response_is_complete_and_charged(served: Served, client: openai.OpenAI, ignored: bool) -> None:
    served.provider.script(text=TEXT, ignore_stream=ignored)
    with client.responses.stream(
        model="fake", input="What is the weather?", extra_headers=roomy(f"o-responses-stream-{ignored}")
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert final.output_text == TEXT
    assert final.usage is not None
    assert run_of(served, f"o-responses-stream-{ignored}")["tokens"]["settled"] == final.usage.total_tokens


def test_response_tool_call_and_its_result_are_passed_on(served: Served, client: openai.OpenAI) -> None:
    served.provider.script(tool="weather", arguments=TOOL_ARGUMENTS)
    first = client.responses.create(
        model="fake", input="Weather?", tools=[RESPONSES_TOOL], extra_headers=roomy("o-responses-tool")
    )
    call = first.output[0]
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Bremen"}
    served.provider.script(text=TEXT)
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    second = client.responses.create(
        model="fake",
        previous_response_id=first.id,
        input=result,
        tools=[RESPONSES_TOOL],
        extra_headers=roomy("o-responses-tool"),
    )
    assert second.output_text == TEXT
    assert served.last.body["previous_response_id"] == first.id


def test_response_structured_output_is_parsed(served: Served, client: openai.OpenAI) -> None:
    served.provider.script(text='{"city":"Bremen"}')
    answer = client.responses.parse(
        model="fake", input="Where?", text_format=Place, extra_headers=roomy("o-responses-parse")
    )
    assert answer.output_parsed == Place(city="Bremen")


# ── the rest ──


def test_embeddings_are_charged_to_their_run(served: Served, client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model="embedder", input=["time", "people way"], encoding_format="float", extra_headers=roomy("o-embed")
    )
    assert [len(item.embedding) for item in answer.data] == [8, 8]
    assert run_of(served, "o-embed")["tokens"]["settled"] == answer.usage.total_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_completion_is_returned_buffered_and_streamed(served: Served, client: openai.OpenAI, stream: bool) -> None:
    served.provider.script(text=TEXT)
    answer: Any = client.completions.create(
        model="fake", prompt="Once upon a", max_tokens=9, stream=stream, extra_headers=roomy(f"o-complete-{stream}")
    )
    parts = list(answer) if stream else [answer]
    assert "".join(part.choices[0].text for part in parts if part.choices) == TEXT


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert {item.id for item in client.models.list()} == {"fake", "embedder", "claude"}


def test_model_is_retrieved_or_raises_not_found(client: openai.OpenAI) -> None:
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("openai/nobody")
    assert missing.value.code == "model_not_found"


# ── async ──


async def test_async_chat_and_stream_are_charged(served: Served, async_client: openai.AsyncOpenAI) -> None:
    served.provider.script(text=TEXT, times=2)
    answer = await async_client.chat.completions.create(model="fake", messages=MESSAGES, extra_headers=roomy("o-async"))
    assert answer.choices[0].message.content == TEXT
    async with await async_client.chat.completions.create(
        model="fake", messages=MESSAGES, stream=True, extra_headers=roomy("o-async")
    ) as stream:
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == TEXT
    assert run_of(served, "o-async")["requests"]["settled"] == 2


async def test_async_response_stream_is_complete(served: Served, async_client: openai.AsyncOpenAI) -> None:
    served.provider.script(text=TEXT)
    async with async_client.responses.stream(
        model="fake", input="Weather?", extra_headers=roomy("o-async-responses")
    ) as stream:
        final = await stream.get_final_response()
    assert final.output_text == TEXT


# ── refusals: typed, once, and naming the budget ──

_Ask = Callable[[openai.OpenAI, dict[str, str]], Any]
ASKS: dict[str, _Ask] = {
    "chat": lambda client, headers: client.chat.completions.create(
        model="fake", messages=MESSAGES, extra_headers=headers
    ),
    "chat stream": lambda client, headers: client.chat.completions.create(
        model="fake", messages=MESSAGES, stream=True, extra_headers=headers
    ),
    "responses": lambda client, headers: client.responses.create(model="fake", input="hi", extra_headers=headers),
    "embeddings": lambda client, headers: client.embeddings.create(
        model="embedder", input="time " * 50, extra_headers=headers
    ),
    "completions": lambda client, headers: client.completions.create(
        model="fake", prompt="time " * 50, extra_headers=headers
    ),
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_refusal_raises_api_status_error_after_one_request(served: Served, client: openai.OpenAI, ask: _Ask) -> None:
    before = refusals(served)
    with pytest.raises(openai.APIStatusError, match="run 'o-refused'") as caught:
        ask(client, tiny("o-refused"))
    error = caught.value
    assert error.status_code == 402
    assert error.code in ("run_budget_exceeded", "request_exceeds_budget")
    assert error.type == "budget_exceeded"
    assert error.body is not None
    assert error.body["metadata"]["limit"] == TINY_TOKENS  # type: ignore[index]
    assert error.request_id == error.body["metadata"]["request_id"]  # type: ignore[index]
    assert refusals(served) - before == 1
    assert served.seen() == 0


def test_exhausted_day_window_raises_rate_limit_error_without_a_retry(served: Served, client: openai.OpenAI) -> None:
    headers = {"x-workflow-id": "by-day"}
    client.chat.completions.create(model="fake", messages=MESSAGES, extra_headers=headers)
    before = refusals(served)
    with pytest.raises(openai.RateLimitError, match="Workflow 'by-day'") as caught:
        client.chat.completions.create(model="fake", messages=MESSAGES, extra_headers=headers)
    assert caught.value.code == "workflow_budget_exceeded"
    if int(caught.value.response.headers["retry-after"]) > 60:  # in the last minute of the day the SDK may retry
        assert refusals(served) - before == 1


async def test_async_refusal_raises_api_status_error_after_one_request(
    served: Served, async_client: openai.AsyncOpenAI
) -> None:
    before = refusals(served)
    with pytest.raises(openai.APIStatusError, match="run 'o-async-refused'"):
        await async_client.chat.completions.create(
            model="fake", messages=MESSAGES, extra_headers=tiny("o-async-refused")
        )
    assert refusals(served) - before == 1


def test_unknown_model_and_denied_field_raise_their_own_error_types(served: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="fake", messages=MESSAGES, extra_body={"api_base": "http://elsewhere"})
    assert wrong.value.param == "api_base"
    assert served.seen() == 0
