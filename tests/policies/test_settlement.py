from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.amounts import AMOUNT_MAX, ZERO, Amount, Limit
from policies.reservation import Account, Balance, OnLost, Reservation, State
from policies.settlement import Booking, EntryKind, OutboxEntry, Resolution, expire, settle, void

HELD = Amount(50, 500, 1)
PENDING = Reservation(
    "c1", "gw", ("step", "run"), (Limit(60), Limit(tokens=100)), HELD, 50, 60_000, OnLost.CHARGE, b"draft"
)
STANDING = (Account(reserved=HELD), Account(settled=Amount(7), reserved=HELD + HELD, keep_ms=9))


def written(booking: Booking) -> tuple[Reservation, tuple[Account, ...]]:
    assert booking.reservation is not None
    return booking.reservation, booking.accounts


def test_settle_books_the_usage_and_releases_the_hold() -> None:
    used = Amount(30, 300, 1)
    booking = settle("p", PENDING, STANDING, used, b"detail", 1_000)
    reservation, accounts = written(booking)
    assert accounts == (
        Account(settled=used, used_ms=1_000),
        Account(settled=used + Amount(7), reserved=HELD, keep_ms=9, used_ms=1_000),
    )
    assert reservation == replace(PENDING, state=State.SETTLED, booked=used, resolved_ms=1_000, draft=b"")
    assert booking.entry == OutboxEntry("", "c1", EntryKind.SETTLED, "p", used, 1_000, b"draft", b"detail")
    assert booking.resolution.balances == (
        Balance("step", Limit(60), used, ZERO),
        Balance("run", Limit(100), used + Amount(7), HELD),
    )


def test_void_releases_the_hold_and_writes_no_outbox_entry() -> None:
    booking = void("p", PENDING, STANDING, 1_000)
    reservation, accounts = written(booking)
    assert [account.settled for account in accounts] == [ZERO, Amount(7)]
    assert [account.reserved for account in accounts] == [ZERO, HELD]
    assert (reservation.state, reservation.booked, booking.entry) == (State.VOIDED, ZERO, None)
    assert reservation.draft == b""


@pytest.mark.parametrize(
    ("on_lost", "progress", "booked"),
    [
        (OnLost.CHARGE, ZERO, HELD),
        (OnLost.CHARGE, Amount(20, 200, 1), HELD),
        (OnLost.CHARGE, Amount(80, 200, 1), Amount(80, 500, 1)),
        (OnLost.RELEASE, Amount(20, 200, 1), ZERO),
    ],
)
def test_expire_books_the_hold_or_greater_progress_if_losses_are_charged(
    on_lost: OnLost, progress: Amount, booked: Amount
) -> None:
    pending = replace(PENDING, on_lost=on_lost, progress=progress)
    booking = expire("p", pending, STANDING, 70_000)
    reservation, accounts = written(booking)
    assert (reservation.state, reservation.booked, reservation.draft) == (State.EXPIRED, booked, b"draft")
    assert [account.reserved for account in accounts] == [ZERO, HELD]
    assert accounts[0].settled == booked
    assert booking.entry == OutboxEntry(
        "", "c1:lost", EntryKind.EXPIRED, "p", booked, 70_000, b"draft", b"", booked.excess_over(HELD)
    )


@pytest.mark.parametrize("state", [State.SETTLED, State.VOIDED, State.LATE, State.EXPIRED])
def test_second_resolution_returns_the_first_outcome(state: State) -> None:
    reservation = replace(PENDING, state=state, booked=Amount(3), overrun=Amount(1))
    first_outcome = Booking(
        Resolution(
            state,
            False,
            Amount(3),
            Amount(1),
            tuple(
                account.balance(name, limit)
                for name, limit, account in zip(reservation.accounts, reservation.limits, STANDING, strict=True)
            ),
        )
    )
    assert expire("p", reservation, STANDING, 0) == first_outcome
    if state is not State.EXPIRED:
        assert void("p", reservation, STANDING, 0) == first_outcome
        assert settle("p", reservation, STANDING, Amount(99), b"", 0) == first_outcome


def test_void_after_expiry_reverses_what_was_booked() -> None:
    expired = replace(PENDING, state=State.EXPIRED, booked=HELD)
    booking = void("p", expired, (Account(settled=HELD), Account(settled=HELD + Amount(7))), 1_000)
    reservation, accounts = written(booking)
    assert [account.settled for account in accounts] == [ZERO, Amount(7)]
    assert (reservation.state, reservation.booked) == (State.LATE, ZERO)
    assert booking.entry == OutboxEntry("", "c1:late", EntryKind.LATE, "p", ZERO - HELD, 1_000, b"draft")


uses = st.builds(Amount, *[st.integers(0, 120)] * 3)


@given(uses, uses, st.sampled_from(OnLost))
def test_expiry_and_late_settlement_add_up_to_the_usage(progress: Amount, used: Amount, on_lost: OnLost) -> None:
    lost = expire("p", replace(PENDING, on_lost=on_lost, progress=progress), STANDING, 1)
    reservation, accounts = written(lost)
    late = settle("p", reservation, accounts, used, b"", 2)
    final, after = written(late)
    assert (final.state, final.booked, final.draft) == (State.LATE, used, b"")
    assert (late.resolution.booked, late.resolution.overrun) == (used, used.excess_over(HELD))
    assert [account.settled for account in after] == [used, used + Amount(7)]
    assert [account.reserved for account in after] == [ZERO, HELD]
    assert lost.entry is not None
    assert late.entry is not None
    assert lost.entry.amount + late.entry.amount == used
    assert lost.entry.overrun + late.entry.overrun == used.excess_over(HELD)
    assert (late.entry.id, late.entry.kind, late.entry.draft) == ("c1:late", EntryKind.LATE, b"draft")


def test_settled_counter_saturates_at_its_maximum_and_at_zero() -> None:
    full = (Account(settled=Amount(AMOUNT_MAX), reserved=HELD), Account(reserved=HELD))
    _, accounts = written(settle("p", PENDING, full, Amount(30), b"", 0))
    assert [account.settled.tokens for account in accounts] == [AMOUNT_MAX, 30]
    expired = replace(PENDING, state=State.EXPIRED, booked=Amount(30))
    _, accounts = written(settle("p", expired, (Account(), Account(settled=Amount(40))), Amount(10), b"", 0))
    assert [account.settled.tokens for account in accounts] == [0, 20]


@pytest.mark.parametrize(
    ("used", "beyond"),
    [
        (HELD, ZERO),
        (Amount(51, 500, 1), Amount(1)),
        (Amount(49, 501, 1), Amount(0, 1)),
        (Amount(50, 499, 3), Amount(0, 0, 2)),
        (Amount(60, 600, 2), Amount(10, 100, 1)),
    ],
)
def test_overrun_is_the_usage_above_the_hold_in_each_unit(used: Amount, beyond: Amount) -> None:
    assert used.excess_over(HELD) == beyond
    entry = settle("p", PENDING, STANDING, used, b"", 0).entry
    assert entry is not None
    assert entry.overrun == beyond


def test_settle_with_fewer_accounts_than_the_reservation_raises() -> None:
    with pytest.raises(ValueError, match="shorter"):
        settle("p", PENDING, STANDING[:1], HELD, b"", 0)
