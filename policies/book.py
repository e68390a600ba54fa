"""A complete ledger as pure logic: what each operation reads, decides and writes, one at a time, at a given time.

A `Book` itself keeps only the claims on the outbox. Everything else goes through a `BookStorage`, which has no logic:
`DictStorage` backs the in-memory twin, and the SQLite engine has its own. Every operation finishes its checks before it writes, so an
operation that fails has changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, takewhile
from typing import Protocol

from policies.amounts import UNLIMITED, ZERO, Amount, Limit
from policies.reservation import (
    EXPIRED_KEEP_MS,
    RESOLVED_KEEP_MS,
    Account,
    Balance,
    Decision,
    Demand,
    Gate,
    Hold,
    Placement,
    Progress,
    Reservation,
    Reserve,
    State,
    extend,
    place,
    renewed_reservation,
    repeat_placement,
    resolved_refusal,
)
from policies.settlement import (
    UNKNOWN_RESERVATION,
    Booking,
    ExpiredReservation,
    OutboxEntry,
    Resolution,
    expire,
    settle,
    void,
)

# A consumer that has not acknowledged the entries it read within this time is considered dead.
CLAIM_MS = 30_000


class BookStorage(Protocol):
    """Where a book keeps its values. Accounts and reservations of different projects are kept apart."""

    def account(self, project: str, name: str) -> Account | None: ...

    def put_account(self, project: str, name: str, account: Account) -> None: ...

    def reservation(self, project: str, reservation_id: str) -> Reservation | None: ...

    def put_reservation(self, project: str, reservation: Reservation) -> None: ...

    def due_reservations(self, now_ms: int, limit: int) -> Sequence[tuple[str, str]]:
        """(project, id) of pending reservations whose deadline is not after `now_ms`, oldest deadline first."""

    def pending(self, project: str, limit: int) -> Sequence[Reservation]:
        """Oldest deadline first, then by id."""

    def append(self, entry: OutboxEntry) -> None: ...

    def outbox(self) -> Iterable[OutboxEntry]:
        """Oldest first, each with its position."""

    def remove(self, positions: Sequence[str]) -> None: ...

    def outbox_size(self) -> int: ...

    def run(self, project: str, workflow: str) -> tuple[str, int] | None:
        """The implicit run of a workflow, and when it closes unless a call arrives before."""

    def put_run(self, project: str, workflow: str, run: str, closes_ms: int) -> None: ...

    def forget_expired(self, now_ms: int, limit: int) -> int:
        """Drop up to `limit` items whose keep time is over: unused accounts without holds, resolved reservations, runs."""


@dataclass(slots=True)
class Book:
    """Every operation of the port `Ledger`, with the time as its last argument. Raises ValueError for invalid calls."""

    storage: BookStorage
    _claims: dict[str, tuple[str, int]] = field(default_factory=dict)  # position → consumer, since when

    def reserve(self, project: str, request: Reserve, now_ms: int) -> Decision:
        accounts = self._accounts(project, [hold.account for hold in request.holds])
        reservation = self.storage.reservation(project, request.id)
        if reservation is not None:
            return repeat_placement(request, reservation, accounts, now_ms).decision
        return self._write_placement(project, place(request, accounts, now_ms))

    def extend(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand, now_ms: int) -> Decision:
        accounts = self._accounts(project, [hold.account for hold in holds])
        reservation = self.storage.reservation(project, reservation_id)
        if reservation is None:
            return resolved_refusal(holds, accounts, now_ms)
        return self._write_placement(project, extend(reservation, holds, extra, accounts, now_ms))

    def renew(self, project: str, progress: Sequence[Progress], ttl_ms: int, now_ms: int) -> tuple[str, ...]:
        reservations = [(heartbeat, self.storage.reservation(project, heartbeat.id)) for heartbeat in progress]
        for heartbeat, reservation in reservations:
            if reservation is not None and reservation.state is State.PENDING:
                self.storage.put_reservation(project, renewed_reservation(reservation, heartbeat, now_ms + ttl_ms))
        return tuple(
            heartbeat.id
            for heartbeat, reservation in reservations
            if reservation is None or reservation.state is not State.PENDING
        )

    def settle(self, project: str, reservation_id: str, used: Amount, detail: bytes, now_ms: int) -> Resolution:
        reservation = self.storage.reservation(project, reservation_id)
        if reservation is None:
            return UNKNOWN_RESERVATION
        accounts = self._accounts(project, reservation.accounts)
        return self._write_booking(project, settle(project, reservation, accounts, used, detail, now_ms))

    def void(self, project: str, reservation_id: str, now_ms: int) -> Resolution:
        reservation = self.storage.reservation(project, reservation_id)
        if reservation is None:
            return UNKNOWN_RESERVATION
        return self._write_booking(
            project, void(project, reservation, self._accounts(project, reservation.accounts), now_ms)
        )

    def expire_due(self, limit: int, now_ms: int) -> tuple[ExpiredReservation, ...]:
        due = self.storage.due_reservations(now_ms, limit)
        return tuple(self._expire_reservation(project, reservation_id, now_ms) for project, reservation_id in due)

    def record(self, project: str, entries: Sequence[OutboxEntry], now_ms: int) -> None:
        for entry in entries:
            self.storage.append(replace(entry, position="", project=project, at_ms=entry.at_ms or now_ms))

    def balances(self, project: str, accounts: Sequence[str], now_ms: int) -> tuple[Balance, ...]:
        return tuple(self._account(project, name).balance(name) for name in accounts)

    def set_override(self, project: str, account: str, limit: Limit, now_ms: int) -> Balance:
        updated = replace(self._account(project, account), override=limit, tightened=UNLIMITED, used_ms=now_ms)
        self.storage.put_account(project, account, updated)
        return updated.balance(account)

    def set_gate(self, project: str, account: str, gate: Gate, now_ms: int) -> Balance:
        updated = replace(self._account(project, account), gate=gate, used_ms=now_ms)
        self.storage.put_account(project, account, updated)
        return updated.balance(account)

    def current_run(self, project: str, workflow: str, candidate: str, silence_ms: int, now_ms: int) -> str:
        current = self.storage.run(project, workflow)
        run = candidate if current is None or current[1] <= now_ms else current[0]
        self.storage.put_run(project, workflow, run, now_ms + silence_ms)
        return run

    def pending(self, project: str, limit: int, now_ms: int) -> tuple[tuple[str, str, Amount, int], ...]:
        rows = self.storage.pending(project, limit)
        return tuple((row.id, row.owner, row.held, row.deadline_ms) for row in rows)

    def outbox_read(self, consumer: str, limit: int, now_ms: int) -> tuple[OutboxEntry, ...]:
        free = (entry for entry in self.storage.outbox() if self._is_claimable(entry.position, consumer, now_ms))
        entries = tuple(islice(free, limit))
        self._claims.update((entry.position, (consumer, now_ms)) for entry in entries)
        return entries

    def outbox_acknowledge(self, entries: Sequence[OutboxEntry], now_ms: int) -> None:
        self.storage.remove([entry.position for entry in entries])
        for entry in entries:
            self._claims.pop(entry.position, None)

    def outbox_size(self, now_ms: int) -> int:
        return self.storage.outbox_size()

    def restore(
        self,
        project: str,
        account: str,
        settled: Amount,
        keep_ms: int,
        gate: Gate | None,
        override: Limit | None,
        now_ms: int,
    ) -> None:
        current = self._account(project, account)
        restored = replace(
            current,
            settled=settled,
            keep_ms=keep_ms,
            used_ms=now_ms,
            gate=current.gate if gate is None else gate,
            override=current.override if override is None else override,
        )
        self.storage.put_account(project, account, restored)

    def purge(self, limit: int, now_ms: int) -> int:
        return self.storage.forget_expired(now_ms, limit)

    def _account(self, project: str, name: str) -> Account:
        return self.storage.account(project, name) or Account()

    def _accounts(self, project: str, names: Iterable[str]) -> list[Account]:
        return [self._account(project, name) for name in names]

    def _write_placement(self, project: str, placement: Placement) -> Decision:
        if placement.reservation is not None:
            self._write_reservation(project, placement.reservation, placement.accounts)
        for name, account in placement.tightened:
            self.storage.put_account(project, name, account)
        return placement.decision

    def _write_booking(self, project: str, booking: Booking) -> Resolution:
        if booking.reservation is not None:
            self._write_reservation(project, booking.reservation, booking.accounts)
        if booking.entry is not None:
            self.storage.append(booking.entry)
        return booking.resolution

    def _write_reservation(self, project: str, reservation: Reservation, accounts: Sequence[Account]) -> None:
        for name, account in zip(reservation.accounts, accounts, strict=True):
            self.storage.put_account(project, name, account)
        self.storage.put_reservation(project, reservation)

    def _expire_reservation(self, project: str, reservation_id: str, now_ms: int) -> ExpiredReservation:
        reservation = self.storage.reservation(project, reservation_id)
        if reservation is None:
            raise LookupError(f"reservation {reservation_id!r} is due and is not there")
        accounts = self._accounts(project, reservation.accounts)
        booked = self._write_booking(project, expire(project, reservation, accounts, now_ms)).booked
        released = reservation.held.excess_over(booked)
        return ExpiredReservation(reservation.id, project, reservation.owner, booked, released)

    def _is_claimable(self, position: str, consumer: str, now_ms: int) -> bool:
        holder, since_ms = self._claims.get(position, (consumer, 0))
        return holder == consumer or since_ms + CLAIM_MS <= now_ms


class DictStorage:
    """Plain dicts."""

    def __init__(self) -> None:
        self.accounts: dict[tuple[str, str], Account] = {}
        self.reservations: dict[tuple[str, str], Reservation] = {}
        self.entries: dict[str, OutboxEntry] = {}
        self.runs: dict[tuple[str, str], tuple[str, int]] = {}
        # The pending reservations, and the others by keep time, longest resolved first, so that no sweep scans all of them.
        self._open: set[tuple[str, str]] = set()
        self._resolved: dict[int, dict[tuple[str, str], None]] = {RESOLVED_KEEP_MS: {}, EXPIRED_KEEP_MS: {}}
        self._positions = 0

    def account(self, project: str, name: str) -> Account | None:
        return self.accounts.get((project, name))

    def put_account(self, project: str, name: str, account: Account) -> None:
        self.accounts[project, name] = account

    def reservation(self, project: str, reservation_id: str) -> Reservation | None:
        return self.reservations.get((project, reservation_id))

    def put_reservation(self, project: str, reservation: Reservation) -> None:
        key = (project, reservation.id)
        self.reservations[key] = reservation
        self._open.discard(key)
        for resolved in self._resolved.values():
            resolved.pop(key, None)
        if reservation.state is State.PENDING:
            self._open.add(key)
        else:
            self._resolved[_keep_ms(reservation)][key] = None

    def due_reservations(self, now_ms: int, limit: int) -> list[tuple[str, str]]:
        over = [key for key in self._open if self.reservations[key].deadline_ms <= now_ms]
        return sorted(over, key=lambda key: (self.reservations[key].deadline_ms, key))[:limit]

    def pending(self, project: str, limit: int) -> list[Reservation]:
        in_project = [self.reservations[key] for key in self._open if key[0] == project]
        return sorted(in_project, key=lambda reservation: (reservation.deadline_ms, reservation.id))[:limit]

    def append(self, entry: OutboxEntry) -> None:
        self._positions += 1
        position = str(self._positions)
        self.entries[position] = replace(entry, position=position)

    def outbox(self) -> Iterable[OutboxEntry]:
        return self.entries.values()

    def remove(self, positions: Sequence[str]) -> None:
        for position in positions:
            self.entries.pop(position, None)

    def outbox_size(self) -> int:
        return len(self.entries)

    def run(self, project: str, workflow: str) -> tuple[str, int] | None:
        return self.runs.get((project, workflow))

    def put_run(self, project: str, workflow: str, run: str, closes_ms: int) -> None:
        self.runs[project, workflow] = (run, closes_ms)

    def forget_expired(self, now_ms: int, limit: int) -> int:
        accounts = [key for key, value in self.accounts.items() if is_forgettable_account(value, now_ms)][:limit]
        for key in accounts:
            del self.accounts[key]
        over = (
            takewhile(lambda key: is_forgettable_reservation(self.reservations[key], now_ms), keys)
            for keys in self._resolved.values()
        )
        answered = list(islice(chain.from_iterable(over), limit - len(accounts)))
        for key in answered:
            reservation = self.reservations.pop(key)
            del self._resolved[_keep_ms(reservation)][key]
        forgotten = len(accounts) + len(answered)
        closed = [key for key, (_, closes_ms) in self.runs.items() if closes_ms <= now_ms][: limit - forgotten]
        for key in closed:
            del self.runs[key]
        return forgotten + len(closed)


def is_forgettable_account(account: Account, now_ms: int) -> bool:
    """Whether its keep time is over and it has no holds."""
    return account.reserved == ZERO and account.used_ms + account.keep_ms <= now_ms


def is_forgettable_reservation(reservation: Reservation, now_ms: int) -> bool:
    """Whether it was resolved so long ago that no repeated request can refer to it."""
    return reservation.state is not State.PENDING and reservation.resolved_ms + _keep_ms(reservation) <= now_ms


def _keep_ms(reservation: Reservation) -> int:
    return EXPIRED_KEEP_MS if reservation.state is State.EXPIRED else RESOLVED_KEEP_MS
