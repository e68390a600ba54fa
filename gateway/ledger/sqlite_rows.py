"""Values of the policies as rows of SQLite, and the SQL statements for them."""

from __future__ import annotations

# ruff: noqa: S608 - only the column lists of this file are inserted into the statements
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

import orjson

from policies.amounts import Amount, limit_of
from policies.reservation import Account, Gate, OnLost, Reservation, State
from policies.settlement import EntryKind, OutboxEntry

Row = tuple[Any, ...]

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


# How many rows one statement has at most. SQLite releases the GIL at every statement, and a busy event loop returns it only
# after its switch interval: ten statements for a batch are answered sooner than a thousand.
_ROWS_MAX: Final = 32


READ_ACCOUNT: Final = f"SELECT {_ACCOUNT_COLUMNS} FROM account WHERE project = ? AND account = ?"
# The keys are joined in this order, because `WHERE (project, account) IN (…)` would scan the whole table.
_WITH_KEYS: Final = "WITH wanted (for_project, name) AS (VALUES {rows}) SELECT"
READ_ACCOUNTS: Final = (
    f"{_WITH_KEYS} {_ACCOUNT_COLUMNS}, project, account FROM wanted CROSS JOIN account "
    "WHERE project = for_project AND account = name"
)
WRITE_ACCOUNTS: Final = (
    f"INSERT OR REPLACE INTO account ({_ACCOUNT_COLUMNS}, project, account, check_ms) VALUES {{rows}}"
)
# For rows that exist and whose rules are unchanged; `check_ms` and its index are not touched.
CHANGE_ACCOUNTS: Final = (
    f"INSERT INTO account ({_ACCOUNT_COLUMNS}, project, account, check_ms) VALUES {{rows}} "
    "ON CONFLICT (project, account) DO UPDATE SET settled_tokens = excluded.settled_tokens, "
    "settled_nano_usd = excluded.settled_nano_usd, settled_requests = excluded.settled_requests, "
    "reserved_tokens = excluded.reserved_tokens, reserved_nano_usd = excluded.reserved_nano_usd, "
    "reserved_requests = excluded.reserved_requests, used_ms = excluded.used_ms"
)
READ_RESERVATION: Final = f"SELECT {_RESERVATION_COLUMNS} FROM reservation WHERE project = ? AND id = ?"
READ_RESERVATIONS: Final = (
    f"{_WITH_KEYS} {_RESERVATION_COLUMNS}, project FROM wanted CROSS JOIN reservation "
    "WHERE project = for_project AND id = name"
)
# Skips from one project to the next by its key, instead of scanning all reservations.
HIGHEST_IDS: Final = (
    "WITH RECURSIVE known (project) AS (SELECT min(project) FROM reservation UNION ALL "
    "SELECT (SELECT min(project) FROM reservation WHERE project > known.project) FROM known WHERE known.project IS NOT NULL) "
    "SELECT project, (SELECT max(id) FROM reservation WHERE project = known.project) FROM known WHERE project IS NOT NULL"
)
WRITE_RESERVATIONS: Final = f"INSERT OR REPLACE INTO reservation ({_RESERVATION_COLUMNS}, project) VALUES {{rows}}"
PENDING_RESERVATIONS: Final = (
    # Otherwise the planner would scan and sort everything that the project ever reserved.
    f"SELECT {_RESERVATION_COLUMNS} FROM reservation INDEXED BY reservation_due "
    "WHERE state = 'pending' AND project = ? ORDER BY deadline_ms, id LIMIT ?"
)
DUE_RESERVATIONS: Final = (
    "SELECT deadline_ms, project, id FROM reservation WHERE state = 'pending' AND deadline_ms <= ? "
    "ORDER BY deadline_ms, project, id LIMIT ?"
)
WRITE_ENTRIES: Final = f"INSERT INTO outbox ({_OUTBOX_COLUMNS}) VALUES {{rows}}"
READ_ENTRIES: Final = f"SELECT {_OUTBOX_COLUMNS} FROM outbox WHERE position > ? ORDER BY position LIMIT ?"
READ_RUN: Final = "SELECT run, closes_ms FROM run WHERE project = ? AND workflow = ?"
WRITE_RUNS: Final = "INSERT OR REPLACE INTO run (project, workflow, run, closes_ms) VALUES {rows}"
ACCOUNTS_TO_CHECK: Final = (
    "SELECT project, account, used_ms + keep_ms, reserved_tokens + reserved_nano_usd + reserved_requests, keep_ms "
    "FROM account WHERE check_ms <= ? LIMIT ?"
)
FORGETTABLE_RESERVATIONS: Final = (
    "SELECT project, id FROM reservation WHERE state <> 'pending' AND resolved_ms <= ? "
    "AND (state <> 'expired' OR resolved_ms <= ?) LIMIT ?"
)
CLOSED_RUNS: Final = "SELECT project, workflow FROM run WHERE closes_ms <= ? LIMIT ?"


