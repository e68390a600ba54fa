"""What the contract suite does not cover of the book: its limits, and that failed operations change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from policies.amounts import AMOUNT_MAX, Amount, Limit
from policies.book import CLAIM_MS, Book, DictStorage, is_forgettable_account, is_forgettable_reservation
from policies.reservation import (
    EXPIRED_KEEP_MS,
    KEEP_MS,
    RESOLVED_KEEP_MS,
    Account,
    Balance,
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


def test_failed_reserve_changes_no_account_or_reservation() -> None:
    storage = DictStorage()
    book = Book(storage)
    book.restore("p", "full", Amount(AMOUNT_MAX), KEEP_MS, None, None, 0)
    before = dict(storage.accounts)
    with pytest.raises(ValueError, match="2\\^53"):
        book.reserve("p", request("c1", Hold("first"), Hold("full")), 0)
    assert (storage.accounts, storage.reservations) == (before, {})


def test_purge_forgets_at_most_as_many_as_asked() -> None:
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
def test_account_is_forgettable_after_keep_ms_unless_it_has_reservations(account: Account, over: bool) -> None:
    assert is_forgettable_account(account, 150) is over


@pytest.mark.parametrize(("state", "after_ms", "over"), [
    (State.SETTLED, RESOLVED_KEEP_MS, True),
    (State.SETTLED, RESOLVED_KEEP_MS - 1, False),
    (State.PENDING, 10 * RESOLVED_KEEP_MS, False),
    (State.EXPIRED, EXPIRED_KEEP_MS - 1, False),
    (State.EXPIRED, EXPIRED_KEEP_MS, True),
    (State.LATE, RESOLVED_KEEP_MS, True),
])  # fmt: skip
def test_resolved_reservation_is_kept_for_an_hour_and_expired_one_for_days(
    state: State, after_ms: int, over: bool
) -> None:
    reservation = Reservation("c", "gw", (), (), Amount(), 0, 0, OnLost.CHARGE, b"", state, resolved_ms=7)
    assert is_forgettable_reservation(reservation, 7 + after_ms) is over


def test_outbox_claim_is_renewed_by_reading_and_expires_without_it() -> None:
    book = Book(DictStorage())
    book.reserve("p", request("c1", Hold("run")), 0)
    book.settle("p", "c1", Amount(1), b"", 0)
    assert len(book.outbox_read("one", 10, 0)) == 1
    assert len(book.outbox_read("one", 10, CLAIM_MS - 1)) == 1
    assert book.outbox_read("two", 10, CLAIM_MS) == ()
    assert len(book.outbox_read("two", 10, 2 * CLAIM_MS - 1)) == 1
    assert book.outbox_read("one", 10, 2 * CLAIM_MS) == ()


def test_expire_due_resolves_only_due_reservations_up_to_the_limit() -> None:
    book = Book(DictStorage())
    for n in range(4):
        assert isinstance(book.reserve("p", request(f"c{n}", Hold("run")), n), Granted)
    assert [lost.id for lost in book.expire_due(2, 60_002)] == ["c0", "c1"]
    assert [lost.id for lost in book.expire_due(9, 60_002)] == ["c2"]


def test_gate_override_and_restore_renew_the_keep_time_of_an_account() -> None:
    changes: list[Callable[[Book], Balance | None]] = [
        lambda book: book.set_gate("p", "run", Gate.PAUSED, 50),
        lambda book: book.set_override("p", "run", Limit(5), 50),
        lambda book: book.restore("p", "run", Amount(3), KEEP_MS, None, None, 50),
    ]
    for change in changes:
        storage = DictStorage()
        balance = change(Book(storage))
        assert balance is None or balance.account == "run"
        assert (storage.forget_expired(49 + KEEP_MS, 9), storage.forget_expired(50 + KEEP_MS, 9)) == (0, 1)


def test_restore_sets_the_keep_time_of_an_account() -> None:
    storage = DictStorage()
    Book(storage).restore("p", "run", Amount(3), 100, None, None, 50)
    assert (storage.forget_expired(149, 9), storage.forget_expired(150, 9)) == (0, 1)


def test_extend_touches_the_account_and_decisions_return_the_current_time() -> None:
    storage = DictStorage()
    book = Book(storage)
    book.reserve("p", request("c1", Hold("run")), 10)
    assert book.reserve("p", request("c1", Hold("run")), 20).now_ms == 20
    assert book.extend("p", "c1", [Hold("run")], Demand(0, 1, 1), 30).now_ms == 30
    assert storage.accounts["p", "run"].used_ms == 30
    assert book.extend("p", "unknown", [Hold("run")], Demand(0, 1, 1), 40).now_ms == 40


def test_expire_due_takes_the_earliest_deadline_first() -> None:
    book = Book(DictStorage())
    for name, now_ms in (("b", 0), ("a", 1), ("c", 2)):
        book.reserve("p", request(name, Hold("run")), now_ms)
    assert [lost.id for lost in book.expire_due(2, 60_005)] == ["b", "a"]


def test_outbox_entries_carry_their_project_and_a_unique_position() -> None:
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


def test_expired_reservation_reports_what_it_released() -> None:
    book = Book(DictStorage())
    demand = Demand(0, 10, 10, output_nano_usd_per_token=2)
    book.reserve("p", replace(request("c1", Hold("run")), demand=demand, on_lost=OnLost.RELEASE), 0)
    assert [lost.released for lost in book.expire_due(9, 60_000)] == [Amount(10, 20, 1)]


def test_late_reservation_is_purged_as_soon_as_a_settled_one() -> None:
    storage = DictStorage()
    book = Book(storage)
    book.reserve("p", request("c1", Hold("run")), 0)
    book.expire_due(9, 60_000)
    book.settle("p", "c1", Amount(1), b"", 60_000)
    assert book.purge(9, 60_000 + RESOLVED_KEEP_MS) == 1
    assert storage.reservations == {}
    assert book.purge(9, 60_000 + EXPIRED_KEEP_MS) == 1  # only the account: the reservation is gone already


def test_idle_implicit_run_is_purged_when_its_time_is_up() -> None:
    book = Book(DictStorage())
    book.current_run("p", "w", "r", 10, 0)
    assert (book.purge(9, 9), book.purge(9, 10)) == (0, 1)
