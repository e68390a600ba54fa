"""Responses: requests, named events, and streams that end, are cut or fail."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import BadRequest, BudgetRefusal, StreamBroken
from gateway.wire import sse
from gateway.wire.responses import ResponsesProtocol
from policies.pricing import Usage
from tests.gateway.wire_streams import events_of, name_of, named_events, parsed, relay_of, relayed

RESPONSES = ResponsesProtocol()
CREATED = {"id": "resp_1", "object": "response", "status": "in_progress", "model": "m-1", "tools": [], "output": []}
USAGE = {
    "input_tokens": 90,
    "input_tokens_details": {"cached_tokens": 40},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 15},
    "total_tokens": 110,
}


def numbered(*values: dict[str, Any]) -> list[bytes]:
    return named_events(*({**value, "sequence_number": number} for number, value in enumerate(values)))


CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "c1",
    "name": "find",
    "arguments": "",
    "status": "in_progress",
}
SUMMARY = {"type": "summary_text", "text": "hm "}
MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}
PART = {"type": "output_text", "text": "", "annotations": []}
AT = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
DELTA = {"type": "response.output_text.delta", "delta": "more", "logprobs": []}
# A finished reasoning item, a message in the middle of its text, a call in the middle of its arguments.
HALFWAY = numbered(
    {"type": "response.created", "response": CREATED},
    {"type": "response.in_progress", "response": CREATED},
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "id": "rs_1", "summary": []}},
    {"type": "response.reasoning_summary_part.added", "output_index": 0, "summary_index": 0, "part": {"type": "summary_text", "text": ""}},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "hm "},
    {"type": "response.output_item.done", "output_index": 0, "item": {"type": "reasoning", "id": "rs_1", "summary": [SUMMARY]}},
    {"type": "response.output_item.added", "output_index": 1, "item": MESSAGE},
    {"type": "response.content_part.added", **AT, "part": PART},
    {"type": "response.output_text.delta", **AT, "delta": "Hel", "logprobs": []},
    {"type": "response.output_item.added", "output_index": 2, "item": CALL},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "output_index": 2, "delta": '{"q":'},
    {"type": "response.output_text.delta", **AT, "delta": "lo", "logprobs": []},
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "missing_field"),
        ({"input": None}, "input", "missing_field"),
        ({"input": 7}, "input", "invalid_value"),
        ({"input": {"role": "user"}}, "input", "invalid_value"),
        ({"input": ["hi"]}, "input[0]", "invalid_value"),
        ({"input": [{"role": "user", "content": "x"}] * 20_001}, "input", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": 1.0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": True}, "max_output_tokens", "invalid_value"),
        ({"stream": "true"}, "stream", "invalid_value"),
        ({"background": True}, "background", "invalid_value"),
        ({"api_key": "k"}, "api_key", "forbidden_field"),
    ],
)
def test_invalid_request_names_its_field(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed("responses", **fields)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert json.loads(RESPONSES.error_body(refused.value))["error"]["code"] == code


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""},
        {"input": []},
        {"input": None, "previous_response_id": "resp_0"},
        {"input": None, "conversation": {"id": "conv_1"}},
        {"input": None, "prompt": {"id": "pmpt_1"}},
        {"background": False},
    ],
)
def test_input_may_be_empty_or_stored_at_the_provider(fields: dict[str, Any]) -> None:
    assert parsed("responses", **fields).model == "m"


def test_other_fields_are_forwarded_unchanged() -> None:
    fields = {
        "previous_response_id": "resp_0",
        "reasoning": {"effort": "high", "summary": "auto"},
        "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "web_search"}],
        "text": {"format": {"type": "json_schema", "name": "s", "schema": {}}},
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "metadata": {"workflow_id": "w"},
        "brand_new": [1],
    }
    request = parsed("responses", **fields)
    assert request.metadata == {"workflow_id": "w"}
    assert RESPONSES.upstream_body(request, None, stream=False) == {"model": "m", "input": "say something", **fields}
    assert RESPONSES.upstream_body(request, None, stream=True)["stream"] is True


@pytest.mark.parametrize(
    ("own", "output_tokens", "sent"), [(None, 50, 50), (100, 50, 50), (30, 50, 30), (30, None, 30)]
)
def test_forwarded_body_is_capped(own: int | None, output_tokens: int | None, sent: int) -> None:
    request = parsed("responses", max_output_tokens=own)
    assert (request.output_tokens_max, request.output_tokens_min_useful) == (own, 16)
    assert RESPONSES.upstream_body(request, output_tokens, stream=False)["max_output_tokens"] == sent


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, Usage(90, 20, cache_read_tokens=40, reasoning_tokens=15)),
        ({"input_tokens": 9, "output_tokens": 2, "input_tokens_details": None}, Usage(9, 2)),
        ({"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cache_write_tokens": 5}}, Usage(9, 2, cache_write_tokens=5)),
        ({"input_tokens": 9}, None),
        ({"input_tokens": 0, "output_tokens": 0}, None),
        ({"input_tokens": -9, "output_tokens": 2}, None),
        ({"input_tokens": 10**15, "output_tokens": 2}, None),
        (None, None),
        ("x", None),
    ],
)  # fmt: skip
def test_usage_is_read_from_the_answer(usage: Any, expected: Usage | None) -> None:
    assert RESPONSES.usage({"usage": usage}) == expected


def test_output_text_includes_every_kind_of_generated_text() -> None:
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}], "content": [{"text": "b"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "c"}, {"type": "refusal", "refusal": "d"}]},
        {"type": "function_call", "name": "e", "arguments": "f"},
        {"type": "custom_tool_call", "name": "g", "input": "h"},
        {"type": "code_interpreter_call", "code": "i"},
        {"type": "web_search_call", "id": "x", "action": {"query": "not text"}},
        "odd",
    ]
    assert RESPONSES.output_text({"output": output}) == "ba\ncd\nef\ngh\ni\n"
    assert RESPONSES.output_text({"output": None}) == ""


def test_every_kind_of_delta_is_counted() -> None:
    kinds = ["output_text", "refusal", "reasoning_text", "reasoning_summary_text", "function_call_arguments"]
    kinds += ["mcp_call_arguments", "custom_tool_call_input", "code_interpreter_call_code"]
    relay, counter = relay_of("responses")
    events = numbered(*({"type": f"response.{kind}.delta", "output_index": 0, "delta": f"{kind} "} for kind in kinds))
    sound = numbered({"type": "response.audio.delta", "delta": "AAAA"})
    assert relayed(relay, events + sound) == b"".join(events + sound)
    assert "".join(counter.texts).split() == kinds


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_last_event_is_held_back_for_the_budget_comment(status: str) -> None:
    end = numbered({"type": f"response.{status}", "response": {**CREATED, "status": status, "usage": USAGE}})
    relay, _ = relay_of("responses")
    assert relayed(relay, [*HALFWAY, *end, b"data: [DONE]\n\n"]) == b"".join(HALFWAY)
    assert (relay.is_finished, relay.usage) == (True, RESPONSES.usage({"id": "resp_1", "usage": USAGE}))
    assert relay.close({"run": "r"}) == b': budget {"run":"r"}\n\n' + end[0]
    assert RESPONSES.assemble(b"".join([*HALFWAY, *end]))["status"] == status


def test_cut_closes_open_items_and_gives_the_reason() -> None:
    relay, _ = relay_of("responses")
    relayed(relay, HALFWAY)
    relay.feed(b"")
    data = relay.cut()
    closing = events_of(data + relay.close(None))
    assert [(event["type"], event.get("output_index")) for event in closing] == [
        ("response.output_text.done", 1),
        ("response.content_part.done", 1),
        ("response.output_item.done", 1),
        ("response.output_item.done", 2),
        ("response.incomplete", None),
    ]
    assert [event["sequence_number"] for event in closing] == [12, 13, 14, 15, 16]
    assert (closing[0]["text"], closing[1]["part"]["text"], closing[0]["item_id"]) == ("Hello", "Hello", "msg_1")
    response = closing[-1]["response"]
    assert response["id"] == "resp_1"
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    reasoning, message, call = response["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "hm "}]
    assert (message["status"], message["content"][0]["text"]) == ("incomplete", "Hello")
    assert (call["status"], call["arguments"]) == ("incomplete", '{"q":')
    names = [name_of(event) for event in sse.EventSplitter().feed(data)]
    assert names == [event["type"] for event in closing[:-1]]


def test_cut_before_any_event_is_a_complete_answer() -> None:
    relay, _ = relay_of("responses")
    events = events_of(relay.cut() + relay.close(None))
    assert [event["type"] for event in events] == ["response.created", "response.incomplete"]
    assert events[-1]["response"]["output"] == []


def test_unannounced_part_is_created() -> None:
    relay, _ = relay_of("responses")
    relayed(relay, numbered(
        {"type": "response.created", "response": CREATED},
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "id": "msg_1"}},
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "a"},
    ))  # fmt: skip
    relay.feed(b"")
    relay.cut()
    assert events_of(relay.close(None))[-1]["response"]["output"][0]["content"] == [{"text": "a"}]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.output_item.added", "output_index": 10**9, "item": MESSAGE},
        {"type": "response.output_item.added", "output_index": "0", "item": MESSAGE},
        {"type": "response.output_item.added", "output_index": 0, "item": None},
        {"type": "response.output_item.done", "output_index": 0},
        {"type": "response.content_part.added", "output_index": 5, "content_index": 0, "part": PART},
        {"type": "response.content_part.added", "output_index": 0, "content_index": 10**9, "part": PART},
        {"type": "response.output_text.delta", "output_index": -1, "content_index": 0, "delta": "a"},
        {"type": "response.created", "response": None},
        {"type": None},
        {"type": ["x"]},
        {},
    ],
)
def test_unexpected_events_are_relayed_and_a_cut_still_works(event: dict[str, Any]) -> None:
    odd = b"data: " + json.dumps(event).encode() + b"\n\n"
    relay, _ = relay_of("responses")
    assert relayed(relay, [*HALFWAY, odd, b": x\n\n"]) == b"".join(HALFWAY) + odd
    relay.cut()
    assert events_of(relay.close(None))[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize("event", [{"type": "response.content_part.added", "part": PART}, DELTA])
def test_large_content_index_does_not_create_parts(event: dict[str, Any]) -> None:
    """Otherwise a few such events would fill the memory."""
    relay, _ = relay_of("responses")
    far = named_events({**AT, **event, "content_index": 4_000})
    near = named_events({**AT, **DELTA, "content_index": 1})
    relayed(relay, [*HALFWAY, *far, *near, b": x\n\n"])
    relay.cut()
    item = events_of(relay.close(None))[-1]["response"]["output"][1]
    assert [part["text"] for part in item["content"]] == ["Hello", "more"]


def test_item_added_again_starts_empty() -> None:
    relay, _ = relay_of("responses")
    near = named_events({**AT, **DELTA, "content_index": 1})
    again = named_events({"type": "response.output_item.added", "output_index": 1, "item": {**MESSAGE, "content": []}})
    relayed(relay, [*HALFWAY, *near, *again, b": x\n\n"])
    relay.cut()
    assert events_of(relay.close(None))[-1]["response"]["output"][1]["content"] == []


@pytest.mark.parametrize(
    ("event", "message", "code", "usage"),
    [
        ({"type": "error", "code": "server_error", "message": "Sorry."}, "Sorry.", "server_error", None),
        (
            {"type": "error", "error": {"code": "rate_limit_exceeded", "message": "Slow."}},
            "Slow.",
            "rate_limit_exceeded",
            None,
        ),
        (
            {
                "type": "response.failed",
                "response": {"error": {"code": "server_error", "message": "No."}, "usage": USAGE},
            },
            "No.",
            "server_error",
            Usage(90, 20, cache_read_tokens=40, reasoning_tokens=15),
        ),
        (
            {"type": "response.failed", "response": None},
            "The provider ended its answer: response.failed.",
            "upstream_error",
            None,
        ),
        (
            {"type": "response.completed"},
            "The provider's last event does not contain the answer.",
            "upstream_broken",
            None,
        ),
    ],
)
def test_provider_error_breaks_the_stream_with_its_message(
    event: dict[str, Any], message: str, code: str, usage: Usage | None
) -> None:
    relay, _ = relay_of("responses")
    with pytest.raises(StreamBroken) as broken:
        relayed(relay, [*HALFWAY, *named_events(event)])
    assert (broken.value.message, broken.value.code, relay.usage) == (message, code, usage)


def test_failure_is_sent_as_error_and_response_failed_events() -> None:
    relay, _ = relay_of("responses")
    relayed(relay, HALFWAY)
    error = BudgetRefusal("The run has nothing left.", code="run_budget_exceeded", metadata={"run": "r-1"})
    first, second = events_of(relay.fail(error))
    assert (first["type"], first["code"], first["message"]) == (
        "error",
        "run_budget_exceeded",
        "The run has nothing left.",
    )
    assert first["error"]["metadata"] == {"run": "r-1"}  # OpenAI's SDK raises this
    assert (second["type"], second["response"]["status"]) == ("response.failed", "failed")
    assert second["response"]["error"] == {"code": "run_budget_exceeded", "message": "The run has nothing left."}
    assert [first["sequence_number"], second["sequence_number"]] == [12, 13]


def test_stream_without_an_end_is_assembled_as_incomplete() -> None:
    answer = RESPONSES.assemble(b"".join(HALFWAY))
    assert (answer["status"], len(answer["output"])) == ("incomplete", 3)
    with pytest.raises(StreamBroken, match="Sorry"):
        RESPONSES.assemble(b"".join(named_events({"type": "error", "message": "Sorry."})))
