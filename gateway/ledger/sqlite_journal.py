"""The changes of each commit as one row, from which they can be recovered after a crash.

A call changes four to six accounts twice, its reservation twice, and the outbox. Each of these rows is on a different page,
and a commit writes whole pages. So a commit only appends the changed values to `journal`, and they are written to their
tables later, for many calls at once: an account that all of them changed is written once, and so is a reservation that was
resolved meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import orjson

from gateway.ledger.port import LedgerError
from gateway.ledger.sqlite_rows import Row, account_of, account_row, reservation_of, reservation_row
from policies.reservation import Account, Reservation

Key = tuple[str, str]
_APPEND: Final = "INSERT INTO journal (number, changes) VALUES (?, ?)"
_READ: Final = "SELECT number, changes FROM journal ORDER BY number"
# The columns of reservations and outbox entries that are bytes.
_RESERVATION_BYTES: Final = (3, 9)  # chain, draft
_ENTRY_BYTES: Final = (8, 9)  # draft, detail


class JournalEntry(NamedTuple):
    """The values after the changes; entries of the outbox are rows with their positions."""

    accounts: Iterable[tuple[Key, Account]]
    reservations: Iterable[tuple[Key, Reservation]]
    runs: Iterable[tuple[Key, tuple[str, int]]]
    entries: Iterable[Row]


def append(connection: sqlite3.Connection, number: int, changes: JournalEntry) -> None:
    changed_rows = (
        [account_row(*key, account) for key, account in changes.accounts],
        [(*reservation_row(reservation), key[0]) for key, reservation in changes.reservations],
        [(*key, *run) for key, run in changes.runs],
        changes.entries,
    )
    connection.execute(_APPEND, (number, orjson.dumps(changed_rows, default=_as_text))).close()


def read(connection: sqlite3.Connection) -> Iterator[tuple[int, JournalEntry]]:
    """Oldest first, each with its number. Raises `LedgerError` if an entry is damaged."""
    for number, changed_rows in connection.execute(_READ).fetchall():
        try:
            accounts, reservations, runs, entries = orjson.loads(changed_rows)
        except ValueError as error:
            raise LedgerError(
                "the journal of the ledger is damaged. Restore the ledger's file from a backup; or move it away, "
                "so that a new one is filled from the store"
            ) from error
        changes = JournalEntry(
            [((row[-3], row[-2]), account_of(row)) for row in accounts],
            [((row[-1], row[0]), reservation_of(_with_bytes(row, _RESERVATION_BYTES))) for row in reservations],
            [((project, workflow), (run, closes_ms)) for project, workflow, run, closes_ms in runs],
            [tuple(_with_bytes(row, _ENTRY_BYTES)) for row in entries],
        )
        yield number, changes


def _as_text(value: Any) -> str:
    """Bytes one by one, so that any bytes can be restored."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    raise TypeError(f"{type(value).__name__} has no place in the journal")


def _with_bytes(row: list[Any], indices: tuple[int, ...]) -> list[Any]:
    for index in indices:
        row[index] = row[index].encode("latin-1")
    return row
