"""Accounts, reservations, outbox and runs as rows of SQLite.

As this is the only connection, what was read once stays true: values are kept until there are too many, changes are
collected, and `commit` writes them all in one transaction. A row that is changed by a hundred operations is written once.
"""

from __future__ import annotations

# ruff: noqa: S608 - what is put into the statements are the column lists of this file
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson

from policies.amounts import UNLIMITED, ZERO, Amount, Limit
from policies.reservation import RESOLVED_KEEP_MS, Account, Gate, OnLost, Reservation, State
from policies.settlement import EntryKind, OutboxEntry

Key = tuple[str, str]

# An account takes about 1 KB here: 64 MB at most. Then everything is dropped, which is simpler than choosing, and seldom.
CACHE_MAX: Final = 65_536
_PAGE: Final = 500  # rows of the outbox that are fetched at once

_ACCOUNT_COLUMNS: Final = (
    "settled_tokens, settled_nano_usd, settled_requests, reserved_tokens, reserved_nano_usd, reserved_requests, used_ms, "
    "override_tokens, override_nano_usd, override_requests, tightened_tokens, tightened_nano_usd, tightened_requests, "
    "gate, keep_ms"
)
_RESERVATION_COLUMNS: Final = (
    "id, owner, on_lost, chain, held_tokens, held_nano_usd, held_requests, output_tokens, deadline_ms, draft, state, "
    "progress_tokens, progress_nano_usd, progress_requests, booked_tokens, booked_nano_usd, booked_requests, "
    "overrun_tokens, overrun_nano_usd, overrun_requests, resolved_ms"
)
_OUTBOX_COLUMNS: Final = (
    "position, id, kind, project, tokens, nano_usd, requests, at_ms, draft, detail, "
    "overrun_tokens, overrun_nano_usd, overrun_requests"
)


def _marks(columns: str, more: int = 0) -> str:
    return ", ".join("?" * (columns.count(",") + 1 + more))


_READ_ACCOUNT: Final = f"SELECT {_ACCOUNT_COLUMNS} FROM account WHERE project = ? AND account = ?"
_WRITE_ACCOUNT: Final = (
    f"INSERT OR REPLACE INTO account ({_ACCOUNT_COLUMNS}, project, account, check_ms) "
    f"VALUES ({_marks(_ACCOUNT_COLUMNS, 3)})"
)
_CHANGE_ACCOUNT: Final = (
    "UPDATE account SET settled_tokens = ?, settled_nano_usd = ?, settled_requests = ?, reserved_tokens = ?, "
    "reserved_nano_usd = ?, reserved_requests = ?, used_ms = ? WHERE project = ? AND account = ?"
)
_READ_RESERVATION: Final = f"SELECT {_RESERVATION_COLUMNS} FROM reservation WHERE project = ? AND id = ?"
_WRITE_RESERVATION: Final = (
    f"INSERT OR REPLACE INTO reservation ({_RESERVATION_COLUMNS}, project) VALUES ({_marks(_RESERVATION_COLUMNS, 1)})"
)
_PENDING: Final = (
    # The planner would rather walk through everything that the project ever reserved, and sort it.
    f"SELECT {_RESERVATION_COLUMNS} FROM reservation INDEXED BY reservation_due "
    "WHERE state = 'pending' AND project = ? ORDER BY deadline_ms, id LIMIT ?"
)
_DUE: Final = (
    "SELECT project, id FROM reservation WHERE state = 'pending' AND deadline_ms <= ? "
    "ORDER BY deadline_ms, project, id LIMIT ?"
)
_WRITE_ENTRY: Final = f"INSERT INTO outbox ({_OUTBOX_COLUMNS}) VALUES ({_marks(_OUTBOX_COLUMNS)})"
_READ_ENTRIES: Final = f"SELECT {_OUTBOX_COLUMNS} FROM outbox WHERE position > ? ORDER BY position LIMIT ?"
_READ_RUN: Final = "SELECT run, closes_ms FROM run WHERE project = ? AND workflow = ?"
_WRITE_RUN: Final = "INSERT OR REPLACE INTO run (project, workflow, run, closes_ms) VALUES (?, ?, ?, ?)"
_UNCHECKED: Final = (
    "SELECT project, account, used_ms + keep_ms, reserved_tokens + reserved_nano_usd + reserved_requests, keep_ms "
    "FROM account WHERE check_ms <= ? LIMIT ?"
)
_ANSWERED: Final = "SELECT project, id FROM reservation WHERE state <> 'pending' AND resolved_ms <= ? LIMIT ?"
_CLOSED: Final = "SELECT project, workflow FROM run WHERE closes_ms <= ? LIMIT ?"


