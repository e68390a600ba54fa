"""anthropic-python, as people use it: messages, streams, tools, counting; sync and async."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest

from tests.acceptance.serving import Served
from tests.clients.serving_clients import RUN_TOKENS, TINY_TOKENS, TOOL_ARGUMENTS, refusals, roomy, run_of, tiny

pytestmark = pytest.mark.xdist_group("clients-anthropic-python")

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Bremen?"}]
TEXT = "time people way"
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CACHED: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]


@pytest.fixture
def client(served: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.gateway.url, api_key="local") as opened:
        yield opened


@pytest.fixture
async def async_client(served: Served) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=served.gateway.url, api_key="local") as opened:
        yield opened


def test_message_is_charged_to_its_run_budget(served: Served, client: anthropic.Anthropic) -> None:
    served.provider.script(text=TEXT)
    raw = client.messages.with_raw_response.create(
        model="claude", max_tokens=100, system=CACHED, messages=MESSAGES, extra_headers=roomy("a-plain")
    )
    answer = raw.parse()
    block = answer.content[0]
    assert block.type == "text"
    assert block.text == TEXT
    used = answer.usage.input_tokens + answer.usage.output_tokens
    assert raw.headers["x-budget-run-remaining"] == str(RUN_TOKENS - used)
    assert run_of(served, "a-plain")["tokens"]["settled"] == used
    assert served.last.body["system"] == CACHED, "cache marks go upstream as they are"
    assert served.last.headers["anthropic-version"]
    assert served.last.credential == "upstream-key"


@pytest.mark.parametrize("ignored", [False, True], ids=["streamed", "buffered by the provider"])
def test_streamed_message_is_complete_and_charged(served: Served, client: anthropic.Anthropic, ignored: bool) -> None:
    served.provider.script(text=TEXT, ignore_stream=ignored)
    with client.messages.stream(
        model="claude", max_tokens=100, messages=MESSAGES, extra_headers=roomy(f"a-stream-{ignored}")
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == TEXT
    assert final.stop_reason == "end_turn"
    used = final.usage.input_tokens + final.usage.output_tokens
    assert run_of(served, f"a-stream-{ignored}")["tokens"]["settled"] == used


def test_raw_stream_begins_with_message_start_and_ends_with_message_stop(
    served: Served, client: anthropic.Anthropic
) -> None:
    with client.messages.create(
        model="claude", max_tokens=100, messages=MESSAGES, stream=True, extra_headers=roomy("a-events")
    ) as stream:
        kinds = [event.type for event in stream]
    assert (kinds[0], kinds[-2], kinds[-1]) == ("message_start", "message_delta", "message_stop")


@pytest.mark.parametrize("stream", [False, True])
def test_tool_call_and_its_result_are_passed_on(served: Served, client: anthropic.Anthropic, stream: bool) -> None:
    run = f"a-tool-{stream}"
    asked: dict[str, Any] = {"model": "claude", "max_tokens": 100, "tools": [TOOL], "extra_headers": roomy(run)}
    served.provider.script(tool="weather", arguments=TOOL_ARGUMENTS)
    if stream:
        with client.messages.stream(messages=MESSAGES, **asked) as opened:
            first = opened.get_final_message()
    else:
        first = client.messages.create(messages=MESSAGES, **asked)
    block = first.content[0]
    assert block.type == "tool_use"
    assert (first.stop_reason, block.name, block.input) == ("tool_use", "weather", {"city": "Bremen"})
    result: anthropic.types.MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "rain"}],
    }
    served.provider.script(text=TEXT)
    second = client.messages.create(
        messages=[*MESSAGES, {"role": "assistant", "content": first.content}, result], **asked
    )
    assert second.content[0].type == "text"
    assert served.last.body["tools"] == [TOOL]
    assert run_of(served, run)["requests"]["settled"] == 2


def test_count_tokens_is_free_and_equals_the_counted_prompt(served: Served, client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="claude", messages=MESSAGES, tools=[TOOL], system="Be brief.")
    assert counted.input_tokens > 10
    assert served.seen() == 0
    raw = client.messages.with_raw_response.create(
        model="claude",
        max_tokens=100,
        messages=MESSAGES,
        tools=[TOOL],
        system="Be brief.",
        extra_headers=roomy("a-count"),
    )
    assert raw.headers["x-workflow-prompt-tokens"] == str(counted.input_tokens)


async def test_async_message_and_stream_are_charged(served: Served, async_client: anthropic.AsyncAnthropic) -> None:
    served.provider.script(text=TEXT, times=2)
    await async_client.messages.create(
        model="claude", max_tokens=100, messages=MESSAGES, extra_headers=roomy("a-async")
    )
    async with async_client.messages.stream(
        model="claude", max_tokens=100, messages=MESSAGES, extra_headers=roomy("a-async")
    ) as stream:
        text = "".join([piece async for piece in stream.text_stream])
    assert text == TEXT
    assert run_of(served, "a-async")["requests"]["settled"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_refusal_raises_payment_required_after_one_request(
    served: Served, client: anthropic.Anthropic, stream: bool
) -> None:
    before = refusals(served)
    with pytest.raises(anthropic.PaymentRequiredError, match="run 'a-refused'") as caught:
        client.messages.create(
            model="claude", max_tokens=100, messages=MESSAGES, stream=stream, extra_headers=tiny("a-refused")
        )
    error = caught.value
    body: Any = error.body
    assert (error.status_code, body["type"], body["error"]["type"]) == (402, "error", "billing_error")
    assert body["error"]["metadata"]["limit"] == TINY_TOKENS
    assert error.request_id == body["request_id"]
    assert refusals(served) - before == 1
    assert served.seen() == 0


async def test_async_refusal_raises_payment_required_after_one_request(
    served: Served, async_client: anthropic.AsyncAnthropic
) -> None:
    before = refusals(served)
    with pytest.raises(anthropic.PaymentRequiredError, match="run 'a-async-refused'"):
        await async_client.messages.create(
            model="claude", max_tokens=100, messages=MESSAGES, extra_headers=tiny("a-async-refused")
        )
    assert refusals(served) - before == 1


def test_provider_400_raises_bad_request_without_a_retry(served: Served, client: anthropic.Anthropic) -> None:
    served.provider.script(status=400, times=None)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="claude", max_tokens=100, messages=MESSAGES, extra_headers=roomy("a-wrong"))
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert served.seen() == 1


def test_models_are_listed_and_retrieved(client: anthropic.Anthropic) -> None:
    page = client.models.list()
    assert {item.id for item in page.data} == {"fake", "embedder", "claude"}
    assert not page.has_next_page()
    shown = client.models.retrieve("claude")
    assert (shown.type, shown.display_name, shown.created_at.tzinfo is None) == ("model", "claude", False)
    with pytest.raises(anthropic.NotFoundError, match="no model 'nobody'"):
        client.models.retrieve("nobody")
