"""Server-sent events, cut at any byte."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import sse
from tests.gateway.wire_streams import cut_at, name_of

STREAM = (
    b'event: a\ndata: {"x":1}\n\n: note\n\ndata: two\ndata: lines\n\ndata: \xf0\x9f\x9a\x8b\n\n\n\ndata: [DONE]\n\nrest'
)


@given(st.lists(st.integers(0, 10_000), max_size=20), st.booleans())
def test_chunking_and_crlf_do_not_change_the_events(cuts: list[int], crlf: bool) -> None:
    data = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    whole = sse.EventSplitter().feed(STREAM)
    splitter = sse.EventSplitter()
    assert [event for piece in cut_at(data, cuts) for event in splitter.feed(piece)] == whole
    assert splitter.feed(b"\n\n") == [b"rest"]


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_any_bytes_give_nonempty_events_without_blank_lines(pieces: list[bytes]) -> None:
    splitter = sse.EventSplitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    assert all(event and b"\n\n" not in event for event in events)


def test_long_line_in_many_pieces_is_joined() -> None:
    splitter = sse.EventSplitter()
    pieces = [b"data: ", *[b"x" * 1000] * 50, b"\n", b"\ndata: 2\n\n"]
    assert [event for piece in pieces for event in splitter.feed(piece)] == [b"data: " + b"x" * 50_000, b"data: 2"]
    assert splitter.feed(b"\n\n") == []


def test_event_of_many_lines_is_joined_in_linear_time() -> None:
    splitter = sse.EventSplitter()
    part = b"data: " + b"x" * 249 + b"\n"
    began = time.process_time()
    events = [event for _ in range(sse.EVENT_LINES_MAX) for event in splitter.feed(part)]
    events += splitter.feed(b"\n")
    assert time.process_time() - began < 2, "joining and scanning for each part takes ten times as long"
    assert [len(event) for event in events] == [sse.EVENT_LINES_MAX * 256 - 1]


def test_event_of_more_than_20000_lines_is_refused() -> None:
    splitter = sse.EventSplitter()
    for _ in range(100):
        assert splitter.feed(b"data: \n" * 200) == []
    with pytest.raises(sse.EventTooLarge, match="more than 20000 lines"):
        splitter.feed(b"data: \n")


def test_event_of_16_mib_is_refused() -> None:
    splitter = sse.EventSplitter()
    piece = b"x" * (1024 * 1024)
    for part in (b"data: ", *[piece] * 15):
        assert splitter.feed(part) == []
    with pytest.raises(sse.EventTooLarge):
        splitter.feed(piece)


@pytest.mark.parametrize(
    ("event", "data", "name"),
    [
        (b"data: x", b"x", None),
        (b"data:x", b"x", None),
        (b"data:  x", b" x", None),
        (b"event: n\ndata: x", b"x", "n"),
        (b"event:n\ndata:x", b"x", "n"),
        (b"data: x\nevent: n", b"x", "n"),
        (b"id: 7\ndata: x", b"x", None),
        (b"data: one\ndata: two", b"one\ntwo", None),
        (b"event: n\ndata: one\ndata: two", b"one\ntwo", "n"),
        (b'data: {"t":"data: x"}', b'{"t":"data: x"}', None),
        (b'event: n\ndata: {"t":"data: x"}', b'{"t":"data: x"}', "n"),
        (b": comment", None, None),
        (b": comment with data: x", None, None),
        (b"event: n", None, "n"),
        (b"retry: 3000", None, None),
        (b"data:", b"", None),
    ],
)
def test_data_and_name_are_read_from_an_event(event: bytes, data: bytes | None, name: str | None) -> None:
    assert sse.data_of(event) == data
    assert name_of(event) == name


def test_formatted_events_are_read_back() -> None:
    stream = sse.event(b'{"a":1}', "n") + sse.comment(b"budget {}") + sse.event(b"[DONE]")
    events = sse.EventSplitter().feed(stream)
    assert [(name_of(event), sse.data_of(event)) for event in events] == [
        ("n", b'{"a":1}'),
        (None, None),
        (None, b"[DONE]"),
    ]
