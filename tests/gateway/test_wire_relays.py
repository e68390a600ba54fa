"""Streams of every text protocol: any chunking, any fault, any end (catalogue 58 and 60, P12)."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import StreamBroken, UpstreamFailure
from tests.fake_provider.directive import Directive
from tests.gateway.wire_streams import (
    TEXT_ENDPOINTS,
    Words,
    cut_at,
    events_of,
    parsed,
    protocol_of,
    provider_answer,
    provider_stream,
    relay_of,
    relayed,
)

NOTE = {"run": "r-1", "run_remaining": 5}
DIRECTIVES = {
    "text": Directive(text="one two three four five"),
    "cached": Directive(text="one two", cached_tokens=2, reasoning_tokens=1),
    "tool": Directive(tool="look_up", arguments='{"city": "Delft", "n": 2}'),
    "empty": Directive(text=""),
}
CHAT_LIKE = ("chat/completions", "completions")


def cases() -> list[Any]:
    pairs = [(endpoint, name) for endpoint in TEXT_ENDPOINTS for name in DIRECTIVES]
    return [case for case in pairs if case != ("completions", "tool")]


@pytest.mark.parametrize(("endpoint", "name"), cases())
def test_stream_is_relayed_whole_with_the_budget_comment_before_its_end(endpoint: str, name: str) -> None:
    directive = DIRECTIVES[name]
    stream = provider_stream(endpoint, directive)
    relay, _ = relay_of(endpoint, stream_options={"include_usage": True})
    passed = relayed(relay, stream)
    assert relay.is_finished
    data = passed + relay.close(NOTE)
    note = b": budget " + json.dumps(NOTE, separators=(",", ":")).encode() + b"\n\n"
    head, comment, tail = data.partition(note)
    assert comment
    assert head + tail == b"".join(stream)
    assert tail == stream[-1]


@pytest.mark.parametrize(("endpoint", "name"), cases())
def test_usage_of_a_stream_equals_that_of_the_buffered_answer(endpoint: str, name: str) -> None:
    directive = DIRECTIVES[name]
    relay, _ = relay_of(endpoint)
    relayed(relay, provider_stream(endpoint, directive))
    assert relay.usage is not None
    whole = protocol_of(endpoint).usage(provider_answer(endpoint, directive))
    assert whole is not None
    # The fake provider's chunks omit the tier.
    assert relay.usage == replace(whole, service_tier=relay.usage.service_tier)


@pytest.mark.parametrize(("endpoint", "name"), cases())
def test_assembled_stream_equals_the_buffered_answer(endpoint: str, name: str) -> None:
    directive = DIRECTIVES[name]
    assembled = protocol_of(endpoint).assemble(b"".join(provider_stream(endpoint, directive)))
    expected = provider_answer(endpoint, directive)
    expected.pop("service_tier", None)  # the fake provider's chunks omit it
    assert assembled == expected


@pytest.mark.parametrize(("endpoint", "name"), cases())
def test_buffered_answer_made_from_a_stream_has_its_usage(endpoint: str, name: str) -> None:
    """With `hold: slices`, the upstream always streams, even if the client did not ask for it."""
    protocol, counter = protocol_of(endpoint), Words()
    relay = protocol.relay(parsed(endpoint), counter)
    data = relayed(relay, provider_stream(endpoint, DIRECTIVES[name])) + relay.close(None)
    expected = provider_answer(endpoint, DIRECTIVES[name])
    assert protocol.assemble(data)["usage"] == expected["usage"]


@settings(max_examples=60)
@given(st.sampled_from(cases()), st.lists(st.integers(0, 100_000), max_size=12), st.booleans())
def test_chunking_and_crlf_do_not_change_the_output(case: tuple[str, str], cuts: list[int], crlf: bool) -> None:
    endpoint, name = case
    stream = b"".join(provider_stream(endpoint, DIRECTIVES[name]))
    whole, counted = relay_of(endpoint)
    expected = whole.feed(stream) + whole.close(NOTE)
    relay, counter = relay_of(endpoint)
    sent = stream.replace(b"\n", b"\r\n") if crlf else stream
    assert relayed(relay, cut_at(sent, cuts)) + relay.close(NOTE) == expected
    assert "".join(counter.texts) == "".join(counted.texts)
    assert (relay.usage, relay.is_finished) == (whole.usage, True)


@pytest.mark.parametrize("endpoint", TEXT_ENDPOINTS)
def test_output_tokens_are_counted_while_streaming(endpoint: str) -> None:
    relay, _ = relay_of(endpoint)
    counts = []
    for event in provider_stream(endpoint, DIRECTIVES["text"]):
        relay.feed(event)
        counts.append(relay.output_tokens)
    assert counts == sorted(counts)
    assert set(counts) - {0} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("endpoint", TEXT_ENDPOINTS)
@pytest.mark.parametrize("usage", ["missing", "zero", "negative", "absurd"])
def test_implausible_usage_is_ignored(endpoint: str, usage: str) -> None:
    directive = Directive(text="one two three", usage=usage)  # type: ignore[arg-type]
    relay, _ = relay_of(endpoint)
    relayed(relay, provider_stream(endpoint, directive))
    assert relay.is_finished
    assert relay.usage is None
    assert relay.output_tokens == 3
    answer = provider_answer(endpoint, directive)
    assert protocol_of(endpoint).usage(answer) is None
    assert protocol_of(endpoint).output_text(answer) == "one two three"


@pytest.mark.parametrize("endpoint", TEXT_ENDPOINTS)
@pytest.mark.parametrize(
    "garbage", [b"data: {not json\n\n", b"data: 7\n\n", b"data: []\n\n", b'data: "x"\n\n', b"data: \xff\n\n"]
)
def test_garbage_breaks_the_stream_after_everything_before_it(endpoint: str, garbage: bytes) -> None:
    stream = provider_stream(endpoint, DIRECTIVES["text"])
    relay, _ = relay_of(endpoint)
    with pytest.raises(StreamBroken) as broken:
        relay.feed(b"".join(stream[:5]) + garbage + b"".join(stream[5:]))
    data = relay.fail(broken.value)
    assert data.startswith(b"".join(stream[:5]))
    assert b"error" in data[len(b"".join(stream[:5])) :]


# Keys and types that exist in one of the protocols, with arbitrary values.
KEYS = [
    "usage",
    "choices",
    "delta",
    "index",
    "content",
    "tool_calls",
    "function",
    "text",
    "finish_reason",
    "message",
    "item",
]
KEYS += ["part", "response", "output_index", "content_index", "summary_index", "sequence_number", "logprobs", "output"]
KEYS += [
    "content_block",
    "name",
    "audio",
    "summary",
    "arguments",
    "partial_json",
    "input_tokens",
    "prompt_tokens",
    "error",
]
KINDS = [
    "message_start",
    "message_delta",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "text_delta",
]
KINDS += ["response.created", "response.output_item.added", "response.content_part.added", "response.output_text.delta"]
KINDS += [
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
    "response.failed",
    "output_text",
]
LEAVES = st.none() | st.booleans() | st.integers(-2, 3) | st.just(10**9) | st.floats(-1, 1) | st.sampled_from(KINDS)
VALUES = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.sampled_from(KEYS), LEAVES, max_size=2)
OBJECTS = VALUES | st.dictionaries(st.sampled_from([*KEYS, "type"]), VALUES, max_size=4)
INDEXES = {key: st.integers(0, 1) | VALUES for key in ("index", "output_index", "content_index")}
PARTS = ("usage", "choices", "delta", "message", "item", "part", "response", "content_block", "sequence_number")
EVENTS = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS) | VALUES, **INDEXES},
    optional={key: OBJECTS | st.lists(OBJECTS, min_size=1, max_size=2) for key in PARTS},
)


@settings(max_examples=150)
@given(st.sampled_from(TEXT_ENDPOINTS), st.lists(EVENTS, min_size=1, max_size=6))
def test_any_events_are_relayed_or_break_the_stream_with_a_proper_end(
    endpoint: str, events: list[dict[str, Any]]
) -> None:
    """Whatever a provider sends is relayed or breaks the stream, and the stream ends as its protocol requires."""
    pieces = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    for end in ("cut", "close", "fail"):
        relay, _ = relay_of(endpoint)
        with suppress(StreamBroken):
            relayed(relay, pieces)
        if end == "fail":
            events_of(relay.fail(UpstreamFailure("x")))
        else:
            events_of((relay.cut() if end == "cut" else b"") + relay.close(NOTE))
    with suppress(StreamBroken):
        assert isinstance(protocol_of(endpoint).assemble(b"".join(pieces)), dict)
    answer: dict[str, Any] = events[0]
    assert isinstance(protocol_of(endpoint).output_text(answer), str)
    assert protocol_of(endpoint).usage(answer) is None or "usage" in answer


@pytest.mark.parametrize("endpoint", TEXT_ENDPOINTS)
def test_comments_of_the_provider_are_not_relayed(endpoint: str) -> None:
    relay, _ = relay_of(endpoint)
    assert relay.feed(b": OPENROUTER PROCESSING\n\n: \n\n") == b""


@pytest.mark.parametrize("endpoint", TEXT_ENDPOINTS)
@pytest.mark.parametrize("events", range(1, 6))
def test_truncated_stream_is_unfinished_and_fails_with_an_error_event(endpoint: str, events: int) -> None:
    relay, _ = relay_of(endpoint)
    relayed(relay, provider_stream(endpoint, DIRECTIVES["text"])[:events])
    assert not relay.is_finished
    data = relay.fail(UpstreamFailure("The provider broke off.", metadata={"request_id": "q-1"}))
    last = next(event for event in events_of(data) if "error" in event)
    assert last["error"]["message"] == "The provider broke off."
    assert last["error"]["metadata"] == {"request_id": "q-1"}
    assert data.endswith(b"data: [DONE]\n\n") == (endpoint in CHAT_LIKE)


@pytest.mark.parametrize("endpoint", TEXT_ENDPOINTS)
@pytest.mark.parametrize("withheld", range(12))
def test_cut_answer_matches_what_the_client_received(endpoint: str, withheld: int) -> None:
    """The last piece is withheld, whatever it contains: the rest is a complete answer that says it was cut."""
    stream = provider_stream(endpoint, DIRECTIVES["text"])
    relay, _ = relay_of(endpoint)
    relayed_bytes = relayed(relay, stream[:withheld])
    relay.feed(b"".join(stream[withheld : withheld + 2]))
    data = relayed_bytes + relay.cut() + relay.close(NOTE)
    assert relay.is_finished
    answer = protocol_of(endpoint).assemble(data)
    full = protocol_of(endpoint).output_text(provider_answer(endpoint, DIRECTIVES["text"]))
    received_text = protocol_of(endpoint).output_text(answer)
    assert full.startswith(received_text)
    assert _texts_of_deltas(data) == received_text
    assert _reason(endpoint, answer) in (_length(endpoint), _reason(endpoint, provider_answer(endpoint, Directive())))
    if received_text != full:
        assert _reason(endpoint, answer) == _length(endpoint)


def _texts_of_deltas(data: bytes) -> str:
    texts = []
    for event in events_of(data):
        delta = event.get("delta")
        if isinstance(delta, str):
            texts.append(delta)
        elif isinstance(delta, dict):
            texts.append(delta.get("text") or "")
        for choice in event.get("choices", ()):
            texts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
    return "".join(texts)


def _reason(endpoint: str, answer: dict[str, Any]) -> Any:
    if endpoint == "messages":
        return answer["stop_reason"]
    if endpoint == "responses":
        return answer["status"]
    return answer["choices"][0]["finish_reason"] if answer["choices"] else "length"


def _length(endpoint: str) -> str:
    return {"messages": "max_tokens", "responses": "incomplete"}.get(endpoint, "length")