def execute_in_chunks(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> Iterator[sqlite3.Cursor]:
    """Run a statement with `{rows}` in it for all rows, up to 32 at once.

    Chunks are powers of two, so that only a few different statements have to be prepared.
    """
    done = 0
    while done < len(rows):
        size = min(_ROWS_MAX, 1 << ((len(rows) - done).bit_length() - 1))
        values = [value for row in rows[done : done + size] for value in row]
        yield connection.execute(_with_rows(statement, size, len(rows[0])), values)
        done += size


@cache
def _with_rows(statement: str, count: int, width: int) -> str:
    row = f"({', '.join('?' * width)})"
    return statement.replace("{rows}", ", ".join([row] * count))


def account_row(project: str, name: str, account: Account) -> Row:
    settled, reserved, override, tightened = account.settled, account.reserved, account.override, account.tightened
    used_ms, keep_ms = account.used_ms, account.keep_ms
    # The last column: the earliest time at which the purge may find the account over its keep time.
    return (
        settled.tokens, settled.nano_usd, settled.requests, reserved.tokens, reserved.nano_usd, reserved.requests, used_ms,
        override.tokens, override.nano_usd, override.requests, tightened.tokens, tightened.nano_usd, tightened.requests,
        str(account.gate), keep_ms, project, name, used_ms + keep_ms,
    )  # fmt: skip


def has_same_rules(account: Account, other: Account) -> bool:
    return (
        account.gate is other.gate
        and account.keep_ms == other.keep_ms
        and account.override == other.override
        and account.tightened == other.tightened
    )


def account_of(row: Sequence[Any]) -> Account:
    return Account(
        Amount(*row[0:3]), Amount(*row[3:6]), limit_of(*row[7:10]), limit_of(*row[10:13]), Gate(row[13]), row[14], row[6]
    )  # fmt: skip


def reservation_row(reservation: Reservation) -> tuple[Any, ...]:
    chain = [
        (name, limit.tokens, limit.nano_usd, limit.requests)
        for name, limit in zip(reservation.accounts, reservation.limits, strict=True)
    ]
    held, progress, booked, overrun = reservation.held, reservation.progress, reservation.booked, reservation.overrun
    return (
        reservation.id, reservation.owner, str(reservation.on_lost), orjson.dumps(chain), held.tokens, held.nano_usd, held.requests,
        reservation.output_tokens, reservation.deadline_ms, reservation.draft, str(reservation.state), progress.tokens, progress.nano_usd,
        progress.requests, booked.tokens, booked.nano_usd, booked.requests, overrun.tokens, overrun.nano_usd,
        overrun.requests, reservation.resolved_ms,
    )  # fmt: skip


def reservation_of(row: Sequence[Any]) -> Reservation:
    chain = orjson.loads(row[3])
    return Reservation(
        id=row[0],
        owner=row[1],
        accounts=tuple(link[0] for link in chain),
        limits=tuple(limit_of(*link[1:]) for link in chain),
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


def entry_row(position: int, entry: OutboxEntry) -> tuple[Any, ...]:
    amount, overrun = entry.amount, entry.overrun
    return (
        position, entry.id, str(entry.kind), entry.project, amount.tokens, amount.nano_usd, amount.requests, entry.at_ms,
        entry.draft, entry.detail, overrun.tokens, overrun.nano_usd, overrun.requests,
    )  # fmt: skip


def entry_of(row: tuple[Any, ...]) -> OutboxEntry:
    return OutboxEntry(
        str(row[0]), row[1], EntryKind(row[2]), row[3], Amount(*row[4:7]), row[7], row[8], row[9], Amount(*row[10:13])
    )  # fmt: skip
