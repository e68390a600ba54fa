from __future__ import annotations

import pytest

from gateway.ledger.circuit_breaker import CircuitBreaker

SLOW_MS = 80


def breaker_after(calls: str) -> CircuitBreaker:
    """A breaker after these calls in sequence: g(ood), s(low), f(ailed)."""
    breaker = CircuitBreaker(slow_ms=SLOW_MS)
    for at_s, event in enumerate(calls):
        record_call(breaker, event, at_s, at_s + 1)
    return breaker


def record_call(breaker: CircuitBreaker, event: str, started_at_s: float, now_s: float) -> None:
    if event == "f":
        breaker.record_failure(started_at_s, now_s)
    else:
        breaker.record_answer(started_at_s, now_s, SLOW_MS + 1 if event == "s" else SLOW_MS)


@pytest.mark.parametrize(
    ("calls", "is_open"),
    [
        ("", False),
        ("gggg", False),
        ("f", False),
        ("ff", True),
        ("ssss", False),
        ("sssss", True),
        ("sfsf", False),
        ("sfsfs", True),
        ("fgf", False),
        ("ssssgssss", False),
        ("gf" * 9, False),
        ("gf" * 10, True),
        ("ggf" * 20, False),
        ("g" * 20 + "gf" * 9, False),
        ("g" * 100 + "ff", True),
    ],
)
def test_breaker_opens_after_faults_in_a_row_or_a_high_share_of_failures(calls: str, is_open: bool) -> None:
    assert breaker_after(calls).is_open is is_open


@pytest.mark.parametrize(("event", "rounds"), [("s", 5), ("f", 2)])
def test_concurrent_calls_count_as_one_event(event: str, rounds: int) -> None:
    breaker = CircuitBreaker(slow_ms=SLOW_MS)
    for number in range(rounds):
        assert not breaker.is_open
        # Thirty calls that start together and end one after the other.
        for place in range(30):
            record_call(breaker, event, number, number + 0.9 + place / 1000)
    assert breaker.is_open


def test_open_breaker_stays_open_after_good_answers() -> None:
    breaker = breaker_after("fffff" + "g" * 50)
    assert breaker.is_open


def test_closed_breaker_forgets_earlier_failures() -> None:
    breaker = breaker_after("fffff")
    breaker.close()
    record_call(breaker, "f", 10, 11)
    assert not breaker.is_open
    record_call(breaker, "f", 11, 12)
    assert (breaker.is_open, breaker.times_opened) == (True, 2)