class SqliteShelf:
    """A `policies.book.Shelf`. Reads see every change; nothing is on the disk before `commit`."""

    def __init__(self, connection: sqlite3.Connection, now_ms: int) -> None:
        self._connection = connection
        # Positions go on from the clock, so that a handle from before a restart never means a newer entry.
        (highest,) = connection.execute("SELECT coalesce(max(position), 0) FROM outbox").fetchone()
        self._position = max(int(highest), now_ms * 1000)
        self._accounts: dict[Key, Account | None] = {}
        self._stored: dict[Key, Account | None] = {}  # as they are in the file
        self._reservations: dict[Key, Reservation] = {}
        self._changed_accounts: set[Key] = set()
        self._changed_reservations: set[Key] = set()
        self._changed_runs: dict[Key, tuple[str, int]] = {}
        self._new_entries: list[tuple[Any, ...]] = []
        self._entries_stored: int | None = None  # counted when somebody asks, and kept up from then on

    def account(self, project: str, name: str) -> Account | None:
        key = (project, name)
        if key not in self._accounts:
            row = self._connection.execute(_READ_ACCOUNT, key).fetchone()
            self._accounts[key] = self._stored[key] = None if row is None else _account(row)
        return self._accounts[key]

    def put_account(self, project: str, name: str, account: Account) -> None:
        key = (project, name)
        self._accounts[key] = account
        self._changed_accounts.add(key)

    def reservation(self, project: str, reservation_id: str) -> Reservation | None:
        key = (project, reservation_id)
        found = self._reservations.get(key)
        if found is None:
            row = self._connection.execute(_READ_RESERVATION, key).fetchone()
            if row is not None:
                found = self._reservations[key] = _reservation(row)
        return found

    def put_reservation(self, project: str, reservation: Reservation) -> None:
        key = (project, reservation.id)
        self._reservations[key] = reservation
        self._changed_reservations.add(key)

    def due(self, now_ms: int, limit: int) -> list[Key]:
        self._flush()
        return self._connection.execute(_DUE, (now_ms, limit)).fetchall()

    def pending(self, project: str, limit: int) -> list[Reservation]:
        self._flush()
        return [_reservation(row) for row in self._connection.execute(_PENDING, (project, limit)).fetchall()]

    def append(self, entry: OutboxEntry) -> None:
        self._position += 1
        self._new_entries.append(_entry_row(self._position, entry))

    def outbox(self) -> Iterator[OutboxEntry]:
        self._flush()
        position = 0
        while rows := self._connection.execute(_READ_ENTRIES, (position, _PAGE)).fetchall():
            yield from map(_entry, rows)
            position = rows[-1][0]

    def remove(self, positions: Sequence[str]) -> None:
        self._flush()
        # Anything else is a handle of another engine, and 18 digits are all that SQLite's integers hold.
        known = [(int(position),) for position in positions if position.isdecimal() and len(position) <= 18]
        if known:
            self._begin()
            removed = self._connection.executemany("DELETE FROM outbox WHERE position = ?", known).rowcount
            if self._entries_stored is not None:
                self._entries_stored -= removed

    def outbox_size(self) -> int:
        if self._entries_stored is None:
            (count,) = self._connection.execute("SELECT count(*) FROM outbox").fetchone()
            self._entries_stored = int(count)
        return self._entries_stored + len(self._new_entries)

    def run(self, project: str, workflow: str) -> tuple[str, int] | None:
        key = (project, workflow)
        if key in self._changed_runs:
            return self._changed_runs[key]
        found: tuple[str, int] | None = self._connection.execute(_READ_RUN, key).fetchone()
        return found

    def put_run(self, project: str, workflow: str, run: str, closes_ms: int) -> None:
        self._changed_runs[project, workflow] = (run, closes_ms)

    def forget(self, now_ms: int, limit: int) -> int:
        self._flush()
        self._begin()
        accounts = self._forget_accounts(now_ms, limit)
        answered = self._select(_ANSWERED, now_ms - RESOLVED_KEEP_MS, limit - accounts)
        self._connection.executemany("DELETE FROM reservation WHERE project = ? AND id = ?", answered)
        for key in answered:
            self._reservations.pop(key, None)
        closed = self._select(_CLOSED, now_ms, limit - accounts - len(answered))
        self._connection.executemany("DELETE FROM run WHERE project = ? AND workflow = ?", closed)
        return accounts + len(answered) + len(closed)

    def commit(self, now_ms: int) -> None:
        """Write everything that changed, and how late it is. Nothing changed: nothing is written."""
        self._flush()
        if self._connection.in_transaction:
            self._connection.execute("UPDATE meta SET value = ? WHERE key = 'highest_ms'", (now_ms,))
            self._connection.execute("COMMIT")
        if len(self._accounts) + len(self._reservations) > CACHE_MAX:
            self._drop_cache()

    def roll_back(self) -> None:
        """Undo everything since the last `commit`."""
        self._drop_cache()
        for changes in (self._changed_accounts, self._changed_reservations, self._changed_runs, self._new_entries):
            changes.clear()
        self._entries_stored = None
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _drop_cache(self) -> None:
        self._accounts.clear()
        self._stored.clear()
        self._reservations.clear()

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")

    def _flush(self) -> None:
        if self._changed_accounts:
            self._begin()
            self._write_accounts()
        if self._changed_reservations:
            self._begin()
            self._write_reservations()
        if self._new_entries:
            self._begin()
            self._connection.executemany(_WRITE_ENTRY, self._new_entries)
            if self._entries_stored is not None:
                self._entries_stored += len(self._new_entries)
            self._new_entries.clear()
        if self._changed_runs:
            self._begin()
            rows = [(*key, *value) for key, value in self._changed_runs.items()]
            self._connection.executemany(_WRITE_RUN, rows)
            self._changed_runs.clear()

    def _write_accounts(self) -> None:
        whole, slim = [], []
        for key in self._changed_accounts:
            account, stored = self._accounts[key], self._stored.get(key)
            if account is None:
                continue
            amounts = _amounts(account)
            if stored is not None and _same_rules(account, stored):
                slim.append((*amounts, *key))
            else:
                whole.append((*amounts, *_rules(account), *key, account.used_ms + account.keep_ms))
            self._stored[key] = account
        self._connection.executemany(_CHANGE_ACCOUNT, slim)
        self._connection.executemany(_WRITE_ACCOUNT, whole)
        self._changed_accounts.clear()

    def _write_reservations(self) -> None:
        changed = [(key, self._reservations[key]) for key in self._changed_reservations]
        self._connection.executemany(_WRITE_RESERVATION, [(*_reservation_row(one), key[0]) for key, one in changed])
        for key, one in changed:
            if one.state is not State.PENDING:
                del self._reservations[key]
        self._changed_reservations.clear()

    def _forget_accounts(self, now_ms: int, limit: int) -> int:
        """Look at accounts whose time to be looked at has come: used meanwhile, or held on, they get a new one."""
        rows = self._connection.execute(_UNCHECKED, (now_ms, 10 * limit)).fetchall()
        over = [row[:2] for row in rows if row[2] <= now_ms and row[3] == 0][:limit]
        gone = set(over)
        # A hold that ends counts as a use: nothing that is held on now can be over before another keep time.
        later = [
            (row[2] if row[2] > now_ms else now_ms + row[4], *row[:2])
            for row in rows
            if row[:2] not in gone and (row[2] > now_ms or row[3])
        ]
        self._connection.executemany("UPDATE account SET check_ms = ? WHERE project = ? AND account = ?", later)
        self._connection.executemany("DELETE FROM account WHERE project = ? AND account = ?", over)
        for key in over:
            self._accounts.pop(key, None)
            self._stored.pop(key, None)
        return len(over)

    def _select(self, statement: str, now_ms: int, limit: int) -> list[Key]:
        return self._connection.execute(statement, (now_ms, limit)).fetchall()


