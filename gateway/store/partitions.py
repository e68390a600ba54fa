"""Monthly partitions of `token_usage` on Postgres: created before they are needed, dropped whole when they are too old.

A partition is created as a separate table and then attached: `CREATE … PARTITION OF` would lock the parent against readers.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import text

from gateway.store.database import StoreConnection

PREFIX: Final = "token_usage_"
# Three months, for a gateway that is never restarted and whose daily task fails for a whole quarter.
MONTHS_AHEAD: Final = 3

Month = tuple[int, int]


def month_of(at_ms: int) -> Month:
    """The calendar month in UTC, (year, month)."""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.year, moment.month


def month_starts_at_ms(month: Month) -> int:
    return int(datetime(month[0], month[1], 1, tzinfo=UTC).timestamp()) * 1000


def add_months(month: Month, months: int) -> Month:
    index = month[0] * 12 + month[1] - 1 + months
    return index // 12, index % 12 + 1


def partition_name(month: Month) -> str:
    return f"{PREFIX}{month[0]:04d}_{month[1]:02d}"


def month_of_name(name: str) -> Month | None:
    """The month of a partition; None for a table that is not one of ours."""
    year, _, month = name.removeprefix(PREFIX).partition("_")
    return (int(year), int(month)) if name.startswith(PREFIX) and year.isdigit() and month.isdigit() else None


async def existing_months(connection: StoreConnection) -> set[Month]:
    rows = await connection.execute(
        text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'token_usage'::regclass"
        )
    )
    months = (month_of_name(name) for (name,) in rows)
    return {month for month in months if month is not None}


async def create_partitions(connection: StoreConnection, months: Iterable[Month]) -> set[Month]:
    """Create those of `months` that are missing; returns all that exist now. Concurrent calls need a lock."""
    present = await existing_months(connection)
    for month in sorted(set(months) - present):
        await _create_partition(connection, month)
        present.add(month)
    return present


async def create_ahead(connection: StoreConnection, now_ms: int) -> set[Month]:
    """Last month (whose last events may still arrive), this month and the next three."""
    this = month_of(now_ms)
    return await create_partitions(connection, (add_months(this, offset) for offset in range(-1, MONTHS_AHEAD + 1)))


async def _create_partition(connection: StoreConnection, month: Month) -> None:
    name, start, end = partition_name(month), month_starts_at_ms(month), month_starts_at_ms(add_months(month, 1))
    await connection.execute(text(f"CREATE TABLE {name} (LIKE token_usage INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"))
    await connection.execute(
        text(f"ALTER TABLE token_usage ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})")
    )


async def drop_before(connection: StoreConnection, oldest: Month) -> list[str]:
    """Drop every month before `oldest`; returns the names. Waits at most 5 s for readers and then fails, to be tried again later."""
    await connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    dropped = [partition_name(month) for month in sorted(await existing_months(connection)) if month < oldest]
    for name in dropped:
        await connection.execute(text(f"DROP TABLE {name}"))
    return dropped
