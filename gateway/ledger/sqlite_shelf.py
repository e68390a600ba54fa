"""Accounts, reservations, outbox and runs in SQLite.

As this is the only connection, what was read once stays true: values are kept until there are too many. Changes are collected,
`commit` appends them to the journal, and `fold` writes them into their tables, with the journal emptied in the same transaction:

    changed ──commit──▶ journaled ──fold──▶ in the tables
       └──────────────────fold──────────────────▲

Whatever reads the tables row by row folds first. What is changed or journaled is in memory too, and is never dropped from it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gateway.ledger import sqlite_journal
from gateway.ledger.port import LedgerError
from gateway.ledger.sqlite_journal import Changes, Key
from gateway.ledger.sqlite_rows import (
    ANSWERED,
    CHANGE_ACCOUNTS,
    CLOSED,
    DUE,
    PENDING,
    READ_ACCOUNT,
    READ_ACCOUNTS,
    READ_ENTRIES,
    READ_RESERVATION,
    READ_RESERVATIONS,
    READ_RUN,
    UNCHECKED,
    WRITE_ACCOUNTS,
    WRITE_ENTRIES,
    WRITE_RESERVATIONS,
    WRITE_RUNS,
    Row,
    account_of,
    account_row,
    entry_of,
    entry_row,
    in_rows,
    reservation_of,
    reservation_row,
    same_rules,
)
from policies.reservation import EXPIRED_KEEP_MS, RESOLVED_KEEP_MS, Account, Reservation, State
from policies.settlement import OutboxEntry

# Reservations and events that are journaled until they are folded: a hundred calls, about 1 ms of work.
JOURNAL_MAX: Final = 200
# Where the fold that was due did not come, the next commit folds itself.
_JOURNAL_OVERDUE: Final = 8 * JOURNAL_MAX
# An account takes about 1 KB here, and of a run that has ended nobody asks again: 8 MB at most. Then everything is dropped, which
# is simpler than choosing, and seldom.
CACHE_MAX: Final = 8_192
_PAGE: Final = 500  # rows of the outbox that are fetched at once
# How far the ledger's clock may be behind after a crash and a step back of the wall clock, both at once.
_CLOCK_KEPT_EVERY_MS: Final = 1_000


class SqliteShelf:
    """A `policies.book.Shelf`. Reads see every change; nothing is on the disk before `commit`."""

    def __init__(self, connection: sqlite3.Connection, now_ms: int) -> None:
        self._connection = connection
        # Positions go on from the clock, so that a handle from before a restart never means a newer entry.
        (highest,) = connection.execute("SELECT coalesce(max(position), 0) FROM outbox").fetchone()
        self._position = max(int(highest), now_ms * 1000)
        self._clock_kept_ms = 0
        self._accounts: dict[Key, Account | None] = {}
        self._stored: dict[Key, Account | None] = {}  # as they are in the file
        self._reservations: dict[Key, Reservation] = {}
        self._absent: set[Key] = set()  # reservations that were looked for and are not there, in this batch
        self._changed, self._journaled = _Pending(), _Pending()
        self._journal_size = 0  # commits
        self._is_current = False  # whether all of this is what the file says
        self._entries_stored: int | None = None  # counted when somebody asks, and kept up from then on
        self.be_current()

    @property
    def is_journal_long(self) -> bool:
        return len(self._journaled) >= JOURNAL_MAX

    def be_current(self) -> None:
        """After a start, and after a fault: take what was committed and is not in the tables from the journal.

        Raises `LedgerError` when the journal is damaged.
        """
        if self._is_current:
            return
        self._journaled.clear()
        journal = list(sqlite_journal.read(self._connection))
        for changes in journal:
            self._accounts.update(changes.accounts)
            self._reservations.update(changes.reservations)
            self._journaled.accounts.update(key for key, _ in changes.accounts)
            self._journaled.reservations.update(key for key, _ in changes.reservations)
            self._journaled.runs.update(changes.runs)
            self._journaled.entries.extend(changes.entries)
        self._position = max([self._position, *(row[0] for row in self._journaled.entries)])
        self._journal_size = len(journal)
        self._is_current = True

    def prefetch(self, accounts: Iterable[Key], reservations: Sequence[Key]) -> None:
        """Read together what a batch will ask for one by one."""
        unread = list({key for key in accounts if key not in self._accounts})
        self._accounts.update(dict.fromkeys(unread))
        for cursor in in_rows(self._connection, READ_ACCOUNTS, unread):
            self._accounts.update((row[-2:], account_of(row)) for row in cursor.fetchall())
        self._stored.update((key, self._accounts[key]) for key in unread)
        unknown = [key for key in reservations if key not in self._reservations]
        for cursor in in_rows(self._connection, READ_RESERVATIONS, unknown):
            found = ((row[-1], reservation_of(row)) for row in cursor.fetchall())
            self._reservations.update(((project, one.id), one) for project, one in found)
        self._absent.update(key for key in unknown if key not in self._reservations)

    def account(self, project: str, name: str) -> Account | None:
        key = (project, name)
        if key not in self._accounts:
            row = self._connection.execute(READ_ACCOUNT, key).fetchone()
            self._accounts[key] = self._stored[key] = None if row is None else account_of(row)
        return self._accounts[key]

    def put_account(self, project: str, name: str, account: Account) -> None:
        reserved = account.reserved
        if reserved.tokens < 0 or reserved.nano_usd < 0 or reserved.requests < 0:
            raise LedgerError(f"account {name!r} would hold less than nothing: the file was changed by hand")
        key = (project, name)
        self._accounts[key] = account
        self._changed.accounts.add(key)

    def reservation(self, project: str, reservation_id: str) -> Reservation | None:
        key = (project, reservation_id)
        found = self._reservations.get(key)
        if found is None and key not in self._absent:
            row = self._connection.execute(READ_RESERVATION, key).fetchone()
            if row is not None:
                found = self._reservations[key] = reservation_of(row)
        return found

    def put_reservation(self, project: str, reservation: Reservation) -> None:
        key = (project, reservation.id)
        self._reservations[key] = reservation
        self._changed.reservations.add(key)

    def due(self, now_ms: int, limit: int) -> list[Key]:
        self.fold()
        return self._connection.execute(DUE, (now_ms, limit)).fetchall()

    def pending(self, project: str, limit: int) -> list[Reservation]:
        self.fold()
        return [reservation_of(row) for row in self._connection.execute(PENDING, (project, limit)).fetchall()]

    def append(self, entry: OutboxEntry) -> None:
        self._position += 1
        self._changed.entries.append(entry_row(self._position, entry))

    def outbox(self) -> Iterator[OutboxEntry]:
        self.fold()
        position = 0
        while rows := self._connection.execute(READ_ENTRIES, (position, _PAGE)).fetchall():
            yield from map(entry_of, rows)
            position = rows[-1][0]

    def remove(self, positions: Sequence[str]) -> None:
        self.fold()
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
        return self._entries_stored + len(self._changed.entries) + len(self._journaled.entries)

    def run(self, project: str, workflow: str) -> tuple[str, int] | None:
        key = (project, workflow)
        for pending in (self._changed, self._journaled):
            if key in pending.runs:
                return pending.runs[key]
        found: tuple[str, int] | None = self._connection.execute(READ_RUN, key).fetchone()
        return found

    def put_run(self, project: str, workflow: str, run: str, closes_ms: int) -> None:
        self._changed.runs[project, workflow] = (run, closes_ms)

    def forget(self, now_ms: int, limit: int) -> int:
        self.fold()
        self._begin()
        accounts = self._forget_accounts(now_ms, limit)
        answered = self._select(ANSWERED, now_ms - RESOLVED_KEEP_MS, now_ms - EXPIRED_KEEP_MS, limit - accounts)
        self._connection.executemany("DELETE FROM reservation WHERE project = ? AND id = ?", answered)
        for key in answered:
            self._reservations.pop(key, None)
        closed = self._select(CLOSED, now_ms, limit - accounts - len(answered))
        self._connection.executemany("DELETE FROM run WHERE project = ? AND workflow = ?", closed)
        return accounts + len(answered) + len(closed)

    def commit(self, now_ms: int) -> None:
        """Make every change last, and how late it is. Nothing changed: nothing is written."""
        if self._connection.in_transaction or len(self._journaled) >= _JOURNAL_OVERDUE:
            self.fold()
        elif self._changed:
            self._journal(now_ms)
        self._absent.clear()
        if self._connection.in_transaction:
            self._keep_clock(now_ms)
            self._connection.execute("COMMIT")
        if len(self._accounts) + len(self._reservations) > CACHE_MAX and not self._journaled:
            self._drop_cache()

    def fold(self) -> None:
        """Write what was changed and what was journaled into the tables, in a transaction that `commit` ends."""
        if not self._changed and not self._journal_size:
            return
        self._begin()
        pending = self._journaled
        pending.take(self._changed)
        self._write_accounts(pending.accounts)
        self._write_reservations(pending.reservations)
        self._write(WRITE_ENTRIES, pending.entries)
        if self._entries_stored is not None:
            self._entries_stored += len(pending.entries)
        self._write(WRITE_RUNS, [(*key, *run) for key, run in pending.runs.items()])
        if self._journal_size:
            self._connection.execute("DELETE FROM journal")
        pending.clear()
        self._journal_size = 0

    def roll_back(self) -> None:
        """Undo everything since the last `commit`."""
        self._is_current = False
        self._drop_cache()
        self._clock_kept_ms = 0
        self._absent.clear()
        self._changed.clear()
        self._entries_stored = None
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self.be_current()

    def _journal(self, now_ms: int) -> None:
        changed = self._changed
        if self._is_clock_due(now_ms):
            self._begin()
        accounts = [(key, account) for key in changed.accounts if (account := self._accounts[key]) is not None]
        reservations = [(key, self._reservations[key]) for key in changed.reservations]
        sqlite_journal.append(self._connection, Changes(accounts, reservations, changed.runs.items(), changed.entries))
        self._journal_size += 1
        self._journaled.take(changed)

    def _is_clock_due(self, now_ms: int) -> bool:
        return now_ms >= self._clock_kept_ms + _CLOCK_KEPT_EVERY_MS

    def _keep_clock(self, now_ms: int) -> None:
        if self._is_clock_due(now_ms):
            self._connection.execute("UPDATE meta SET value = ? WHERE key = 'highest_ms'", (now_ms,))
            self._clock_kept_ms = now_ms

    def _drop_cache(self) -> None:
        self._accounts.clear()
        self._stored.clear()
        self._reservations.clear()

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")

    def _write_accounts(self, keys: Iterable[Key]) -> None:
        whole: list[Row] = []
        slim: list[Row] = []
        for key in keys:
            account, stored = self._accounts[key], self._stored.get(key)
            if account is None:
                continue
            known = stored is not None and same_rules(account, stored)
            (slim if known else whole).append(account_row(*key, account))
            self._stored[key] = account
        self._write(CHANGE_ACCOUNTS, slim)
        self._write(WRITE_ACCOUNTS, whole)

    def _write_reservations(self, keys: Iterable[Key]) -> None:
        changed = [(key, self._reservations[key]) for key in keys]
        self._write(WRITE_RESERVATIONS, [(*reservation_row(one), key[0]) for key, one in changed])
        for key, one in changed:
            self._absent.discard(key)
            if one.state is not State.PENDING:
                del self._reservations[key]

    def _write(self, statement: str, rows: Sequence[Row]) -> None:
        for cursor in in_rows(self._connection, statement, rows):
            cursor.close()

    def _forget_accounts(self, now_ms: int, limit: int) -> int:
        """Look at accounts whose time to be looked at has come: used meanwhile, or held on, they get a new one."""
        rows = self._connection.execute(UNCHECKED, (now_ms, 10 * limit)).fetchall()
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

    def _select(self, statement: str, *given: int) -> list[Key]:
        return self._connection.execute(statement, given).fetchall()


class _Pending:
    """What is not in the tables yet: of accounts and reservations only which, for their values are in memory."""

    __slots__ = ("accounts", "entries", "reservations", "runs")

    def __init__(self) -> None:
        self.accounts: set[Key] = set()
        self.reservations: set[Key] = set()
        self.runs: dict[Key, tuple[str, int]] = {}
        self.entries: list[Row] = []

    def __bool__(self) -> bool:
        return bool(self.accounts or self.reservations or self.runs or self.entries)

    def __len__(self) -> int:
        """Of what nearly every operation changes; accounts are few."""
        return len(self.reservations) + len(self.entries)

    def take(self, later: _Pending) -> None:
        self.accounts |= later.accounts
        self.reservations |= later.reservations
        self.runs.update(later.runs)
        self.entries += later.entries
        later.clear()

    def clear(self) -> None:
        self.accounts.clear()
        self.reservations.clear()
        self.runs.clear()
        self.entries.clear()
