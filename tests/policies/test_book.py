"""What the contract suite does not see of the book: its bounds, and that operations that fail have changed nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.amounts import AMOUNT_MAX, Amount, Limit
from policies.book import CLAIM_MS, Book, DictStorage, is_forgettable_account, is_forgettable_reservation
from policies.reservation import (
    EXPIRED_KEEP_MS,
    KEEP_MS,
    RESOLVED_KEEP_MS,
    Account,
    Demand,
    Gate,
    Granted,
    Hold,
    OnLost,
    Reservation,
    Reserve,
    State,
)
from policies.settlement import EntryKind, OutboxEntry


def request(name: str, *chain: Hold, tokens: int = 10) -> Reserve:
    return Reserve(name, "gw", chain, Demand(0, tokens, tokens, requests=0), 60_000, b"", OnLost.CHARGE)


def test_a_failed_operation_has_changed_nothing() -> None:
    storage = DictStorage()
    book = Book(storage)
    book.restore("p", "full", Amount(AMOUNT_MAX), KEEP_MS, None, None, 0)
    before = dict(storage.accounts)
    with pytest.raises(ValueError, match="2\\^53"):
        book.reserve("p", request("c1", Hold("first"), Hold("full")), 0)
    assert (storage.accounts, storage.reservations) == (before, {})


def test_forgetting_is_bounded() -> None:
    book = Book(DictStorage())
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
    assert is_forgettable_account(account, 150) is over


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
    assert is_forgettable_reservation(found, 7 + after_ms) is over


def test_a_claim_is_renewed_by_reading_and_ends_with_silence() -> None:
    book = Book(DictStorage())
    book.reserve("p", request("c1", Hold("run")), 0)
    book.settle("p", "c1", Amount(1), b"", 0)
    assert len(book.outbox_read("one", 10, 0)) == 1
    assert len(book.outbox_read("one", 10, CLAIM_MS - 1)) == 1
    assert book.outbox_read("two", 10, CLAIM_MS) == ()
    assert len(book.outbox_read("two", 10, 2 * CLAIM_MS - 1)) == 1
    assert book.outbox_read("one", 10, 2 * CLAIM_MS) == ()


def test_only_the_due_are_resolved_and_only_as_many_as_asked() -> None:
    book = Book(DictStorage())
    for n in range(4):
        assert isinstance(book.reserve("p", request(f"c{n}", Hold("run")), n), Granted)
    assert [lost.id for lost in book.expire_due(2, 60_002)] == ["c0", "c1"]
    assert [lost.id for lost in book.expire_due(9, 60_002)] == ["c2"]


def test_what_people_decide_keeps_an_account_as_a_call_does() -> None:
    for touch in (
        lambda book: book.set_gate("p", "run", Gate.PAUSED, 50),
        lambda book: book.set_override("p", "run", Limit(5), 50),
        lambda book: book.restore("p", "run", Amount(3), KEEP_MS, None, None, 50),
    ):
        storage = DictStorage()
        told = touch(Book(storage))
        assert told is None or told.account == "run"
        assert (storage.forget_expired(49 + KEEP_MS, 9), storage.forget_expired(50 + KEEP_MS, 9)) == (0, 1)


def test_restoring_says_how_long_an_account_is_kept() -> None:
    storage = DictStorage()
    Book(storage).restore("p", "run", Amount(3), 100, None, None, 50)
    assert (storage.forget_expired(149, 9), storage.forget_expired(150, 9)) == (0, 1)


def test_growing_uses_an_account_and_a_repeated_request_is_told_the_time() -> None:
    storage = DictStorage()
    book = Book(storage)
    book.reserve("p", request("c1", Hold("run")), 10)
    assert book.reserve("p", request("c1", Hold("run")), 20).now_ms == 20
    assert book.extend("p", "c1", [Hold("run")], Demand(0, 1, 1), 30).now_ms == 30
    assert storage.accounts["p", "run"].used_ms == 30
    assert book.extend("p", "unknown", [Hold("run")], Demand(0, 1, 1), 40).now_ms == 40


def test_the_oldest_deadline_is_due_first_whatever_it_is_called() -> None:
    book = Book(DictStorage())
    for name, now_ms in (("b", 0), ("a", 1), ("c", 2)):
        book.reserve("p", request(name, Hold("run")), now_ms)
    assert [lost.id for lost in book.expire_due(2, 60_005)] == ["b", "a"]


def test_every_entry_of_the_outbox_is_its_projects_and_has_a_position_of_its_own() -> None:
    book = Book(DictStorage())
    for name in ("lost", "late"):
        book.reserve("p", request(name, Hold("run")), 0)
    book.expire_due(9, 60_000)
    book.void("p", "late", 60_000)
    book.record("p", [OutboxEntry("elsewhere", "r", EntryKind.RECORDED, "other", Amount(), 0, b"{}")], 7)
    entries = book.outbox_read("one", 9, 60_000)
    assert {entry.id: entry.project for entry in entries} == dict.fromkeys(
        ("lost:lost", "late:lost", "late:late", "r"), "p"
    )
    assert "elsewhere" not in {entry.position for entry in entries}
    assert len({entry.position for entry in entries}) == 4
    book.outbox_acknowledge(entries, 60_000)
    assert (book.outbox_size(60_000), book._claims) == (0, {})


def test_a_lost_hold_tells_what_of_it_went_back() -> None:
    book = Book(DictStorage())
    demand = Demand(0, 10, 10, output_nano_usd_per_token=2)
    book.reserve("p", replace(request("c1", Hold("run")), demand=demand, on_lost=OnLost.RELEASE), 0)
    assert [lost.released for lost in book.expire_due(9, 60_000)] == [Amount(10, 20, 1)]


def test_an_expired_reservation_that_was_settled_late_is_forgotten_like_a_settled_one() -> None:
    storage = DictStorage()
    book = Book(storage)
    book.reserve("p", request("c1", Hold("run")), 0)
    book.expire_due(9, 60_000)
    book.settle("p", "c1", Amount(1), b"", 60_000)
    assert book.purge(9, 60_000 + RESOLVED_KEEP_MS) == 1
    assert storage.reservations == {}
    assert book.purge(9, 60_000 + EXPIRED_KEEP_MS) == 1  # the account, and nothing that is not there any more


def test_a_run_nobody_was_heard_of_from_is_forgotten_when_it_closes() -> None:
    book = Book(DictStorage())
    book.current_run("p", "w", "r", 10, 0)
    assert (book.purge(9, 9), book.purge(9, 10)) == (0, 1)