def _amounts(account: Account) -> tuple[int, ...]:
    settled, reserved = account.settled, account.reserved
    return (
        settled.tokens,
        settled.nano_usd,
        settled.requests,
        reserved.tokens,
        reserved.nano_usd,
        reserved.requests,
        account.used_ms,
    )


def _rules(account: Account) -> tuple[Any, ...]:
    override, tightened = account.override, account.tightened
    return (
        override.tokens,
        override.nano_usd,
        override.requests,
        tightened.tokens,
        tightened.nano_usd,
        tightened.requests,
        account.gate.value,
        account.keep_ms,
    )


def _same_rules(one: Account, other: Account) -> bool:
    return (
        one.gate is other.gate
        and one.keep_ms == other.keep_ms
        and one.override == other.override
        and one.tightened == other.tightened
    )


def _account(row: tuple[Any, ...]) -> Account:
    return Account(
        Amount(*row[0:3]), Amount(*row[3:6]), _limit(row[7:10]), _limit(row[10:13]), Gate(row[13]), row[14], row[6]
    )  # fmt: skip


def _limit(values: Sequence[int | None]) -> Limit:
    """The one UNLIMITED where there is no limit: policies look for it by identity."""
    limit = Limit(*values)
    return UNLIMITED if limit.is_unlimited else limit


