from __future__ import annotations

import pytest

from gateway.ledger.breaker import Breaker

SLOW_MS = 80


def after(story: str) -> Breaker:
    """A breaker to which this happened: g(ood), s(low), f(ailed)."""
    breaker = Breaker(slow_ms=SLOW_MS)
    for event in story:
        if event == "f":
            breaker.failed()
        else:
            breaker.answered(SLOW_MS + 1 if event == "s" else SLOW_MS)
    return breaker


@pytest.mark.parametrize(
    ("story", "is_open"),
    [
        ("", False),
        ("gggg", False),
        ("ffff", False),
        ("fffff", True),
        ("sssss", True),
        ("sfsfs", True),
        ("ffffgffff", False),
        ("gf" * 9, False),
        ("gf" * 10, True),
        ("ggf" * 20, False),
        ("g" * 20 + "gf" * 9, False),
        ("g" * 100 + "fffff", True),
    ],
)
def test_opens(story: str, is_open: bool) -> None:
    assert after(story).is_open is is_open


def test_does_not_close_by_itself() -> None:
    breaker = after("fffff" + "g" * 50)
    assert breaker.is_open


def test_begins_afresh_when_closed() -> None:
    breaker = after("fffff")
    breaker.close()
    for _ in range(4):
        breaker.failed()
    assert not breaker.is_open
    breaker.failed()
    assert (breaker.is_open, breaker.times_opened) == (True, 2)
