"""Writes usage events to the store: each id once, together with its sums, in one transaction.

The writers of one database take turns (a transaction-level advisory lock; SQLite has one writer anyway). Under the lock an id
is looked up before it is inserted, so it is stored once even if it comes again with another time, which the partitioned
table's own key (id, at) could not detect. Sums are only added for new rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
from sqlalchemy import case, or_, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import Table

from gateway.ledger.port import OutboxEntry
from gateway.store import partitions
from gateway.store.bulk import Conflict, add_on_conflict, ignore_conflict, insert, insert_values, is_in
from gateway.store.database import Database, StoreConnection, first_line, is_data_fault
from gateway.store.sqlite_engine import SqliteConnection
from gateway.store.tables import SUMS, run_steps, runs, token_usage, usage_daily, usage_dead_letter, usage_hourly
from gateway.store.usage_event import COLUMNS, RejectedEntry, Row, at_of, id_of, row_of
from gateway.store.usage_sums import BY_RUN, BY_STEP, DAILY, DAY_MS, HOURLY, BatchSums, Values

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

# A redelivered event may have another time, but within a quarter: redelivery takes seconds, and the replay of a spooled
# settlement at most as long as an outage. The bound keeps old months out of the look-up.
REDELIVERY_MS_MAX: Final = 45 * 86_400_000
# Any constant that is the same in every gateway (the bytes of "usage").
WRITER_LOCK: Final = 0x7573616765
# After this many rows (a few ms), the calls of this process get their turn.
_BATCH_ROWS: Final = 200
_REASON_CHARACTERS_MAX: Final = 500
_INT64_MAX: Final = 2**63 - 1
_DELETED_AT_ONCE: Final = 5_000

# What is added to a table of sums: the table, its columns, the rows, and how to merge them with existing rows.
SumRows = tuple[Table, tuple[str, ...], Values, Conflict]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class InsertCounts:
    """How many entries became rows, existed already, and were parked as dead letters."""

    inserted: int
    known: int
    dead_lettered: int


async def insert_entries(db: Database, entries: Sequence[OutboxEntry], now_ms: int) -> InsertCounts:
    """Commit `entries` (at most some thousands). May be repeated any number of times, by any number of writers.

    Raises StoreUnavailable, after which it is unknown whether they were committed: repeat the call.
    """
    by_id, rejected = await _parse_entries(entries)
    async with db.begin() as connection:
        await _acquire_writer_lock(connection)
        new_entries = await _drop_known(connection, by_id)
        await _ensure_partitions(connection, new_entries)
        summing = asyncio.create_task(_compute_sums(new_entries))
        stored, refused = await _store_rows(connection, new_entries)
        for table, names, added, conflict in await (_compute_sums(stored) if refused else summing):
            await insert_values(connection, table, names, added, conflict)
        if refused:
            entry_of = {entry.id: entry for entry in entries}
            rejected += [RejectedEntry(entry_of[id_of(row)], reason) for row, reason in refused]
        await _insert_dead_letters(connection, rejected, now_ms)
    return InsertCounts(len(stored), len(entries) - len(stored) - len(rejected), len(rejected))


async def _parse_entries(entries: Sequence[OutboxEntry]) -> tuple[dict[str, Row], list[RejectedEntry]]:
    """The rows by id, of which the first counts, in the order of the entries; and the entries that cannot become rows."""
    by_id: dict[str, Row] = {}
    rejected: list[RejectedEntry] = []
    for start in range(0, len(entries), _BATCH_ROWS):
        await asyncio.sleep(0)
        for row in map(row_of, entries[start : start + _BATCH_ROWS]):
            if isinstance(row, RejectedEntry):
                rejected.append(row)
            else:
                by_id.setdefault(id_of(row), row)
    return by_id, rejected


async def drop_old_months(db: Database, now_ms: int, months_kept: int) -> list[str]:
    """Retention: keep this month and the `months_kept` before it, and delete older calls. The sums by hour and run stay.

    Drops whole partitions on Postgres (returns their names), deletes slices of rows on SQLite.
    """
    oldest = partitions.add_months(partitions.month_of(now_ms), -months_kept)
    if db.is_postgres:
        async with db.begin() as connection:
            return await partitions.drop_before(connection, oldest)
    before_ms = partitions.month_starts_at_ms(oldest)
    while await _delete_slice(db, before_ms):
        pass
    return []


async def create_partitions_ahead(db: Database, now_ms: int) -> None:
    """Create partitions for the coming months; to be run daily. Does nothing on SQLite."""
    if db.is_postgres:
        async with db.begin() as connection:
            await _acquire_writer_lock(connection)
            await partitions.create_ahead(connection, now_ms)


async def _acquire_writer_lock(connection: StoreConnection) -> None:
    if connection.dialect.name == "postgresql":
        # A writer that freezes in its transaction must not block the others for ever. And a generic plan looks ids up by the
        # key, whereas a custom plan reads the whole month by time while that has no statistics.
        await connection.execute(
            text(
                "SELECT set_config('idle_in_transaction_session_timeout', '30s', true), "
                "set_config('plan_cache_mode', 'force_generic_plan', true), "
                f"pg_advisory_xact_lock({WRITER_LOCK})"
            )
        )


async def _drop_known(connection: StoreConnection, by_id: dict[str, Row]) -> list[Row]:
    if not by_id:
        return []
    oldest_ms = min(map(at_of, by_id.values())) - REDELIVERY_MS_MAX
    query = select(token_usage.c.id).where(
        is_in(connection, token_usage.c.id, list(by_id)), token_usage.c.at >= oldest_ms
    )
    known_ids = set((await connection.execute(query)).scalars())
    return [row for key, row in by_id.items() if key not in known_ids]


async def _ensure_partitions(connection: StoreConnection, rows: Sequence[Row]) -> None:
    """An event of an unforeseen month (after a long outage, or from an old spool) creates its partition."""
    if rows and connection.dialect.name == "postgresql":
        days = {at_of(row) // DAY_MS for row in rows}
        await partitions.create_partitions(connection, {partitions.month_of(day * DAY_MS) for day in days})


async def _store_rows(connection: StoreConnection, rows: Sequence[Row]) -> tuple[list[Row], list[tuple[Row, str]]]:
    """Returns (stored, refused with the reason)."""
    if not isinstance(connection, SqliteConnection) and await _copy(connection, rows):
        return list(rows), []
    return await _insert_rows(connection, rows)


async def _copy(connection: AsyncConnection, rows: Sequence[Row]) -> bool:
    """COPY, at half the cost of INSERT. It does not support ON CONFLICT, but under the lock there are no conflicts. If it
    fails for that or any other reason, nothing is stored, and `_insert_rows` finds the cause."""
    if not rows:
        return True
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None  # noqa: S101 - only a detached connection has none
    try:
        async with connection.begin_nested():
            await driver.copy_records_to_table(token_usage.name, records=rows, columns=COLUMNS)
    except Exception as error:  # noqa: BLE001 - the slower way repeats it, and raises errors that are not due to the data
        _log.info("usage_copy_failed", error=_reason(error), rows=len(rows))
        return False
    return True


async def _insert_rows(connection: StoreConnection, rows: Sequence[Row]) -> tuple[list[Row], list[tuple[Row, str]]]:
    """Insert all rows; if the engine refuses the data, halve until the faulty rows are found.

    After an error Postgres can only continue from a savepoint. SQLite needs none: the repetition skips what was inserted
    before the faulty row.
    """
    if not rows:
        return [], []
    savepoint = None if isinstance(connection, SqliteConnection) else await connection.begin_nested()
    try:
        await insert_values(connection, token_usage, COLUMNS, list(rows), ignore_conflict)
    except (DBAPIError, OverflowError) as error:
        if not is_data_fault(error):
            raise  # the whole transaction is lost; SQLite ends it by itself when the disk is full
        if savepoint is not None:
            await savepoint.rollback()
        if len(rows) == 1:
            return [], [(rows[0], _reason(error))]
        half = len(rows) // 2
        first, second = await _insert_rows(connection, rows[:half]), await _insert_rows(connection, rows[half:])
        return first[0] + second[0], first[1] + second[1]
    if savepoint is not None:
        await savepoint.commit()
    return list(rows), []


def _reason(error: BaseException) -> str:
    return first_line(error)[:_REASON_CHARACTERS_MAX]


async def _compute_sums(rows: Sequence[Row]) -> list[SumRows]:
    """What the rows add to each table of sums, computed while the store writes the rows themselves."""
    sums = BatchSums()
    in_time = sorted(rows, key=at_of)
    for start in range(0, len(rows), _BATCH_ROWS):
        sums.add(in_time[start : start + _BATCH_ROWS])
        await asyncio.sleep(0)
    added: list[SumRows] = []
    for table, names, summed, conflict in (
        (usage_hourly, HOURLY, sums.hourly, _HOURLY_CONFLICT),
        (usage_daily, DAILY, sums.daily, _DAILY_CONFLICT),
        (runs, BY_RUN, sums.by_run, _RUN_CONFLICT),
        (run_steps, BY_STEP, sums.by_step, _STEP_CONFLICT),
    ):
        added.append((table, names, summed(), conflict))
        await asyncio.sleep(0)
    return added


def _minimum(name: str) -> Any:
    def make(old: Any, offered: Any) -> Any:
        return case((or_(old[name].is_(None), offered[name] < old[name]), offered[name]), else_=old[name])

    return make


def _maximum(name: str) -> Any:
    def make(old: Any, offered: Any) -> Any:
        return case((or_(old[name].is_(None), offered[name] > old[name]), offered[name]), else_=old[name])

    return make


def _keep_if_set(name: str) -> Any:
    return lambda old, offered: case((old[name] == "", offered[name]), else_=old[name])


def _replace_if_given(name: str, by: str) -> Any:
    return lambda old, offered: case((offered[by] != "", offered[name]), else_=old[name])


def _merged_state(old: Any, offered: Any) -> Any:
    """Only moves between active and exhausted, because people decide about paused, completed and cancelled."""
    moves = or_(old["state"] == "active", old["state"] == "exhausted") & (offered["last_at"] >= old["last_at"])
    return case((moves, offered["state"]), else_=old["state"])


_HOURLY_CONFLICT: Final = add_on_conflict(usage_hourly, SUMS)
_DAILY_CONFLICT: Final = add_on_conflict(usage_daily, SUMS)
_RUN_CONFLICT: Final = add_on_conflict(
    runs,
    SUMS,
    first_at=_minimum("first_at"),
    last_at=_maximum("last_at"),
    workflow=_keep_if_set("workflow"),
    agent=_keep_if_set("agent"),
    user=_keep_if_set("user"),
    parent_run=_keep_if_set("parent_run"),
    state=_merged_state,
)
_STEP_CONFLICT: Final = add_on_conflict(
    run_steps,
    SUMS,
    first_at=_minimum("first_at"),
    last_at=_maximum("last_at"),
    intent=_replace_if_given("intent", "intent"),
    confidence=_replace_if_given("confidence", "intent"),
    intent_source=_replace_if_given("intent_source", "intent"),
    model=_replace_if_given("model", "model"),
)


async def _insert_dead_letters(connection: StoreConnection, rejected: Sequence[RejectedEntry], now_ms: int) -> None:
    rows = [_dead_letter_row(rejection, now_ms) for rejection in rejected]
    await insert(connection, usage_dead_letter, rows, ignore_conflict)


def _dead_letter_row(rejection: RejectedEntry, now_ms: int) -> dict[str, Any]:
    entry = rejection.entry
    return {
        "id": _printable(entry.id.encode(errors="surrogatepass")),
        "project": _printable(entry.project.encode(errors="surrogatepass")),
        "at": _within_int64(entry.at_ms),
        "kind": str(entry.kind),
        "total_tokens": _within_int64(entry.amount.tokens),
        "cost_nano_usd": _within_int64(entry.amount.nano_usd),
        "requests": _within_int64(entry.amount.requests),
        "draft": _printable(entry.draft),
        "detail": _printable(entry.detail),
        "reason": rejection.reason,
        "parked_at": now_ms,
    }


def _within_int64(value: int) -> int:
    """Even an event with absurd figures can be parked; the reason names them."""
    return max(-_INT64_MAX, min(_INT64_MAX, value))


def _printable(raw: bytes) -> str:
    """The text as far as every engine can store it: invalid UTF-8 as `\\xNN`, NUL as U+FFFD."""
    return raw.decode(errors="backslashreplace").replace("\x00", "\ufffd")


async def _delete_slice(db: Database, before_ms: int) -> int:
    """One slice at a time, so that others get the single connection in between."""
    oldest = select(token_usage.c.id).where(token_usage.c.at < before_ms).limit(_DELETED_AT_ONCE)
    async with db.begin() as connection:
        result = await connection.execute(token_usage.delete().where(token_usage.c.id.in_(oldest)))
    return result.rowcount