def _reservation_row(one: Reservation) -> tuple[Any, ...]:
    chain = [
        (name, limit.tokens, limit.nano_usd, limit.requests)
        for name, limit in zip(one.accounts, one.limits, strict=True)
    ]
    return (
        one.id, one.owner, one.on_lost.value, orjson.dumps(chain), *_parts(one.held), one.output_tokens, one.deadline_ms,
        one.draft, one.state.value, *_parts(one.progress), *_parts(one.booked), *_parts(one.overrun), one.resolved_ms,
    )  # fmt: skip


def _reservation(row: tuple[Any, ...]) -> Reservation:
    chain = orjson.loads(row[3])
    return Reservation(
        id=row[0],
        owner=row[1],
        accounts=tuple(link[0] for link in chain),
        limits=tuple(_limit(link[1:]) for link in chain),
        held=Amount(*row[4:7]),
        output_tokens=row[7],
        deadline_ms=row[8],
        on_lost=OnLost(row[2]),
        draft=row[9],
        state=State(row[10]),
        progress=Amount(*row[11:14]),
        booked=Amount(*row[14:17]),
        overrun=Amount(*row[17:20]),
        resolved_ms=row[20],
    )


def _entry_row(position: int, entry: OutboxEntry) -> tuple[Any, ...]:
    return (
        position, entry.id, entry.kind.value, entry.project, *_parts(entry.amount), entry.at_ms, entry.draft, entry.detail,
        *_parts(entry.overrun),
    )  # fmt: skip


def _entry(row: tuple[Any, ...]) -> OutboxEntry:
    return OutboxEntry(
        str(row[0]), row[1], EntryKind(row[2]), row[3], Amount(*row[4:7]), row[7], row[8], row[9], Amount(*row[10:13])
    )  # fmt: skip


def _parts(amount: Amount) -> tuple[int, int, int]:
    return (0, 0, 0) if amount is ZERO else (amount.tokens, amount.nano_usd, amount.requests)
