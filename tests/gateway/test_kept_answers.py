"""What is kept of answers, how much of it, and for how long."""

from __future__ import annotations

from gateway.pipeline.exchange import Answered
from gateway.pipeline.kept_answers import KeptAnswers, canonical

JSON = ((b"content-type", b"application/json"),)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def kept_keys(answers: KeptAnswers, *keys: bytes) -> list[bytes]:
    return [key for key in keys if answers.find(key) is not None]


def test_an_answer_is_found_until_its_time_is_over() -> None:
    clock = Clock()
    answers = KeptAnswers(10_000, clock)
    answers.keep(b"k", b"f", Answered(200, JSON, b"{}"), 5)
    clock.now_s += 4.9
    found = answers.find(b"k")
    assert found is not None
    assert (found.fingerprint, found.content_type, found.body) == (b"f", b"application/json", b"{}")
    clock.now_s += 0.2
    assert answers.find(b"k") is None


def test_the_oldest_make_room() -> None:
    answers = KeptAnswers(5000, Clock())
    for name in (b"a", b"b", b"c"):
        answers.keep(name, b"", Answered(200, JSON, b"x" * 1000), 60)
    assert kept_keys(answers, b"a", b"b", b"c") == [b"b", b"c"]
    answers.keep(b"b", b"", Answered(200, JSON, b"y" * 1000), 60)
    answers.keep(b"d", b"", Answered(200, JSON, b"x" * 1000), 60)
    assert kept_keys(answers, b"b", b"c", b"d") == [b"b", b"d"]


def test_errors_and_what_is_larger_than_all_the_room_are_not_kept() -> None:
    answers = KeptAnswers(5000, Clock())
    answers.keep(b"error", b"", Answered(500, JSON, b"{}"), 60)
    answers.keep(b"large", b"", Answered(200, JSON, b"x" * 5000), 60)
    assert kept_keys(answers, b"error", b"large") == []


def test_the_order_of_keys_makes_no_other_request() -> None:
    assert canonical({"a": 1, "b": {"c": b"\x01", "d": 2}}) == canonical({"b": {"d": 2, "c": b"\x01"}, "a": 1})
    assert canonical({"a": 1}) != canonical({"a": "1"})
