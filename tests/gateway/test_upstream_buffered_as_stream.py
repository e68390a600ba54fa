"""A whole answer as a stream: assembled again it is the same, and an invalid answer ends with an error."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import StreamBroken
from gateway.upstream.buffered_as_stream import events_of
from gateway.upstream.port import ProtocolName
from tests.gateway.wire_streams import protocol_of, relay_of

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
]
CHAT = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "system_fingerprint": "fp",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "hi", "logprob": -0.1}]},
            "message": {"role": "assistant", "content": "hi there", "refusal": None, "annotations": []},
        },
        {
            "index": 1,
            "finish_reason": "tool_calls",
            "logprobs": None,
            "message": {"role": "assistant", "content": None, "tool_calls": CALLS},
        },
    ],
    "usage": USAGE,
}
COMPLETION = {
    "id": "x",
    "object": "text_completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": i, "text": f"text {i}", "logprobs": None, "finish_reason": "length"} for i in range(2)],
    "usage": USAGE,
}
RESPONSE = {
    "id": "r",
    "object": "response",
    "status": "incomplete",
    "incomplete_details": {"reason": "max_output_tokens"},
    "model": "m",
    "output": [
        {"id": "rs", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {
            "id": "ms",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "hi there", "annotations": []},
                {"type": "refusal", "refusal": "no"},
            ],
        },
        {"id": "fc", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
    ],
    "usage": {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13},
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "hi there", "citations": None},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1]}},
        {"type": "tool_use", "id": "u", "name": "g", "input": {}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 4},
}
WHOLE: dict[ProtocolName, tuple[str, dict[str, Any]]] = {
    "chat": ("chat/completions", CHAT),
    "completions": ("completions", COMPLETION),
    "responses": ("responses", RESPONSE),
    "messages": ("messages", MESSAGE),
}


@pytest.mark.parametrize("name", WHOLE)
def test_assembled_events_equal_the_answer(name: ProtocolName) -> None:
    endpoint, answer = WHOLE[name]
    choices = {"n": 2, "stream_options": {"include_usage": True}} if "choices" in answer else {}
    relay, counter = relay_of(endpoint, **choices)
    stream = relay.feed(events_of(name, json.dumps(answer).encode())) + relay.close(None)
    protocol = protocol_of(endpoint)
    assert relay.is_finished
    assert relay.usage == protocol.usage(answer)
    assert protocol.assemble(stream) == answer
    assert ("text 0" if name == "completions" else "hi there") in counter.texts


@pytest.mark.parametrize("name", WHOLE)
def test_error_body_with_a_success_status_breaks_the_stream(name: ProtocolName) -> None:
    relay, _ = relay_of(WHOLE[name][0])
    with pytest.raises(StreamBroken, match="too busy"):
        relay.feed(events_of(name, b'{"error": {"message": "too busy", "type": "overloaded_error"}}'))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["choices", "message", "tool_calls", "usage", "output", "content", "type", "text", "status", "input", "stop_reason"]
)
ODD = st.dictionaries(KEYS, JSON | st.lists(st.dictionaries(KEYS, JSON, max_size=4), max_size=3), max_size=5)


@pytest.mark.parametrize("name", WHOLE)
@given(odd=ODD | JSON)
def test_any_json_gives_a_stream_or_stream_broken(name: ProtocolName, odd: Any) -> None:
    relay, _ = relay_of(WHOLE[name][0])
    with suppress(StreamBroken):
        relay.feed(events_of(name, json.dumps(odd).encode()))
