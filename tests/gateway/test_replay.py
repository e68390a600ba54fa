"""Which answers may be replayed, and which requests count as equal."""

from __future__ import annotations

from gateway.pipeline.exchange import SentAnswer
from gateway.pipeline.replay import canonical, storable_answer

JSON = ((b"content-type", b"application/json"),)
EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"),)


def test_successful_answer_is_kept_unchanged() -> None:
    stored_answer = storable_answer(SentAnswer(200, JSON, b': budget {"a":1}\n\n'), b"f")
    assert stored_answer is not None
    assert (stored_answer.fingerprint, stored_answer.content_type, stored_answer.body) == (
        b"f",
        b"application/json",
        b': budget {"a":1}\n\n',
    )


def test_error_answer_is_not_kept() -> None:
    assert storable_answer(SentAnswer(402, JSON, b"{}")) is None


def test_stream_is_kept_without_its_budget_comment() -> None:
    stream = b'data: {"text":"\\n: budget {}"}\n\n: budget {"run":"r"}\n\ndata: [DONE]\n\n'
    stored_answer = storable_answer(SentAnswer(200, EVENTS, stream))
    assert stored_answer is not None
    assert stored_answer.body == b'data: {"text":"\\n: budget {}"}\n\ndata: [DONE]\n\n'


def test_canonical_form_ignores_key_order_and_keeps_types() -> None:
    assert canonical({"a": 1, "b": {"c": b"\x01", "d": 2}}) == canonical({"b": {"d": 2, "c": b"\x01"}, "a": 1})
    assert canonical({"a": 1}) != canonical({"a": "1"})
