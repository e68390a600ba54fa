"""Chat completions: valid and invalid requests, output caps, and answers with all their fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import BadRequest, StreamBroken
from gateway.wire.chat import ChatProtocol
from policies.pricing import Usage
from tests.gateway.wire_streams import USER, data_events, events_of, parsed, relay_of, relayed

CHAT = ChatProtocol()


def chunk(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 7, "model": "m-1"}
    return {**head, "choices": list(choices), **fields}


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": fields, "finish_reason": finish}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [*USER, {"content": "x"}]}, "messages[1]"),
        ({"messages": USER * 100_000}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.0}, "max_tokens"),
        ({"max_tokens": "100"}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"api_base": "http://elsewhere"}, "api_base"),
    ],
)
def test_invalid_request_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed("chat/completions", **fields)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert json.loads(CHAT.error_body(refused.value))["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "cap"),
    [
        ({}, None),
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 20}, 20),
        ({"max_tokens": 10, "max_completion_tokens": 20}, 10),
        ({"max_tokens": 10**9}, 10**9),
    ],
)
def test_smaller_of_two_output_caps_applies(fields: dict[str, Any], cap: int | None) -> None:
    assert parsed("chat/completions", **fields).output_tokens_max == cap


@pytest.mark.parametrize(
    ("fields", "output_tokens", "expected"),
    [
        ({}, 50, {"max_tokens": 50}),
        ({"max_tokens": 100}, 50, {"max_tokens": 50}),
        ({"max_tokens": 10}, 50, {"max_tokens": 10}),
        ({"max_completion_tokens": 100}, 50, {"max_completion_tokens": 50}),
        ({"max_tokens": 100, "max_completion_tokens": 30}, 50, {"max_tokens": 50, "max_completion_tokens": 30}),
        ({"max_tokens": 100}, None, {"max_tokens": 100}),
        ({"max_tokens": 10, "max_completion_tokens": 90}, None, {"max_tokens": 10, "max_completion_tokens": 10}),
        ({}, None, {}),
    ],
)
def test_forwarded_body_is_capped_and_the_request_unchanged(
    fields: dict[str, Any], output_tokens: int | None, expected: dict[str, int]
) -> None:
    request = parsed("chat/completions", **fields)
    before = json.dumps(request.body)
    body = CHAT.upstream_body(request, output_tokens, stream=False)
    assert {key: body[key] for key in ("max_tokens", "max_completion_tokens") if key in body} == expected
    assert json.dumps(request.body) == before


def test_other_fields_are_forwarded_unchanged() -> None:
    fields = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "parallel_tool_calls": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}, "strict": True}},
        "logprobs": True,
        "top_logprobs": 5,
        "seed": 7,
        "n": 3,
        "reasoning_effort": "high",
        "modalities": ["text", "audio"],
        "audio": {"voice": "alloy", "format": "wav"},
        "something_new": {"deep": [1, None]},
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                    {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                ],
            }
        ],
    }
    request = parsed("chat/completions", **fields)
    assert request.choices == 3
    assert CHAT.upstream_body(request, None, stream=False) == {"model": "m", **fields}


@pytest.mark.parametrize(
    ("options", "wants"),
    [(None, False), ({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)],
)
def test_usage_is_always_requested_and_relayed_only_if_asked_for(options: dict[str, Any] | None, wants: bool) -> None:
    request = parsed("chat/completions", stream=True, stream_options=options)
    assert request.wants_usage is wants
    sent = CHAT.upstream_body(request, None, stream=True)
    assert (sent["stream"], sent["stream_options"]["include_usage"]) == (True, True)
    relay, _ = relay_of("chat/completions", stream_options=options)
    usage = data_events({"id": "c-1", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}})[0]
    assert relayed(relay, [*data_events(chunk(delta(content="a", finish="stop"))), usage]).count(b"usage") == 0
    assert relay.usage == Usage(input_tokens=5, output_tokens=1)
    assert relay.close(None) == (usage if wants else b"") + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
        ({"prompt_tokens": -1, "completion_tokens": 3}, None),
        ({"prompt_tokens": 3, "completion_tokens": -1}, None),
        ({"prompt_tokens": 10**12, "completion_tokens": 1}, None),
        ({"prompt_tokens": 1.5, "completion_tokens": 1}, None),
        ({"prompt_tokens": True, "completion_tokens": 1}, None),
        ({"prompt_tokens": "7", "completion_tokens": 1}, None),
        ({"prompt_tokens": 7}, Usage(input_tokens=7)),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 10},
                "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": 5},
            },
            Usage(100, 50, cache_read_tokens=60, reasoning_tokens=30, audio_input_tokens=10, audio_output_tokens=5),
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 5,
                "prompt_tokens_details": None,
                "cache_creation_input_tokens": 40,
            },
            Usage(100, 5, cache_write_tokens=40),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 900}},
            Usage(10, 5, cache_read_tokens=10),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 4},
            Usage(10, 5, cache_read_tokens=4),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": -3}},
            Usage(10, 5),
        ),
    ],
)
def test_usage_is_read_from_the_answer(usage: Any, expected: Usage | None) -> None:
    assert CHAT.usage({"usage": usage}) == expected


def test_tool_calls_are_assembled_from_their_deltas() -> None:
    first = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "find", "arguments": ""}}
    second = {"index": 1, "id": "call_b", "type": "function", "function": {"name": "send", "arguments": '{"to":'}}
    stream = data_events(
        chunk(delta(role="assistant", content=None, refusal=None)),
        chunk(delta(tool_calls=[first])),
        chunk(delta(tool_calls=[{"index": 0, "function": {"arguments": '{"q":'}}])),
        chunk(delta(tool_calls=[second])),
        chunk(delta(tool_calls=[{"index": 0, "function": {"arguments": ' "x"}'}}])),
        chunk(delta(tool_calls=[{"index": 1, "function": {"arguments": ' "y"}'}}])),
        chunk(delta(finish="tool_calls"), usage=None, obfuscation="aaaa"),
    )
    answer = CHAT.assemble(b"".join(stream))
    assert "obfuscation" not in answer
    assert answer["choices"][0] == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {"id": "call_a", "type": "function", "function": {"name": "find", "arguments": '{"q": "x"}'}},
                {"id": "call_b", "type": "function", "function": {"name": "send", "arguments": '{"to": "y"}'}},
            ],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    relay, counter = relay_of("chat/completions")
    relayed(relay, stream)
    assert "".join(counter.texts) == 'find{"q":send{"to": "x"} "y"}'


def test_tool_calls_are_separated_by_index() -> None:
    stream = data_events(
        chunk(delta(tool_calls=[{"index": 1, "id": "a", "function": {"name": "f", "arguments": "{"}}])),
        chunk(delta(tool_calls=[{"index": 4_000, "id": "b", "function": {"name": "g", "arguments": "{"}}])),
        chunk(delta(tool_calls=[{"index": 1, "function": {"arguments": "}"}}])),
        chunk(delta(tool_calls=None, finish="tool_calls")),
    )
    calls = CHAT.assemble(b"".join(stream))["choices"][0]["message"]["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("a", "{}"), ("b", "{")]
    assert (
        "tool_calls" not in CHAT.assemble(b"".join(data_events(chunk(delta(tool_calls=[])))))["choices"][0]["message"]
    )


def test_choices_logprobs_audio_and_reasoning_are_assembled() -> None:
    stream = data_events(
        chunk({**delta(1, content="b"), "logprobs": {"content": [{"token": "b"}]}}),
        chunk(delta(0, content="a1", reasoning_content="so ")),
        chunk({**delta(1, content="b2"), "logprobs": {"content": [{"token": "b2"}], "refusal": None}}),
        chunk(delta(0, content="a2", reasoning_content="then")),
        chunk(delta(0, audio={"id": "au", "data": "QU", "transcript": "he"})),
        chunk(delta(0, audio={"data": "JD", "transcript": "llo", "expires_at": 9})),
        chunk(delta(0, "stop"), delta(1, "length"), system_fingerprint="fp"),
        {"id": "c-1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    )
    answer = CHAT.assemble(b"".join(stream))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    first, second = answer["choices"]
    assert first["message"]["content"] == "a1a2"
    assert first["message"]["reasoning_content"] == "so then"
    assert first["message"]["audio"] == {"id": "au", "data": "QUJD", "transcript": "hello", "expires_at": 9}
    assert second["logprobs"] == {"content": [{"token": "b"}, {"token": "b2"}], "refusal": None}
    assert (first["finish_reason"], second["finish_reason"]) == ("stop", "length")
    assert (answer["object"], answer["usage"], answer["system_fingerprint"]) == (
        "chat.completion",
        {"prompt_tokens": 1, "completion_tokens": 2},
        "fp",
    )


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "a"}, "a"),
        ({"role": "assistant", "content": "a", "refusal": "b"}, "ab"),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "f{}"),
        ({"content": None, "function_call": {"name": "f", "arguments": "{}"}}, "f{}"),
        ({"content": "a", "reasoning_content": "b", "reasoning": "b"}, "ab"),
        ({"content": "a", "reasoning": "b"}, "ab"),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "t"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            "ta",
        ),
        ({"content": None, "audio": {"data": "AAAA", "transcript": "said"}}, "said"),
        ({"content": 7, "tool_calls": "x", "audio": 3, "function_call": []}, ""),
        ("text", ""),
        (None, ""),
    ],
)
def test_every_kind_of_generated_text_is_counted(message: Any, text: str) -> None:
    assert CHAT.output_text({"choices": [{"message": message}]}) == text
    relay, counter = relay_of("chat/completions")
    relayed(relay, data_events(chunk({"index": 0, "delta": message})))
    assert "".join(counter.texts) == text


@pytest.mark.parametrize("answer", [{}, {"choices": None}, {"choices": "x"}, {"choices": [None, 3]}])
def test_answer_without_choices_has_no_text(answer: dict[str, Any]) -> None:
    assert CHAT.output_text(answer) == ""


def test_stream_is_finished_once_all_choices_have_ended() -> None:
    relay, _ = relay_of("chat/completions", n=3)
    finished = []
    for index in (1, 0, 2):
        relayed(relay, data_events(chunk(delta(index, content="a")), chunk(delta(index, "stop"))))
        finished.append(relay.is_finished)
    assert finished == [False, False, True]


def test_cut_ends_only_open_choices_with_the_providers_id_and_model() -> None:
    relay, _ = relay_of("chat/completions", n=3)
    relayed(relay, data_events(chunk(delta(0, content="a")), chunk(delta(1, "stop"))))
    relay.feed(b"")
    ends = events_of(relay.cut())
    assert [(event["choices"][0]["index"], event["choices"][0]["finish_reason"]) for event in ends] == [
        (0, "length"),
        (2, "length"),
    ]
    assert all((event["id"], event["created"], event["model"]) == ("c-1", 7, "m-1") for event in ends)


def test_done_after_content_finishes_without_a_finish_reason() -> None:
    relay, _ = relay_of("chat/completions")
    relayed(relay, [*data_events(chunk(delta(content="a"))), b"data: [DONE]\n\n"])
    assert relay.is_finished


def test_done_alone_does_not_finish_the_stream() -> None:
    relay, _ = relay_of("chat/completions")
    assert relay.feed(b"data: [DONE]\n\n") == b""
    assert not relay.is_finished


@pytest.mark.parametrize(
    ("error", "message", "code", "kind"),
    [
        ({"message": "Overloaded", "type": "server_error", "code": 502}, "Overloaded", "502", "server_error"),
        ({"message": None}, "The provider reported an error.", "upstream_error", "upstream_error"),
        ("plain words", "plain words", "upstream_error", "upstream_error"),
    ],
)
def test_provider_error_event_breaks_the_stream_with_its_message(
    error: Any, message: str, code: str, kind: str
) -> None:
    relay, _ = relay_of("chat/completions")
    with pytest.raises(StreamBroken) as broken:
        relayed(relay, data_events({"error": error}))
    assert (broken.value.message, broken.value.code, broken.value.type) == (message, code, kind)
    failed = relay.fail(broken.value)
    assert events_of(failed)[0]["error"]["message"] == message
    assert failed.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "broken",
    [
        {"choices": "abc"},
        {"choices": 7},
        {"choices": {"index": 0}},
        {"choices": [None]},
        {"choices": ["x"]},
        {"choices": [{"index": "0", "delta": {}, "finish_reason": "stop"}]},
        {"choices": [{"index": [], "delta": {}, "finish_reason": "stop"}]},
        {"choices": [{"index": -1, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [{"index": 10**9, "delta": {}, "finish_reason": "stop"}]},
    ],
)
def test_invalid_choices_break_the_stream(broken: dict[str, Any]) -> None:
    relay, _ = relay_of("chat/completions")
    with pytest.raises(StreamBroken):
        relayed(relay, data_events(broken))
    with pytest.raises(StreamBroken):
        CHAT.assemble(b"".join(data_events(broken)))


@pytest.mark.parametrize("calls", ["x", [None], [{"index": 10**9}], [{"index": "a"}], {"index": 0}])
def test_invalid_tool_calls_break_the_stream(calls: Any) -> None:
    with pytest.raises(StreamBroken):
        CHAT.assemble(b"".join(data_events(chunk(delta(tool_calls=calls)))))
