"""Usage, grouped and summed, and single calls. All totals are computed here, so that no two pages disagree.

A report reads the sums by day, the sums by hour for days that its time range cuts, and single rows for hours that it cuts.
Grouped by run, it reads the sums of runs, and single rows only for runs that the range cuts; what these leave of all calls
are the calls without a run. The result is the same as from the rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    CompoundSelect,
    FromClause,
    Select,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.schema import Table

from gateway.store.bulk import is_in
from gateway.store.database import Database, StoreConnection
from gateway.store.paging import after_cursor, cursor_of, newest_first
from gateway.store.runs import Sums
from gateway.store.tables import SUMS, is_given, runs, token_usage, usage_daily, usage_hourly
from gateway.store.unindexed import unindexed
from gateway.store.usage_sums import CALL_STATUSES, DAY_MS, ERROR_STATUSES, HOUR_MS, SUMMED
from policies.amounts import Amount


class GroupBy(StrEnum):
    """What a row stands for. `day` is a day in UTC; `savings` the kinds of actions taken, joined by +, empty for none."""

    WORKFLOW = "workflow"
    RUN = "run"
    STEP = "step"
    AGENT = "agent"
    INTENT = "intent"
    MODEL = "model"
    KEY = "key"
    DAY = "day"
    SAVINGS = "savings"


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which calls; None matches anything, the empty text calls without the field. From inclusive, to exclusive, in ms."""

    project: str | None = None
    workflow: str | None = None
    run: str | None = None
    step: str | None = None
    agent: str | None = None
    key: str | None = None
    intent: str | None = None
    model: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ReportRow:
    group: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class Report:
    """The largest groups by tokens first, days in order. `total` covers all groups, shown or not."""

    group_by: GroupBy
    rows: tuple[ReportRow, ...]
    total: Sums
    groups: int  # the number of all groups


