"""What the contract suite does not see of the book: its bounds, and that operations that fail have changed nothing."""

from __future__ import annotations

import pytest

from policies.amounts import AMOUNT_MAX, Amount, Limit
from policies.book import CLAIM_MS, Book, DictShelf, is_answered, is_forgettable
from policies.reservation import (
    EXPIRED_KEEP_MS,
    KEEP_MS,
    RESOLVED_KEEP_MS,
    Account,
    Demand,
    Granted,
    Hold,
    OnLost,
    Reservation,
    Reserve,
    State,
)


def request(name: str, *chain: Hold, tokens: int = 10) -> Reserve:
    return Reserve(name, "gw", chain, Demand(0, tokens, tokens, requests=0), 60_000, b"", OnLost.CHARGE)


def test_a_failed_operation_has_changed_nothing() -> None:
    shelf = DictShelf()
    book = Book(shelf)
    book.restore("p", "full", Amount(AMOUNT_MAX), KEEP_MS, None, None, 0)
    before = dict(shelf.accounts)
    with pytest.raises(ValueError, match="2\\^53"):
        book.reserve("p", request("c1", Hold("first"), Hold("full")), 0)
    assert (shelf.accounts, shelf.reservations) == (before, {})


def test_forgetting_is_bounded() -> None:
    book = Book(DictShelf())
    for n in range(5):
        book.reserve("p", request(f"c{n}", Hold(f"run:{n}", keep_ms=10)), 0)
        book.void("p", f"c{n}", 0)
        book.current_run("p", f"w{n}", "r", 10, 0)
    counts = [book.purge(4, RESOLVED_KEEP_MS) for _ in range(5)]
    assert counts == [4, 4, 4, 3, 0]


@pytest.mark.parametrize(
    ("account", "over"),
    [
        (Account(keep_ms=100, used_ms=50), True),
        (Account(keep_ms=101, used_ms=50), False),
        (Account(keep_ms=100, used_ms=50, reserved=Amount(1)), False),
        (Account(keep_ms=100, used_ms=50, override=Limit(5)), True),
    ],
)
def test_accounts_are_forgotten_after_their_keep_time(account: Account, over: bool) -> None:
    assert is_forgettable(account, 150) is over


@pytest.mark.parametrize(("state", "after_ms", "over"), [
    (State.SETTLED, RESOLVED_KEEP_MS, True),
    (State.SETTLED, RESOLVED_KEEP_MS - 1, False),
    (State.PENDING, 10 * RESOLVED_KEEP_MS, False),
    (State.EXPIRED, EXPIRED_KEEP_MS - 1, False),
    (State.EXPIRED, EXPIRED_KEEP_MS, True),
    (State.LATE, RESOLVED_KEEP_MS, True),
])  # fmt: skip
def test_resolved_reservations_answer_for_an_hour_and_expired_ones_for_days(
    state: State, after_ms: int, over: bool
) -> None:
    found = Reservation("c", "gw", (), (), Amount(), 0, 0, OnLost.CHARGE, b"", state, resolved_ms=7)
    assert is_answered(found, 7 + after_ms) is over


def test_a_claim_is_renewed_by_reading_and_ends_with_silence() -> None:
    book = Book(DictShelf())
    book.reserve("p", request("c1", Hold("run")), 0)
    book.settle("p", "c1", Amount(1), b"", 0)
    assert len(book.outbox_read("one", 10, 0)) == 1
    assert len(book.outbox_read("one", 10, CLAIM_MS - 1)) == 1
    assert book.outbox_read("two", 10, CLAIM_MS) == ()
    assert len(book.outbox_read("two", 10, 2 * CLAIM_MS - 1)) == 1
    assert book.outbox_read("one", 10, 2 * CLAIM_MS) == ()


def test_only_the_due_are_resolved_and_only_as_many_as_asked() -> None:
    book = Book(DictShelf())
    for n in range(4):
        assert isinstance(book.reserve("p", request(f"c{n}", Hold("run")), n), Granted)
    assert [lost.id for lost in book.expire_due(2, 60_002)] == ["c0", "c1"]
    assert [lost.id for lost in book.expire_due(9, 60_002)] == ["c2"]
