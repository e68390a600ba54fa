"""How a reservation ends: what is booked, what is released, and the usage event that reports it.

    ended by   settled grows by          the hold   event
    --------   -----------------------   --------   ----------------------------------------
    settle     what was used             freed      settled: used
    void       nothing                   freed      none
    expire     the whole hold, or        freed      expired: what was booked (or nothing)
               nothing (see `expiry_amount`)
    late       used − booked at expiry   –          late: the difference, which may be negative (a void used nothing)

Use beyond the hold is booked in full, and also reported as the overrun.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from policies.amounts import AMOUNT_MAX, ZERO, Amount
from policies.reservation import Account, Balance, Event, OnLost, Reservation, State, next_state
from policies.values import value_class


class EntryKind(StrEnum):
    SETTLED = "settled"
    # Booked by the sweeper (or released: a zero amount), with the id `<reservation>:lost`. The gateway may have recorded a
    # failure under the reservation's own id, if it could not void the hold any more.
    EXPIRED = "expired"
    LATE = "late"  # the difference of a late settlement, with the id `<reservation>:late`
    RECORDED = "recorded"  # without a reservation: untagged calls and refusals
    REPAIR = "repair"  # an explicit correction by `farebox reconcile`


@value_class
class OutboxEntry:
    """A usage event on its way to the store, where `id` makes it idempotent."""

    position: str  # the engine's handle for `acknowledge`; empty until it is written
    id: str
    kind: EntryKind
    project: str
    amount: Amount
    at_ms: int  # the ledger's clock; 0 in `record` means now
    draft: bytes  # JSON object from `Reserve.draft`
    detail: bytes = b""  # JSON object from `settle`; its fields override the draft's
    overrun: Amount = ZERO  # the part of `amount` beyond the hold


@value_class
class Resolution:
    """How a reservation ended. `first` is False if it was resolved before; then nothing was changed.

    `state` is None for an id that the ledger does not know (forgotten after its keep time, or never made). `booked` and
    `overrun` are totals, even after a late settlement. The limits of `balances` are those of this reservation's last grant,
    combined with the account's override and tightened limit.
    """

    state: State | None
    first: bool
    booked: Amount
    overrun: Amount
    balances: tuple[Balance, ...]  # in the order of the holds; empty when unknown


UNKNOWN_RESERVATION = Resolution(None, first=False, booked=ZERO, overrun=ZERO, balances=())


@value_class
class ExpiredReservation:
    """A reservation that the sweeper resolved because its deadline had passed."""

    id: str
    project: str
    owner: str
    booked: Amount
    released: Amount


@value_class
class Booking:
    """The result of a resolution, and what to write: nothing, if `reservation` is None."""

    resolution: Resolution
    reservation: Reservation | None = None
    accounts: tuple[Account, ...] = ()  # in the order of the reservation's accounts
    entry: OutboxEntry | None = None


def settle(
    project: str, reservation: Reservation, accounts: Sequence[Account], used: Amount, detail: bytes, now_ms: int
) -> Booking:
    """Book `used` in full and free the rest; after an expiry, book the difference once."""
    state = next_state(reservation.state, Event.SETTLE)
    if state is None:
        return _unchanged(reservation, accounts)
    late = state is State.LATE
    kind, entry_id = (EntryKind.LATE, f"{reservation.id}:late") if late else (EntryKind.SETTLED, reservation.id)
    # A pending reservation has booked nothing, and an expired one holds nothing any more.
    difference, freed = (used - reservation.booked, ZERO) if late else (used, reservation.held)
    overrun = used.excess_over(reservation.held)
    entry_overrun = overrun - reservation.overrun if late else overrun
    entry = OutboxEntry("", entry_id, kind, project, difference, now_ms, reservation.draft, detail, entry_overrun)
    resolved = _resolved_reservation(reservation, state, used, overrun, now_ms, draft=b"")
    return _booking(resolved, accounts, difference, freed, entry)


def void(project: str, reservation: Reservation, accounts: Sequence[Account], now_ms: int) -> Booking:
    """Release the whole hold, or take back what its expiry booked. Without an expiry there is no event, as nothing was spent."""
    state = next_state(reservation.state, Event.VOID)
    if state is None:
        return _unchanged(reservation, accounts)
    if state is State.LATE:
        return settle(project, reservation, accounts, ZERO, b"", now_ms)
    return _booking(
        _resolved_reservation(reservation, state, ZERO, ZERO, now_ms, draft=b""), accounts, ZERO, reservation.held, None
    )


def expire(project: str, reservation: Reservation, accounts: Sequence[Account], now_ms: int) -> Booking:
    """Resolve a reservation whose owner is considered dead. The caller has checked that the deadline has passed."""
    state = next_state(reservation.state, Event.EXPIRE)
    if state is None:
        return _unchanged(reservation, accounts)
    booked = expiry_amount(reservation)
    overrun = booked.excess_over(reservation.held)
    entry = OutboxEntry(
        "", f"{reservation.id}:lost", EntryKind.EXPIRED, project, booked, now_ms, reservation.draft, b"", overrun
    )  # fmt: skip
    # The draft is kept, because a late settlement sends it once more.
    resolved = _resolved_reservation(reservation, state, booked, overrun, now_ms, draft=reservation.draft)
    return _booking(resolved, accounts, booked, reservation.held, entry)


def expiry_amount(reservation: Reservation) -> Amount:
    """The amount booked for a reservation whose owner died: all that it held, and any reported use beyond that."""
    return reservation.held.unitwise_max(reservation.progress) if reservation.on_lost is OnLost.CHARGE else ZERO


def _unchanged(reservation: Reservation, accounts: Sequence[Account]) -> Booking:
    return Booking(
        Resolution(reservation.state, False, reservation.booked, reservation.overrun, _balances(reservation, accounts))
    )


def _resolved_reservation(
    reservation: Reservation, state: State, booked: Amount, overrun: Amount, now_ms: int, *, draft: bytes
) -> Reservation:
    # Spelled out, because `dataclasses.replace` takes three times as long and every call does this.
    return Reservation(
        reservation.id,
        reservation.owner,
        reservation.accounts,
        reservation.limits,
        reservation.held,
        reservation.output_tokens,
        reservation.deadline_ms,
        reservation.on_lost,
        draft,
        state,
        reservation.progress,
        booked,
        overrun,
        now_ms,
    )


def _booking(
    resolved: Reservation, accounts: Sequence[Account], difference: Amount, freed: Amount, entry: OutboxEntry | None
) -> Booking:
    accounts_after = tuple([_booked_account(account, difference, freed, resolved.resolved_ms) for account in accounts])
    balances = _balances(resolved, accounts_after)
    return Booking(
        Resolution(resolved.state, True, resolved.booked, resolved.overrun, balances), resolved, accounts_after, entry
    )


def _booked_account(account: Account, difference: Amount, freed: Amount, now_ms: int) -> Account:
    return Account(
        _clamped(account.settled + difference),
        account.reserved - freed,
        account.override,
        account.tightened,
        account.gate,
        account.keep_ms,
        now_ms,
    )


def _clamped(amount: Amount) -> Amount:
    """Clamped to 0 … 2^53 − 1: a full counter refuses everything anyhow, and booking must not fail.

    The lower end is reached if an account was forgotten or restored between an expiry and its late settlement.
    """
    tokens, nano_usd, requests = amount.tokens, amount.nano_usd, amount.requests
    if 0 <= tokens <= AMOUNT_MAX and 0 <= nano_usd <= AMOUNT_MAX and 0 <= requests <= AMOUNT_MAX:
        return amount
    return Amount(*(min(max(0, value), AMOUNT_MAX) for value in (tokens, nano_usd, requests)))


def _balances(reservation: Reservation, accounts: Sequence[Account]) -> tuple[Balance, ...]:
    chain = zip(reservation.accounts, reservation.limits, accounts, strict=True)
    return tuple([account.balance(name, limit) for name, limit, account in chain])
