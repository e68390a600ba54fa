"""Accounts, reservations, outbox and runs in SQLite.

This is the only connection, so what was read once stays valid and is cached, up to a bound. Changes are collected, `commit`
appends them to the journal, and `fold_oldest` writes them to their tables, a few at a time, in one transaction with
truncating the beginning of the journal that is no longer needed:

    changed ──commit──▶ journaled ──fold──▶ in the tables

An account that many calls change is written once for all of them, a reservation when it is already resolved, and an event
seldom, because the flusher has usually fetched it before. Values that are changed or journaled are also in memory, and never
evicted from it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from gateway.ledger import sqlite_journal
from gateway.ledger.port import LedgerError
from gateway.ledger.sqlite_changes import JournaledChanges, Run, UncommittedChanges
from gateway.ledger.sqlite_journal import JournalEntry, Key
from gateway.ledger.sqlite_rows import (
    ACCOUNTS_TO_CHECK,
    CHANGE_ACCOUNTS,
    CLOSED_RUNS,
    DUE_RESERVATIONS,
    FORGETTABLE_RESERVATIONS,
    HIGHEST_IDS,
    PENDING_RESERVATIONS,
    READ_ACCOUNT,
    READ_ACCOUNTS,
    READ_ENTRIES,
    READ_RESERVATION,
    READ_RESERVATIONS,
    READ_RUN,
    WRITE_ACCOUNTS,
    WRITE_ENTRIES,
    WRITE_RESERVATIONS,
    WRITE_RUNS,
    Row,
    account_of,
    account_row,
    entry_of,
    entry_row,
    execute_in_chunks,
    has_same_rules,
    reservation_of,
    reservation_row,
)
from policies.reservation import EXPIRED_KEEP_MS, RESOLVED_KEEP_MS, Account, Reservation, State
from policies.settlement import OutboxEntry

# How many values are journaled before the oldest are folded: about a thousand calls, to be read again at the start after a crash.
JOURNAL_MAX: Final = 4_000
# How many are folded at once, or more to catch up: few enough that no stream on the event loop notices.
FOLD_MIN: Final = 48
_SAVE_CLOCK = "UPDATE meta SET value = ? WHERE key = 'highest_ms'"
# If folding has fallen this far behind, the next commit does it.
_JOURNAL_OVERDUE: Final = 2 * JOURNAL_MAX
# The purge does not look at what was used this recently.
_RECENT_MS: Final = 1_000
# An account takes about 1 KB here, and ended runs are never asked for again: 8 MB at most. Then the whole cache is dropped,
# which is simpler than choosing, and rare.
CACHE_MAX: Final = 8_192
_PAGE_ROWS: Final = 500  # rows of the outbox fetched at once
# How far the ledger's clock may be behind if a crash and a setback of the wall clock coincide.
_CLOCK_SAVE_INTERVAL_MS: Final = 1_000


class UnfoldedKeys(NamedTuple):
    accounts: set[Key]
    reservations: set[Key]
    runs: set[Key]


class SqliteStorage:
    """A `policies.book.BookStorage`. Reads see every change; nothing is on the disk before `commit`."""

    def __init__(self, connection: sqlite3.Connection, now_ms: int) -> None:
        self._connection = connection
        # Positions continue from the clock, so that a handle from before a restart never matches a newer entry.
        (highest,) = connection.execute("SELECT coalesce(max(position), 0) FROM outbox").fetchone()
        self._position = max(int(highest), now_ms * 1000)
        self._clock_saved_ms = 0
        self._accounts: dict[Key, Account | None] = {}
        self._stored: dict[Key, Account | None] = {}  # as they are in the file
        self._reservations: dict[Key, Reservation] = {}
        self._known_missing: set[Key] = set()  # reservations that this batch found missing
        # By project: the table has no reservation with a higher id. Ids sort by time, so new ones need no lookup.
        self._highest_id: dict[str, str] = dict(connection.execute(HIGHEST_IDS).fetchall())
        self._changed, self._journaled = UncommittedChanges(), JournaledChanges()
        self._last_commit = 0  # the number of the last commit
        self._is_current = False  # whether all of this matches the file
        self._entries_stored: int | None = None  # counted on first request, and then kept current
        self.ensure_current()

    @property
    def is_journal_long(self) -> bool:
        return self._journaled.size >= JOURNAL_MAX

    def ensure_current(self) -> None:
        """After a start or a failure, recover what was committed but is not in the tables from the journal.

        Raises `LedgerError` if the journal is damaged.
        """
        if self._is_current:
            return
        self._journaled.clear()
        for number, changes in sqlite_journal.read(self._connection):
            self._accounts.update(changes.accounts)
            self._reservations.update(changes.reservations)
            changed = UncommittedChanges()
            changed.accounts.update(key for key, _ in changes.accounts)
            changed.reservations.update(key for key, _ in changes.reservations)
            changed.runs.update(changes.runs)
            changed.entries.extend(changes.entries)
            self._journaled.add(number, changed, 0)
            self._last_commit = max(self._last_commit, number)
        self._position = max([self._position, *self._journaled.entries])
        self._is_current = True

    def prefetch(self, accounts: Iterable[Key], reservations: Sequence[Key]) -> None:
        """Read at once what a batch will ask for one by one."""
        unread = list({key for key in accounts if key not in self._accounts})
        self._accounts.update(dict.fromkeys(unread))
        for cursor in execute_in_chunks(self._connection, READ_ACCOUNTS, unread):
            self._accounts.update((row[-2:], account_of(row)) for row in cursor.fetchall())
        self._stored.update((key, self._accounts[key]) for key in unread)
        new = [key for key in reservations if key not in self._reservations]
        unknown = [key for key in new if key[1] <= self._highest_id.get(key[0], "")]
        for cursor in execute_in_chunks(self._connection, READ_RESERVATIONS, unknown):
            rows = ((row[-1], reservation_of(row)) for row in cursor.fetchall())
            self._reservations.update(((project, reservation.id), reservation) for project, reservation in rows)
        self._known_missing.update(key for key in new if key not in self._reservations)

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
        reservation = self._reservations.get(key)
        if reservation is None and key not in self._known_missing:
            row = self._connection.execute(READ_RESERVATION, key).fetchone()
            if row is not None:
                reservation = self._reservations[key] = reservation_of(row)
        return reservation

    def put_reservation(self, project: str, reservation: Reservation) -> None:
        key = (project, reservation.id)
        self._reservations[key] = reservation
        self._changed.reservations.add(key)

    def due_reservations(self, now_ms: int, limit: int) -> list[Key]:
        unfolded = self._unfolded().reservations
        stored = self._connection.execute(DUE_RESERVATIONS, (now_ms, limit + len(unfolded))).fetchall()
        unfolded_reservations = ((key, self._reservations[key]) for key in unfolded)
        due_in_memory = [
            (reservation.deadline_ms, *key)
            for key, reservation in unfolded_reservations
            if reservation.state is State.PENDING and reservation.deadline_ms <= now_ms
        ]
        due = sorted([*due_in_memory, *(row for row in stored if row[1:] not in unfolded)])
        return [(project, reservation_id) for _, project, reservation_id in due[:limit]]

    def pending(self, project: str, limit: int) -> list[Reservation]:
        self.fold()
        return [
            reservation_of(row) for row in self._connection.execute(PENDING_RESERVATIONS, (project, limit)).fetchall()
        ]

    def append(self, entry: OutboxEntry) -> None:
        self._position += 1
        self._changed.entries.append(entry_row(self._position, entry))

    def outbox(self) -> Iterator[OutboxEntry]:
        position = 0
        while rows := self._connection.execute(READ_ENTRIES, (position, _PAGE_ROWS)).fetchall():
            yield from map(entry_of, rows)
            position = rows[-1][0]
        yield from (entry_of(row) for _, row in self._journaled.entries.values())
        yield from map(entry_of, self._changed.entries)

    def remove(self, positions: Sequence[str]) -> None:
        """An entry that is only journaled is dropped from memory: if a crash brings it back, the store recognises its id."""
        # Anything else is a handle of another engine; SQLite's integers hold any 18 digits.
        numeric_positions = [int(position) for position in positions if position.isdecimal() and len(position) <= 18]
        stored = [(position,) for position in numeric_positions if self._journaled.entries.pop(position, None) is None]
        if stored:
            self._begin()
            removed = self._connection.executemany("DELETE FROM outbox WHERE position = ?", stored).rowcount
            if self._entries_stored is not None:
                self._entries_stored -= removed

    def outbox_size(self) -> int:
        if self._entries_stored is None:
            (count,) = self._connection.execute("SELECT count(*) FROM outbox").fetchone()
            self._entries_stored = int(count)
        return self._entries_stored + len(self._changed.entries) + len(self._journaled.entries)

    def run(self, project: str, workflow: str) -> Run | None:
        key = (project, workflow)
        if key in self._changed.runs:
            return self._changed.runs[key]
        if key in self._journaled.runs:
            return self._journaled.runs[key][1]
        row: Run | None = self._connection.execute(READ_RUN, key).fetchone()
        return row

    def put_run(self, project: str, workflow: str, run: str, closes_ms: int) -> None:
        self._changed.runs[project, workflow] = (run, closes_ms)

    def forget_expired(self, now_ms: int, limit: int) -> int:
        """Leaves what is still journaled. If a crash brings something back from the journal, it is forgotten again."""
        self._fold(self._journaled.last_commit_before(now_ms - _RECENT_MS))
        self._begin()
        unfolded = self._unfolded()
        accounts = self._forget_accounts(now_ms, limit, unfolded.accounts)
        forgettable = self._select(
            FORGETTABLE_RESERVATIONS, now_ms - RESOLVED_KEEP_MS, now_ms - EXPIRED_KEEP_MS, limit - accounts
        )
        forgettable = [key for key in forgettable if key not in unfolded.reservations]
        self._connection.executemany("DELETE FROM reservation WHERE project = ? AND id = ?", forgettable)
        for key in forgettable:
            self._reservations.pop(key, None)
        closed = self._select(CLOSED_RUNS, now_ms, limit - accounts - len(forgettable))
        closed = [key for key in closed if key not in unfolded.runs]
        self._connection.executemany("DELETE FROM run WHERE project = ? AND workflow = ?", closed)
        return accounts + len(forgettable) + len(closed)

    def commit(self, now_ms: int) -> None:
        """Make all changes durable, with the current time. Without changes nothing is written."""
        if self._changed:
            self._journal(now_ms)
        if self._journaled.size >= _JOURNAL_OVERDUE:
            self.fold_oldest()
        self._known_missing.clear()
        if self._connection.in_transaction:
            self._save_clock(now_ms)
            self._connection.execute("COMMIT")
        if len(self._accounts) + len(self._reservations) > CACHE_MAX + self._journaled.size:
            self._drop_cache()

    def write_clock(self, now_ms: int) -> None:
        """Write a row that does no harm, in a transaction that `commit` ends: it tells whether anything can be written."""
        self._begin()
        self._connection.execute(_SAVE_CLOCK, (now_ms,))

    def fold(self) -> None:
        """Write everything to the tables, in a transaction that `commit` ends."""
        if self._changed:
            self._last_commit += 1
            self._journaled.add(self._last_commit, self._changed, 0)
            self._changed.clear()
        self._fold(self._last_commit)

    def fold_oldest(self) -> None:
        """Write what has been journaled longest to the tables, in a transaction that `commit` ends."""
        self._fold(self._journaled.commit_reaching_size(max(FOLD_MIN, self._journaled.size - JOURNAL_MAX)))

    def _fold(self, number: int) -> None:
        """Write everything up to this commit."""
        if not self._journaled or not number:
            return
        self._begin()
        values = self._journaled.take_through(number)
        self._write_accounts(values.accounts)
        self._write_reservations(values.reservations)
        self._write(WRITE_ENTRIES, values.entries)
        if self._entries_stored is not None:
            self._entries_stored += len(values.entries)
        self._write(WRITE_RUNS, [(*key, *run) for key, run in values.runs])
        self._connection.execute("DELETE FROM journal WHERE number <= ?", (number,))

    def roll_back(self) -> None:
        """Undo everything since the last `commit`."""
        self._is_current = False
        self._accounts.clear()
        self._stored.clear()
        self._reservations.clear()
        self._clock_saved_ms = 0
        self._known_missing.clear()
        self._changed.clear()
        self._entries_stored = None
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self.ensure_current()

    def _journal(self, now_ms: int) -> None:
        changed = self._changed
        if self._is_clock_due(now_ms):
            self._begin()
        accounts = [(key, account) for key in changed.accounts if (account := self._accounts[key]) is not None]
        reservations = [(key, self._reservations[key]) for key in changed.reservations]
        changes = JournalEntry(accounts, reservations, changed.runs.items(), changed.entries)
        sqlite_journal.append(self._connection, self._last_commit + 1, changes)
        self._last_commit += 1
        self._journaled.add(self._last_commit, changed, now_ms)
        changed.clear()

    def _is_clock_due(self, now_ms: int) -> bool:
        return now_ms >= self._clock_saved_ms + _CLOCK_SAVE_INTERVAL_MS

    def _save_clock(self, now_ms: int) -> None:
        if self._is_clock_due(now_ms):
            self._connection.execute(_SAVE_CLOCK, (now_ms,))
            self._clock_saved_ms = now_ms

    def _drop_cache(self) -> None:
        """Keep only what is not in the tables."""
        self._accounts = {key: self._accounts[key] for key in self._journaled.accounts}
        self._reservations = {key: self._reservations[key] for key in self._journaled.reservations}
        self._stored.clear()

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")

    def _write_accounts(self, keys: Sequence[Key]) -> None:
        full_rows: list[Row] = []
        balance_rows: list[Row] = []
        for key in keys:
            account, stored = self._accounts[key], self._stored.get(key)
            if account is None:
                continue
            only_balances_changed = stored is not None and has_same_rules(account, stored)
            (balance_rows if only_balances_changed else full_rows).append(account_row(*key, account))
            self._stored[key] = account
        self._write(CHANGE_ACCOUNTS, balance_rows)
        self._write(WRITE_ACCOUNTS, full_rows)

    def _write_reservations(self, keys: Sequence[Key]) -> None:
        changed = [(key, self._reservations[key]) for key in keys]
        self._write(WRITE_RESERVATIONS, [(*reservation_row(reservation), key[0]) for key, reservation in changed])
        for key, reservation in changed:
            project, reservation_id = key
            if reservation_id > self._highest_id.get(project, ""):
                self._highest_id[project] = reservation_id
            self._known_missing.discard(key)
            if reservation.state is not State.PENDING and key not in self._changed.reservations:
                del self._reservations[key]

    def _write(self, statement: str, rows: Sequence[Row]) -> None:
        for cursor in execute_in_chunks(self._connection, statement, rows):
            cursor.close()

    def _unfolded(self) -> UnfoldedKeys:
        """The keys whose values in memory are newer than in the tables."""
        journaled, changed = self._journaled, self._changed
        return UnfoldedKeys(
            {*journaled.accounts, *changed.accounts},
            {*journaled.reservations, *changed.reservations},
            {*journaled.runs, *changed.runs},
        )

    def _forget_accounts(self, now_ms: int, limit: int, unfolded: Container[Key]) -> int:
        """Check accounts whose check time has come. Those used meanwhile or with holds get a new check time."""
        rows = [
            row for row in self._connection.execute(ACCOUNTS_TO_CHECK, (now_ms, 10 * limit)) if row[:2] not in unfolded
        ]
        expired = [row[:2] for row in rows if row[2] <= now_ms and row[3] == 0][:limit]
        expired_keys = set(expired)
        # The end of a hold counts as use, so an account with holds cannot be over before another keep time.
        later = [
            (row[2] if row[2] > now_ms else now_ms + row[4], *row[:2])
            for row in rows
            if row[:2] not in expired_keys and (row[2] > now_ms or row[3])
        ]
        self._connection.executemany("UPDATE account SET check_ms = ? WHERE project = ? AND account = ?", later)
        self._connection.executemany("DELETE FROM account WHERE project = ? AND account = ?", expired)
        for key in expired:
            self._accounts.pop(key, None)
            self._stored.pop(key, None)
        return len(expired)

    def _select(self, statement: str, *arguments: int) -> list[Key]:
        return self._connection.execute(statement, arguments).fetchall()
