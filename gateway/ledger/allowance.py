"""What may be granted while the ledger is out of reach: for each account, what was left when it was last seen, divided by the
number of gateway processes. So together they cannot grant more than was left.

An account that this process has never seen counts as unused: a run that begins during an outage may use its limit divided by
the number of processes. The ledger hears of it when it is back; what was used is then booked by reservation id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from policies.amounts import UNITS, UNLIMITED, ZERO, Amount, Limit
from policies.reservation import (
    Account,
    Balance,
    Decision,
    Demand,
    Granted,
    Hold,
    Placement,
    Reservation,
    Reserve,
    extend,
    place,
    repeat_placement,
)

# Accounts seen longest ago are dropped first, and then count as never seen.
_SEEN_MAX: Final = 50_000


class Allowance:
    """The local book of one outage, and the balances seen before it. Every method runs in one turn of the event loop."""

    def __init__(self) -> None:
        self._seen_balances: dict[tuple[str, str], Balance] = {}
        self._accounts: dict[tuple[str, str], Account] = {}
        self._reservations: dict[tuple[str, str], Reservation] = {}
        # the part of a reservation here that the ledger itself holds
        self._held_by_ledger: dict[tuple[str, str], Amount] = {}
        self._processes = 1

    def record_balances(self, project: str, balances: Sequence[Balance]) -> None:
        """Remember the balances of accounts in the ledger."""
        for balance in balances:
            key = (project, balance.account)
            self._seen_balances.pop(key, None)
            self._seen_balances[key] = balance
        while len(self._seen_balances) > _SEEN_MAX:
            del self._seen_balances[next(iter(self._seen_balances))]

    def start_outage(self, processes: int) -> None:
        """Start of an outage. Holds of an earlier outage that are still open count against the allowance."""
        self._processes = max(1, processes)
        self._accounts = {}
        for (project, _), reservation in self._reservations.items():
            self._add_to_accounts(project, reservation.accounts, self._locally_held(project, reservation), ZERO)

    def reserve(self, project: str, request: Reserve, now_ms: int) -> Decision:
        """Decide like a ledger, but against the allowance."""
        limited_request = replace(
            request, holds=tuple(self._hold_within_allowance(project, hold) for hold in request.holds)
        )
        accounts = [self._account(project, hold.account) for hold in limited_request.holds]
        existing = self._reservations.get((project, request.id))
        if existing is not None:
            return repeat_placement(limited_request, existing, accounts, now_ms).decision
        return self._apply_placement(project, place(limited_request, accounts, now_ms))

    def adopt(self, project: str, granted: Granted, request: Reserve) -> None:
        """Take over a reservation that the ledger granted before the outage, so that it can be extended during it."""
        names = tuple(hold.account for hold in request.holds)
        limits = tuple(hold.limit for hold in request.holds)
        held, tokens, deadline_ms = granted.held, granted.output_tokens, granted.deadline_ms
        key = (project, request.id)
        self._held_by_ledger[key] = held
        self._reservations[key] = Reservation(
            request.id, request.owner, names, limits, held, tokens, deadline_ms, request.on_lost, b""
        )

    def extend(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand, now_ms: int) -> Decision:
        """Enlarge a reservation that is known here (see `has_reservation`)."""
        limited_holds = [self._hold_within_allowance(project, hold) for hold in holds]
        accounts = [self._account(project, hold.account) for hold in limited_holds]
        return self._apply_placement(
            project, extend(self._reservations[project, reservation_id], limited_holds, extra, accounts, now_ms)
        )

    def has_reservation(self, project: str, reservation_id: str) -> bool:
        return (project, reservation_id) in self._reservations

    def is_local(self, project: str, reservation_id: str) -> bool:
        """Whether it was granted here, so that the ledger does not know it."""
        key = (project, reservation_id)
        return key in self._reservations and key not in self._held_by_ledger

    def resolve(self, project: str, reservation_id: str, used: Amount) -> Amount:
        """Free the reservation's hold on the allowance, and count what it used. Returns all that was held."""
        key = (project, reservation_id)
        reservation = self._reservations.pop(key)
        freed = self._locally_held(project, reservation)
        used_beyond_ledger = used.excess_over(self._held_by_ledger.pop(key, ZERO))
        self._add_to_accounts(project, reservation.accounts, ZERO - freed, used_beyond_ledger)
        return reservation.held

    def _hold_within_allowance(self, project: str, hold: Hold) -> Hold:
        """The same hold, with the allowance as its limit."""
        balance = self._seen_balances.get((project, hold.account))
        limit = (hold.limit if balance is None else balance.limit).tightened_by(hold.tighten)
        used = ZERO if balance is None else balance.settled + balance.reserved
        share = Limit(*(self._share(limit.of(unit), used.of(unit)) for unit in UNITS))
        return replace(hold, limit=share, tighten=UNLIMITED)

    def _share(self, limit_value: int | None, used_value: int) -> int | None:
        return None if limit_value is None else max(0, limit_value - used_value) // self._processes

    def _account(self, project: str, name: str) -> Account:
        account = self._accounts.get((project, name))
        if account is None:
            balance = self._seen_balances.get((project, name))
            account = Account() if balance is None else Account(gate=balance.gate)
        return account

    def _locally_held(self, project: str, reservation: Reservation) -> Amount:
        return reservation.held - self._held_by_ledger.get((project, reservation.id), ZERO)

    def _add_to_accounts(self, project: str, names: Sequence[str], reserved: Amount, settled: Amount) -> None:
        for name in names:
            account = self._account(project, name)
            updated = replace(account, reserved=account.reserved + reserved, settled=account.settled + settled)
            self._accounts[project, name] = updated

    def _apply_placement(self, project: str, placement: Placement) -> Decision:
        if placement.reservation is not None:
            self._reservations[project, placement.reservation.id] = placement.reservation
            for name, account in zip(placement.reservation.accounts, placement.accounts, strict=True):
                self._accounts[project, name] = account
        return placement.decision
