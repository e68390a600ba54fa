"""Anthropic's messages: blocks, thinking, caches, and errors in its format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import (
    AuthenticationFailed,
    BadRequest,
    BudgetRefusal,
    GatewayError,
    LedgerOutage,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    StreamBroken,
    UpstreamFailure,
)
from gateway.wire import sse
from gateway.wire.messages import MessagesProtocol
from policies.pricing import Usage
from tests.gateway.wire_streams import USER, events_of, name_of, named_events, parsed, relay_of, relayed

MESSAGES = MessagesProtocol()
START_USAGE: dict[str, Any] = {
    "input_tokens": 10,
    "cache_read_input_tokens": 200,
    "cache_creation_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    "output_tokens": 1,
}
STARTED: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m-1",
    "content": [],
    "stop_reason": None,
}
FIRST = {"type": "message_start", "message": {**STARTED, "stop_sequence": None, "usage": START_USAGE}}


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": content},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


THINKING = block(
    0,
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "hm "},
    {"type": "thinking_delta", "thinking": "so "},
    {"type": "signature_delta", "signature": "c2ln"},
)
TEXT = block(
    1,
    {"type": "text", "text": ""},
    {"type": "text_delta", "text": "Hel"},
    {"type": "citations_delta", "citation": {"cited_text": "x"}},
    {"type": "text_delta", "text": "lo "},
)
TOOL = block(
    2,
    {"type": "tool_use", "id": "toolu_1", "name": "find ", "input": {}},
    {"type": "input_json_delta", "partial_json": ""},
    {"type": "input_json_delta", "partial_json": '{"q":'},
    {"type": "input_json_delta", "partial_json": ' "x"}'},
)
END: list[dict[str, Any]] = [
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 44},
    },
    {"type": "message_stop"},
]
STREAM = named_events(FIRST, {"type": "ping"}, *THINKING, *TEXT, *TOOL, *END)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "missing_field"),
        ({"messages": None}, "messages", "missing_field"),
        ({"messages": ["x"]}, "messages[0]", "invalid_value"),
        ({"messages": USER * 20_001}, "messages", "invalid_value"),
        ({"max_tokens": None}, "max_tokens", "missing_field"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
        ({"max_tokens": True}, "max_tokens", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"base_url": "http://x"}, "base_url", "forbidden_field"),
    ],
)
def test_invalid_request_names_its_field_in_anthropics_format(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed("messages", **fields)
    body = json.loads(MESSAGES.error_body(refused.value))
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)


def test_other_fields_are_forwarded_unchanged() -> None:
    fields = {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "tools": [{"name": "f", "input_schema": {}}, {"type": "web_search_20250305", "name": "web_search"}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "metadata": {"user_id": "u"},
        "max_tokens": 9000,
        "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "AA=="}}]}],
        "brand_new": {"a": 1},
    }
    request = parsed("messages", **fields)
    assert MESSAGES.upstream_body(request, None, stream=False) == {"model": "m", **fields}
    assert MESSAGES.upstream_body(request, 9000, stream=False) == {"model": "m", **fields}
    assert MESSAGES.upstream_body(request, None, stream=True)["stream"] is True


@pytest.mark.parametrize(
    ("own", "thinking", "output_tokens", "sent", "sent_thinking"),
    [
        (1000, None, 50, 50, None),
        (100, None, 500, 100, None),
        (0, None, 500, 0, None),
        (9000, 5000, 6000, 6000, 5000),  # still fits below the cap
        (9000, 5000, 3000, 3000, 2999),
        (9000, 5000, 1025, 1025, 1024),
        (4000, 5000, 3000, 3000, 5000),  # above the client's own cap: interleaved thinking
        (9000, 5000, None, 9000, 5000),
    ],
)
def test_capped_max_tokens_lowers_the_thinking_budget_below_it(
    own: int, thinking: int | None, output_tokens: int | None, sent: int, sent_thinking: int | None
) -> None:
    fields = {"thinking": {"type": "enabled", "budget_tokens": thinking}} if thinking else {}
    request = parsed("messages", max_tokens=own, **fields)
    body = MESSAGES.upstream_body(request, output_tokens, stream=False)
    assert (body["max_tokens"], body.get("thinking", {}).get("budget_tokens")) == (sent, sent_thinking)
    assert request.body.get("thinking", {}).get("budget_tokens") == thinking


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({"max_tokens": 100}, 1),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 4000}}, 1025),
        ({"max_tokens": 9000, "thinking": {"type": "adaptive"}}, 1),
        ({"max_tokens": 9000, "thinking": {"type": "disabled"}}, 1),
        ({"max_tokens": 9000, "thinking": "odd"}, 1),
    ],
)
def test_least_output_cap_leaves_room_for_minimal_thinking(fields: dict[str, Any], least: int) -> None:
    request = parsed("messages", **fields)
    assert (request.output_tokens_min_useful, request.output_tokens_max) == (least, fields["max_tokens"])


def test_count_tokens_needs_no_max_tokens() -> None:
    request = MESSAGES.parse_count(json.dumps({"model": "m", "messages": USER, "system": "x"}).encode())
    assert (request.has_output, request.output_tokens_max, request.stream) == (False, None, False)
    assert json.loads(MESSAGES.count_answer(17)) == {"input_tokens": 17}
    with pytest.raises(BadRequest):
        MESSAGES.parse_count(b'{"model":"m"}')


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (START_USAGE, Usage(240, 1, cache_read_tokens=200, cache_write_tokens=30, cache_write_1h_tokens=20)),
        ({"input_tokens": 5, "output_tokens": 7}, Usage(5, 7)),
        ({"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": None, "cache_creation": None}, Usage(5, 7)),
        (
            {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 6}},
            Usage(5, 7, reasoning_tokens=6),
        ),
        ({"input_tokens": 5, "output_tokens": 7, "cache_creation": {"ephemeral_1h_input_tokens": 9}}, Usage(5, 7)),
        ({"input_tokens": 0, "output_tokens": 0}, None),
        ({"input_tokens": -5, "output_tokens": 7}, None),
        ({"input_tokens": 5, "output_tokens": 10**12}, None),
        ({"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": -1}, None),
        ({"input_tokens": "5", "output_tokens": 7}, None),
        (None, None),
    ],
)
def test_usage_counts_cache_reads_and_writes_as_input(usage: Any, expected: Usage | None) -> None:
    assert MESSAGES.usage({"usage": usage}) == expected


def test_stream_is_relayed_counted_and_assembled() -> None:
    relay, counter = relay_of("messages")
    assert relayed(relay, STREAM) == b"".join(STREAM[:-1])
    assert "".join(counter.texts) == 'hm so Hello find {"q": "x"}'
    assert relay.usage == Usage(240, 44, cache_read_tokens=200, cache_write_tokens=30, cache_write_1h_tokens=20)
    assert relay.close({"run": "r"}) == b': budget {"run":"r"}\n\n' + STREAM[-1]
    answer = MESSAGES.assemble(b"".join(STREAM))
    assert answer["content"] == [
        {"type": "thinking", "thinking": "hm so ", "signature": "c2ln"},
        {"type": "text", "text": "Hello ", "citations": [{"cited_text": "x"}]},
        {"type": "tool_use", "id": "toolu_1", "name": "find ", "input": {"q": "x"}},
    ]
    assert (answer["stop_reason"], answer["usage"]) == ("tool_use", {**START_USAGE, "output_tokens": 44})
    assert MESSAGES.output_text(answer) == 'hm so \nHello \nfind {"q":"x"}'


def test_usage_in_message_delta_replaces_that_of_message_start() -> None:
    relay, _ = relay_of("messages")
    usage = {"input_tokens": 500, "output_tokens": 60, "cache_read_input_tokens": None}
    relayed(relay, named_events(FIRST, {**END[0], "usage": usage}))
    assert relay.usage == Usage(730, 60, cache_read_tokens=200, cache_write_tokens=30, cache_write_1h_tokens=20)


@pytest.mark.parametrize("end", [END[:1], END, END[1:]])
def test_stop_reason_or_message_stop_finishes_the_stream(end: list[dict[str, Any]]) -> None:
    relay, _ = relay_of("messages")
    relayed(relay, named_events(FIRST, *TEXT))
    finished = [relay.is_finished]
    relayed(relay, named_events(*end))
    assert [*finished, relay.is_finished] == [False, True]
    assert events_of(relay.close(None)) == [{"type": "message_stop"}]


@pytest.mark.parametrize(
    ("events", "closed"),
    [(1, []), (2, []), (3, [0]), (4, [0]), (6, [0]), (7, []), (8, [1]), (12, []), (13, [2]), (15, [2])],
)
def test_cut_closes_the_open_block(events: int, closed: list[int]) -> None:
    relay, counter = relay_of("messages")
    relayed_bytes = relayed(relay, STREAM[:events])
    relay.feed(STREAM[events])
    ending = events_of(relay.cut() + relay.close(None))
    assert [event["index"] for event in ending if event["type"] == "content_block_stop"] == closed
    assert [event["type"] for event in ending[-2:]] == ["message_delta", "message_stop"]
    assert ending[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert ending[-2]["usage"] == {"output_tokens": counter.tokens}
    assert relay.is_finished
    names = [name_of(event) for event in sse.EventSplitter().feed(relayed_bytes)]
    assert names[0] == "message_start"


def test_cut_before_any_event_starts_the_message() -> None:
    relay, _ = relay_of("messages")
    relay.feed(STREAM[0])
    kinds = [event["type"] for event in events_of(relay.cut() + relay.close(None))]
    assert kinds == ["message_start", "message_delta", "message_stop"]


def test_truncated_tool_arguments_are_assembled_as_empty() -> None:
    answer = MESSAGES.assemble(b"".join(STREAM[:15]))
    assert answer["content"][2]["input"] == {}


def test_error_event_keeps_its_message_and_type() -> None:
    relay, _ = relay_of("messages")
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with pytest.raises(StreamBroken) as broken:
        relayed(relay, [*STREAM[:4], *named_events(error)])
    data = relay.fail(broken.value)
    assert data.startswith(b"event: error\n")
    assert events_of(data)[0]["error"]["type"] == "overloaded_error"
    assert events_of(data)[0]["error"]["message"] == "Overloaded"
    with pytest.raises(StreamBroken, match="Overloaded"):
        MESSAGES.assemble(b"".join(named_events(error)))


@pytest.mark.parametrize(
    "event",
    [
        {"type": "content_block_delta", "index": 0, "delta": None},
        {"type": "content_block_delta", "index": 0, "delta": "x"},
    ],
)
def test_invalid_deltas_break_the_stream(event: dict[str, Any]) -> None:
    relay, _ = relay_of("messages")
    with pytest.raises(StreamBroken):
        relayed(relay, named_events(event))


@pytest.mark.parametrize(
    "event",
    [
        {"type": "content_block_start", "index": "0", "content_block": None},
        {"type": "content_block_stop", "index": []},
        {"type": "message_start", "message": None},
        {"type": "message_delta", "delta": None, "usage": "x"},
        {"type": "brand_new", "x": 1},
        {},
    ],
)
def test_unexpected_events_are_relayed_and_a_cut_still_works(event: dict[str, Any]) -> None:
    odd = b"data: " + json.dumps(event).encode() + b"\n\n"
    relay, _ = relay_of("messages")
    assert relayed(relay, [STREAM[0], odd, b": x\n\n"]) == STREAM[0] + odd
    assert events_of(relay.cut())[-1]["delta"]["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    "event",
    [
        {"type": "content_block_delta", "index": 3, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_start", "index": -1, "content_block": {}},
        {"type": "message_start", "message": []},
    ],
)
def test_events_that_cannot_be_assembled_are_stream_broken(event: dict[str, Any]) -> None:
    with pytest.raises(StreamBroken):
        MESSAGES.assemble(b"".join(named_events(event)))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("x"), "invalid_request_error"),
        (AuthenticationFailed("x"), "authentication_error"),
        (BudgetRefusal("x"), "billing_error"),
        (BudgetRefusal("x", status=429), "rate_limit_error"),
        (Overloaded("x"), "rate_limit_error"),
        (Overloaded("x", status=503), "overloaded_error"),
        (PermissionDenied("x"), "permission_error"),
        (ModelNotFound("x"), "not_found_error"),
        (BadRequest.too_large(5), "request_too_large"),
        (BadRequest("x", status=415), "invalid_request_error"),
        (LedgerOutage(), "overloaded_error"),
        (UpstreamFailure("x"), "api_error"),
        (UpstreamFailure("x", status=504), "timeout_error"),
        (GatewayError("x"), "api_error"),
        (GatewayError("x", status=529), "overloaded_error"),
        (StreamBroken("x", type="rate_limit_error"), "rate_limit_error"),
        (StreamBroken("x", type="odd"), "api_error"),
    ],
)
def test_error_has_an_anthropic_error_type(error: GatewayError, kind: str) -> None:
    assert json.loads(MESSAGES.error_body(error))["error"]["type"] == kind


def test_error_has_our_code_and_metadata_beside_anthropics_fields() -> None:
    figures = {"scope": "run", "remaining": 3, "request_id": "q-1"}
    body = json.loads(MESSAGES.error_body(BudgetRefusal("Nothing left.", code="run_budget_exceeded", metadata=figures)))
    assert body == {
        "type": "error",
        "error": {
            "type": "billing_error",
            "message": "Nothing left.",
            "code": "run_budget_exceeded",
            "metadata": figures,
        },
        "request_id": "q-1",
    }
    assert json.loads(MESSAGES.error_body(BadRequest("x")))["request_id"] is None


def test_usage_lags_if_the_end_of_a_message_reports_none() -> None:
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    reported: tuple[tuple[dict[str, Any], bool], ...] = (({}, True), ({"usage": {"output_tokens": 5}}, False))
    for more, lags in reported:
        relay, _ = relay_of("messages")
        relay.feed(b"".join(named_events(FIRST, *block(0, {"type": "text", "text": ""}), {**end, **more})))
        assert relay.usage_lags is lags
