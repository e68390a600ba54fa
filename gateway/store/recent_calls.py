"""What the latest calls say that no sum does: why calls were refused, and the gateway's overhead.

Bounded by the number of calls and not by time, so that the cost does not depend on traffic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select

from gateway.store.database import Database
from gateway.store.tables import token_usage
from gateway.store.unindexed import unindexed

CALLS_MAX: Final = 1_000


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
    table = token_usage.c
    query = (
        select(table.status, table.code, table.overhead_us)
        .where(unindexed(table.project) == project)
        .order_by(table.at.desc())
        .limit(CALLS_MAX)
    )
    async with db.read() as connection:
        rows = (await connection.execute(query)).all()
    refused = Counter(code for status, code, _ in rows if status == "refused")
    overheads = sorted(overhead_us for status, _, overhead_us in rows if overhead_us is not None and status == "ok")
    return RecentCalls(
        len(rows), tuple(refused.most_common(8)), *(_percentile(overheads, share) for share in (0.50, 0.95, 0.99))
    )


def _percentile(ranked: Sequence[int], share: float) -> int | None:
    """The smallest value that covers this share of the values."""
    return ranked[max(0, -int(-len(ranked) * share // 1) - 1)] if ranked else None
