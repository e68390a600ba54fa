"""The data of charts: a metric by day, split by group. The largest groups have a name, all others are summed as one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gateway.admin.page_request import PageRequest
from gateway.admin.reports import load_report
from gateway.endpoints.api import usage
from gateway.endpoints.api.usage import UsageQuery, UsageReport, UsageTotals, figures
from gateway.store import usage_report
from gateway.store.usage_report import GroupBy

DAYS_MAX: Final = 400
_GROUPS_MAX: Final = 6
_OTHERS: Final = "others"
# Groups that are not split by day: days themselves, and runs, whose number is unbounded.
_UNSPLIT_GROUPS: Final = (GroupBy.DAY, GroupBy.RUN)


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    values: list[float]  # one for each day


@dataclass(frozen=True, slots=True)
class DayChart:
    """`days` are seconds since the epoch, at midnight UTC. A day without calls has the value 0."""

    days: list[float]
    parts: list[Part]
    is_money: bool
    is_cut: bool = False  # whether there are earlier days, which are not shown

    @property
    def totals(self) -> list[float]:
        return [sum(part.values[index] for part in self.parts) for index in range(len(self.days))]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def day_chart(
    page_request: PageRequest,
    query: UsageQuery,
    grouped_report: UsageReport,
    metric: str,
    by_day: UsageReport | None = None,
) -> DayChart:
    """`grouped_report` is what `query` found: its rows say which groups are large. `by_day` the same by day, if it is known already."""
    usage_filter = usage.filter_of(page_request.services, query)
    last_ms = page_request.now_ms if usage_filter.to_ms is None else usage_filter.to_ms - 1
    days, is_cut = _days_shown(usage_filter.from_ms, last_ms)
    if by_day is None:
        is_whole = query.group_by is GroupBy.DAY and len(grouped_report.rows) == grouped_report.groups
        by_day = grouped_report if is_whole else await _load_by_day(page_request, query, days[0] if is_cut else None)
    value_by_day = {row.day or "": getattr(row, metric) for row in by_day.rows}
    parts = (
        []
        if query.group_by in _UNSPLIT_GROUPS or query.run
        else await _largest_groups(page_request, query, grouped_report, metric, days)
    )
    remainder = [value_by_day.get(day, 0) - sum(part.values[index] for part in parts) for index, day in enumerate(days)]
    if not parts:
        parts = [Part("", remainder)]
    elif any(value > 1e-12 for value in remainder):
        parts.append(Part(_OTHERS, [max(0, value) for value in remainder]))
    at_s = [datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() for day in days]
    return DayChart(at_s, parts, metric.endswith("usd"), is_cut)


async def _load_by_day(page_request: PageRequest, query: UsageQuery, first_day: str | None) -> UsageReport:
    """`first_day` replaces the beginning of the query."""
    since = query.since if first_day is None else first_day
    by_day = {"group_by": GroupBy.DAY, "limit": DAYS_MAX, "cursor": None, "since": since}
    return await load_report(page_request, query.model_copy(update=by_day))


async def _largest_groups(
    page_request: PageRequest, query: UsageQuery, grouped_report: UsageReport, metric: str, days: list[str]
) -> list[Part]:
    """The groups with most of the metric, the largest first."""
    field = query.group_by.value
    ranked = sorted(grouped_report.rows, key=lambda row: -getattr(row, metric))
    largest = [row for row in ranked[:_GROUPS_MAX] if getattr(row, metric) > 0]
    if len(largest) < 2:
        return []
    groups = [getattr(row, field) or "" for row in largest]
    usage_filter = usage.filter_of(page_request.services, query)
    sums_by_group = await usage_report.days_of_groups(page_request.store, query.group_by, groups, usage_filter)
    values = {key: getattr(UsageTotals(**figures(sums)), metric) for key, sums in sums_by_group.items()}
    return [
        Part(row.key_name or group or "none", [values.get((group, day), 0) for day in days])
        for row, group in zip(largest, groups, strict=True)
    ]


def _days_shown(from_ms: int | None, last_ms: int) -> tuple[list[str], bool]:
    """The days of a chart, and whether there are more than it can show, of which these are the latest. Without a beginning there are."""
    last = datetime.fromtimestamp(last_ms / 1000, UTC).date()
    earliest = last - timedelta(days=DAYS_MAX - 1)
    first = earliest if from_ms is None else datetime.fromtimestamp(from_ms / 1000, UTC).date()
    begins = max(first, earliest)
    days = [(begins + timedelta(days=offset)).isoformat() for offset in range((last - begins).days + 1)]
    return days, from_ms is None or first < earliest
