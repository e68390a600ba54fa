"""The tables of the embedded ledger."""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x46415245  # "FARE", so that `file` and other programs can identify the file
VERSION: Final = 2  # PRAGMA user_version; a newer file is refused, an older one is upgraded

# WITHOUT ROWID makes the key the table, so that each row takes one tree lookup. The two partial indices of reservations
# contain only what the sweeper and the purge look for, so that their cost does not grow with history. `check_ms` is when the
# purge next checks an account. It is seldom written, whereas an index on the last use would change with every call.
JOURNAL: Final = "CREATE TABLE journal (number INTEGER PRIMARY KEY, changes BLOB NOT NULL)"  # since version 2
TABLES: Final = (
    JOURNAL,
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE account (
        project TEXT NOT NULL, account TEXT NOT NULL,
        settled_tokens INTEGER NOT NULL, settled_nano_usd INTEGER NOT NULL, settled_requests INTEGER NOT NULL,
        reserved_tokens INTEGER NOT NULL CHECK (reserved_tokens >= 0),
        reserved_nano_usd INTEGER NOT NULL CHECK (reserved_nano_usd >= 0),
        reserved_requests INTEGER NOT NULL CHECK (reserved_requests >= 0),
        used_ms INTEGER NOT NULL,
        override_tokens INTEGER, override_nano_usd INTEGER, override_requests INTEGER,
        tightened_tokens INTEGER, tightened_nano_usd INTEGER, tightened_requests INTEGER,
        gate TEXT NOT NULL, keep_ms INTEGER NOT NULL, check_ms INTEGER NOT NULL,
        PRIMARY KEY (project, account)) WITHOUT ROWID""",
    "CREATE INDEX account_check ON account (check_ms)",
    """CREATE TABLE reservation (
        project TEXT NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, on_lost TEXT NOT NULL, chain BLOB NOT NULL,
        held_tokens INTEGER NOT NULL, held_nano_usd INTEGER NOT NULL, held_requests INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL, deadline_ms INTEGER NOT NULL, draft BLOB NOT NULL, state TEXT NOT NULL,
        progress_tokens INTEGER NOT NULL, progress_nano_usd INTEGER NOT NULL, progress_requests INTEGER NOT NULL,
        booked_tokens INTEGER NOT NULL, booked_nano_usd INTEGER NOT NULL, booked_requests INTEGER NOT NULL,
        overrun_tokens INTEGER NOT NULL, overrun_nano_usd INTEGER NOT NULL, overrun_requests INTEGER NOT NULL,
        resolved_ms INTEGER NOT NULL,
        PRIMARY KEY (project, id)) WITHOUT ROWID""",
    "CREATE INDEX reservation_due ON reservation (deadline_ms) WHERE state = 'pending'",
    "CREATE INDEX reservation_resolved ON reservation (resolved_ms) WHERE state <> 'pending'",
    """CREATE TABLE outbox (
        position INTEGER PRIMARY KEY, project TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL,
        tokens INTEGER NOT NULL, nano_usd INTEGER NOT NULL, requests INTEGER NOT NULL,
        overrun_tokens INTEGER NOT NULL, overrun_nano_usd INTEGER NOT NULL, overrun_requests INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, draft BLOB NOT NULL, detail BLOB NOT NULL)""",
    """CREATE TABLE run (
        project TEXT NOT NULL, workflow TEXT NOT NULL, run TEXT NOT NULL, closes_ms INTEGER NOT NULL,
        PRIMARY KEY (project, workflow)) WITHOUT ROWID""",
    "CREATE INDEX run_closes ON run (closes_ms)",
)
