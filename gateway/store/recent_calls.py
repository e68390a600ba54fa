"""What the latest calls say that no sum does: why calls were refused, and the gateway's overhead.

Bounded by the number of calls and not by time, so that the cost does not depend on traffic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select

from gateway.store.database import Database
from gateway.store.tables import token_usage, usage_daily
from gateway.store.unindexed import unindexed

CALLS_MAX: Final = 1_000
# A project with fewer calls is found by SQLite's index of projects and sorted; of one with more, the latest calls of all projects hold
# enough. Either the other way round takes a second with a million calls.
_SORTED_CALLS_MAX: Final = 20_000


@dataclass(frozen=True, slots=True)
class RecentCalls:
    """`refusals` are (code, count), the most frequent first. Overheads are in µs; None if no call has one."""

    calls: int
    refusals: tuple[tuple[str, int], ...]
    overhead_us_p50: int | None
    overhead_us_p95: int | None
    overhead_us_p99: int | None


async def recent_calls(db: Database, project: str) -> RecentCalls:
    """Raises StoreUnavailable."""
    table, daily = token_usage.c, usage_daily.c
    counted = select(func.sum(daily.calls + daily.refused)).where(daily.project == project)
    latest = select(table.status, table.code, table.overhead_us).order_by(table.at.desc()).limit(CALLS_MAX)
    async with db.read() as connection:
        calls = (await connection.execute(counted)).scalar() or 0
        column = table.project if calls <= _SORTED_CALLS_MAX else unindexed(table.project)
        rows = (await connection.execute(latest.where(column == project))).all()
    refused = Counter(code for status, code, _ in rows if status == "refused")
    overheads = sorted(overhead_us for status, _, overhead_us in rows if overhead_us is not None and status == "ok")
    return RecentCalls(
        len(rows), tuple(refused.most_common(8)), *(_percentile(overheads, share) for share in (0.50, 0.95, 0.99))
    )


def _percentile(ranked: Sequence[int], share: float) -> int | None:
    """The smallest value that covers this share of the values."""
    return ranked[max(0, -int(-len(ranked) * share // 1) - 1)] if ranked else None