@dataclass(frozen=True, slots=True)
class CallPage:
    """One page of rows of `token_usage`, latest first. `next` is the cursor of the following page, None on the last."""

    calls: tuple[Mapping[str, Any], ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class _SumTable:
    """A table of sums over time spans that begin at `at`."""

    table: Table
    at: Column[int]
    size_ms: int


_SUM_TABLES: Final = (
    _SumTable(usage_daily, usage_daily.c.day_at, DAY_MS),
    _SumTable(usage_hourly, usage_hourly.c.hour_at, HOUR_MS),
)

# Filter field → column. The tables of sums have all of them except the run.
_COLUMNS: Final = {
    "project": "project",
    "workflow": "workflow",
    "run": "run",
    "step": "step",
    "agent": "agent",
    "key": "key_id",
    "intent": "intent",
    "model": "model",
}
_RUN_FIELDS: Final = ("project", "workflow", "run")
# What a row of a report's statement is: a group, the total of a source of groups, or the total of all calls.
_GROUP, _TOTAL, _GRAND_TOTAL = range(3)
# Building a report's statement takes as long as executing it (5 to 8 ms), and people reload pages.
_STATEMENTS_MAX: Final = 64


async def report(db: Database, group_by: GroupBy, usage_filter: UsageFilter, limit: int = 100) -> Report:
    """Sum the calls that match `usage_filter` by `group_by`. Raises StoreUnavailable."""
    async with db.begin() as connection:
        report_rows = (await connection.execute(_report_query(group_by, usage_filter, limit))).mappings().all()
    groups = [row for row in report_rows if row["kind"] == _GROUP]
    totals = [row for row in report_rows if row["kind"] == _TOTAL]
    total = {name: sum(row[name] or 0 for row in totals) for name in SUMS}
    count = sum(row["groups"] for row in totals)
    for grand_total in (row for row in report_rows if row["kind"] == _GRAND_TOTAL):
        remainder = {name: (grand_total[name] or 0) - total[name] for name in SUMS}
        if any(remainder.values()):
            groups, count = [*groups, {"grp": "", **remainder}], count + 1
            total = {name: grand_total[name] or 0 for name in SUMS}
    shown_rows = sorted(groups, key=lambda row: _sort_key(group_by, row))[:limit]
    rows = tuple(ReportRow(_label(group_by, row["grp"]), Sums.of(row)) for row in shown_rows)
    return Report(group_by, rows, Sums.of(total), count)


async def days_of_groups(
    db: Database, group_by: GroupBy, groups: Sequence[str], usage_filter: UsageFilter
) -> dict[tuple[str, str], Sums]:
    """(group, day) → what these groups used on each day; days without calls are omitted. Raises StoreUnavailable.

    Not by run: their number is unbounded, and only single rows have their days.
    """
    query = _days_query(group_by, usage_filter)
    async with db.read() as connection:
        rows = (await connection.execute(query, {"groups": list(groups)})).mappings().all()
    return {(str(row["grp"]), _label(GroupBy.DAY, row["day"])): Sums.of(row) for row in rows}


@lru_cache(maxsize=_STATEMENTS_MAX)
def _days_query(group_by: GroupBy, usage_filter: UsageFilter) -> Select[Any]:
    part = _union(
        _parts_by_range(group_by, usage_filter, usage_filter.from_ms, usage_filter.to_ms, _SUM_TABLES, days=True)
    ).subquery("part")
    sums = [func.sum(part.c[name]).label(name) for name in SUMS]
    is_wanted = part.c.grp.in_(bindparam("groups", expanding=True))
    return select(part.c.grp, part.c.day, *sums).where(is_wanted).group_by(part.c.grp, part.c.day)


@lru_cache(maxsize=_STATEMENTS_MAX)
def _report_query(group_by: GroupBy, usage_filter: UsageFilter, limit: int) -> CompoundSelect[Any]:
    """The largest groups of each source and, as another row, their total: read in one query, so that they agree."""
    rows: list[Select[Any]] = []
    for source in _sources(group_by, usage_filter):
        group, names = source.c.grp, [source.c[name] for name in SUMS]
        first = group if group_by is GroupBy.DAY else source.c.total_tokens.desc()
        columns = [literal_column(str(_GROUP)).label("kind"), group, literal_column("0").label("groups"), *names]
        shown_groups = select(*columns).order_by(first, group).limit(limit).subquery()
        rows += [select(shown_groups), _summed(_TOTAL, source)]
    # Calls of a workflow always have a run.
    if (
        group_by is GroupBy.RUN
        and not _not_in_runs(usage_filter)
        and usage_filter.run is None
        and not usage_filter.workflow
    ):
        every = _union(
            _parts_by_range(GroupBy.WORKFLOW, usage_filter, usage_filter.from_ms, usage_filter.to_ms, _SUM_TABLES)
        ).subquery("every")
        rows.append(_summed(_GRAND_TOTAL, every))
    return union_all(*rows)


def _summed(kind: int, source: FromClause) -> Select[Any]:
    totals = [func.sum(source.c[name]).label(name) for name in SUMS]
    return select(literal_column(str(kind)), cast(null(), source.c.grp.type), func.count(), *totals)


def _sort_key(group_by: GroupBy, row: Mapping[Any, Any]) -> tuple[Any, Any]:
    return (0 if group_by is GroupBy.DAY else -row["total_tokens"]), row["grp"]


async def calls(db: Database, usage_filter: UsageFilter, limit: int = 100, cursor: str | None = None) -> CallPage:
    """Single calls, latest first. Raises ValueError for an invalid cursor."""
    table = token_usage.c
    conditions = [*_conditions(token_usage, usage_filter), *_within(table.at, usage_filter.from_ms, usage_filter.to_ms)]
    query = select(token_usage).where(*conditions, *after_cursor(cursor, table.at, table.id))
    query = query.order_by(*newest_first(table.at, table.id)).limit(limit + 1)
    async with db.read() as connection:
        rows = [dict(row) for row in (await connection.execute(query)).mappings()]
    page = tuple(rows[:limit])
    return CallPage(page, cursor_of(page[-1]["at"], page[-1]["id"]) if len(rows) > limit else None)


async def names_seen(db: Database, project: str) -> Sequence[tuple[str, str, str]]:
    """The combinations of workflow, agent and key id in the project's calls, empty for a missing one. Raises StoreUnavailable."""
    query = (
        select(usage_daily.c.workflow, usage_daily.c.agent, usage_daily.c.key_id)
        .where(usage_daily.c.project == project)
        .distinct()
    )
    async with db.read() as connection:
        return [tuple(row) for row in await connection.execute(query)]


async def amounts_of_runs(
    connection: StoreConnection, project: str, names: Sequence[str]
) -> list[tuple[str, str, bool, Amount]]:
    """(run, step, whether its rows name a parent, sum) from the rows themselves, for checks of the other sums."""
    rows = token_usage.c
    is_child = is_given(rows.parent_run)
    groups = rows.run, rows.step, is_child
    sums = [func.sum(rows[name]) for name in ("total_tokens", "cost_nano_usd", "requests")]
    query = select(*groups, *sums).where(rows.project == project, is_in(connection, rows.run, names)).group_by(*groups)
    return [
        (run, step, bool(child), Amount(*(int(value or 0) for value in amounts)))
        for run, step, child, *amounts in await connection.execute(query)
    ]


def _sources(group_by: GroupBy, usage_filter: UsageFilter) -> list[FromClause]:
    """Rows of (grp, sums…). No group is in two sources, or twice in one."""
    if group_by is GroupBy.RUN and not _not_in_runs(usage_filter) and usage_filter.run != "":
        if usage_filter.project is not None:
            return _from_runs(usage_filter)
        # Runs of different projects may have the same name.
        return [_grouped(_union([select(source) for source in _from_runs(usage_filter)]))]
    if group_by is GroupBy.RUN or usage_filter.run is not None:
        return [
            _grouped(
                _from_rows(group_by, usage_filter, _within(token_usage.c.at, usage_filter.from_ms, usage_filter.to_ms))
            )
        ]
    # Whole days from the sums by day, the hours of cut days from the sums by hour, cut hours from the rows.
    return [
        _grouped(_union(_parts_by_range(group_by, usage_filter, usage_filter.from_ms, usage_filter.to_ms, _SUM_TABLES)))
    ]


def _grouped(rows: Select[Any]) -> FromClause:
    part = rows.subquery("part")
    return (
        select(part.c.grp, *(func.sum(part.c[name]).label(name) for name in SUMS)).group_by(part.c.grp).cte("grouped")
    )


def _not_in_runs(usage_filter: UsageFilter) -> list[str]:
    """The fields of the filter that the sums of runs do not have."""
    return [name for name in _COLUMNS if name not in _RUN_FIELDS and getattr(usage_filter, name) is not None]


def _from_rows(
    group_by: GroupBy, usage_filter: UsageFilter, extra_conditions: list[ColumnElement[bool]], *, days: bool = False
) -> Select[Any]:
    columns = _groups(token_usage, token_usage.c.at, group_by, days)
    conditions = [*_conditions(token_usage, usage_filter), *extra_conditions]
    return select(*columns, *_row_sums()).where(*conditions).group_by(*columns)


def _parts_by_range(
    group_by: GroupBy,
    usage_filter: UsageFilter,
    start_ms: int | None,
    end_ms: int | None,
    tables_of_sums: tuple[_SumTable, ...],
    *,
    days: bool = False,
) -> list[Select[Any]]:
    if not tables_of_sums:
        return [_from_rows(group_by, usage_filter, _within(token_usage.c.at, start_ms, end_ms), days=days)]
    table_of_sums, *finer_tables = tables_of_sums
    finer = tuple(finer_tables)
    first_ms = None if start_ms is None else -(-start_ms // table_of_sums.size_ms) * table_of_sums.size_ms
    last_ms = None if end_ms is None else end_ms // table_of_sums.size_ms * table_of_sums.size_ms
    if first_ms is not None and last_ms is not None and first_ms >= last_ms:
        return _parts_by_range(group_by, usage_filter, start_ms, end_ms, finer, days=days)
    parts = [_from_sum_table(group_by, usage_filter, table_of_sums, first_ms, last_ms, days=days)]
    for cut_start_ms, cut_end_ms in ((start_ms, first_ms), (last_ms, end_ms)):
        if cut_start_ms is not None and cut_end_ms is not None and cut_start_ms < cut_end_ms:
            parts += _parts_by_range(group_by, usage_filter, cut_start_ms, cut_end_ms, finer, days=days)
    return parts


def _from_sum_table(
    group_by: GroupBy,
    usage_filter: UsageFilter,
    table_of_sums: _SumTable,
    start_ms: int | None,
    end_ms: int | None,
    *,
    days: bool = False,
) -> Select[Any]:
    columns = _groups(table_of_sums.table, table_of_sums.at, group_by, days)
    sums = [func.sum(table_of_sums.table.c[name]).label(name) for name in SUMS]
    conditions = [*_conditions(table_of_sums.table, usage_filter), *_within(table_of_sums.at, start_ms, end_ms)]
    return select(*columns, *sums).where(*conditions).group_by(*columns)


def _from_runs(usage_filter: UsageFilter) -> list[FromClause]:
    """Runs that are wholly in the range from their sums, those that it cuts from their rows.

    There are many of the first. They are read once for the largest and once for the total: that needs no space for all of
    them, unlike a common table expression, and takes half the time.
    """
    table = runs.c
    conditions = _conditions(runs, usage_filter)
    begins_late = [] if usage_filter.from_ms is None else [table.first_at >= usage_filter.from_ms]
    ends_early = [] if usage_filter.to_ms is None else [table.last_at < usage_filter.to_ms]
    sums = [table[name] for name in SUMS]
    whole_runs = select(table.run.label("grp"), *sums).where(*conditions, *begins_late, *ends_early, _HAS_CALLS)
    if not begins_late and not ends_early:
        return [whole_runs.subquery("whole")]
    reaches_in = [*_after(table.last_at, usage_filter.from_ms), *_before(table.first_at, usage_filter.to_ms)]
    cut = or_(*(~condition for condition in (*begins_late, *ends_early)))
    joined = token_usage.join(runs, and_(table.project == token_usage.c.project, table.run == token_usage.c.run))
    rows = (
        select(table.run.label("grp"), *_row_sums())
        .select_from(joined)
        .where(*conditions, *reaches_in, cut, *_within(token_usage.c.at, usage_filter.from_ms, usage_filter.to_ms))
        .group_by(table.run)
    )
    return [whole_runs.subquery("whole"), rows.cte("cut")]


# A run that was planned but never called has nothing to report.
_HAS_CALLS: Final = or_(runs.c.calls > 0, runs.c.refused > 0, runs.c.total_tokens != 0, runs.c.requests != 0)


def _union(parts: list[Select[Any]]) -> Select[Any]:
    if len(parts) == 1:
        return parts[0]
    united = union_all(*parts).subquery("united")
    return select(united)


def _groups(table: Any, time_column: ColumnElement[int], group_by: GroupBy, days: bool) -> list[ColumnElement[Any]]:
    """The grouping columns: `grp`, and `day` if both are wanted."""
    columns: list[ColumnElement[Any]] = [_group(table, time_column, group_by).label("grp")]
    return [*columns, _group(table, time_column, GroupBy.DAY).label("day")] if days else columns


def _group(table: Any, time_column: ColumnElement[int], group_by: GroupBy) -> ColumnElement[Any]:
    if group_by is GroupBy.DAY:
        return time_column - time_column % literal(DAY_MS)
    column: ColumnElement[Any] = table.c[_COLUMNS.get(group_by.value, group_by.value)]
    return column


def _label(group_by: GroupBy, group: object) -> str:
    if group_by is GroupBy.DAY:
        return datetime.fromtimestamp(int(str(group)) / 1000, UTC).date().isoformat()
    return str(group)


def _row_sums() -> list[ColumnElement[Any]]:
    status = token_usage.c.status
    return [
        func.sum(case((status.in_(CALL_STATUSES), 1), else_=0)).label("calls"),
        func.sum(case((status == "refused", 1), else_=0)).label("refused"),
        func.sum(case((status.in_(ERROR_STATUSES), 1), else_=0)).label("errors"),
        # In Postgres, sums of bigint are numeric, and would make all united columns numeric: three times the work.
        *(cast(func.sum(token_usage.c[name]), BigInteger).label(name) for name in SUMMED),
    ]


def _conditions(table: Any, usage_filter: UsageFilter) -> list[ColumnElement[bool]]:
    """Fields that the table lacks are skipped: `_sources` chose the table accordingly."""
    columns_and_values = ((column, getattr(usage_filter, name)) for name, column in _COLUMNS.items())
    pairs = [
        (table.c[column], value) for column, value in columns_and_values if value is not None and column in table.c
    ]
    if table is token_usage and usage_filter.run is None:
        pairs = [(unindexed(column) if column is token_usage.c.project else column, value) for column, value in pairs]
    return [column == value for column, value in pairs]


def _within(column: ColumnElement[int], start_ms: int | None, end_ms: int | None) -> list[ColumnElement[bool]]:
    return [*_after(column, start_ms), *_before(column, end_ms)]


def _after(column: ColumnElement[int], start_ms: int | None) -> list[ColumnElement[bool]]:
    return [] if start_ms is None else [column >= start_ms]


def _before(column: ColumnElement[int], end_ms: int | None) -> list[ColumnElement[bool]]:
    return [] if end_ms is None else [column < end_ms]
