"""/admin/usage: metric × group × time, as a chart, a table and CSV. A row's name leads to the same figures of it alone."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from gateway.admin.day_chart import day_chart
from gateway.admin.figures import path_of
from gateway.admin.reports import first_day, report
from gateway.admin.visit import Page, Visit
from gateway.endpoints.api import usage
from gateway.endpoints.api.usage import UsageQuery
from gateway.store.usage_report import GroupBy

METRICS: Final = {
    "total_tokens": "tokens",
    "cost_usd": "dollars",
    "calls": "calls",
    "refused": "refused",
    "errors": "failed",
    "input_tokens": "prompt tokens",
    "output_tokens": "answer tokens",
    "saved_tokens": "saved tokens",
    "saved_usd": "saved dollars",
    "overrun_tokens": "overrun tokens",
}
_FILTERS: Final = ("workflow", "run", "step", "agent", "intent", "model", "key")


async def explore(visit: Visit) -> Response:
    metric = visit.param("metric") if visit.param("metric") in METRICS else "total_tokens"
    query = _query(visit)
    found = await report(visit, query)
    rows = (
        sorted(found.rows, key=lambda row: -getattr(row, metric)) if query.group_by is not GroupBy.DAY else found.rows
    )
    return visit.show(
        "usage",
        report=found,
        metric=metric,
        metrics=METRICS,
        groups=[one.value for one in GroupBy],
        group_by=query.group_by.value,
        filters={name: visit.param(name) for name in _FILTERS},
        since=query.since,
        until=query.until or "",
        rows=rows,
        chart=await day_chart(visit, query, found, metric),
        largest=max((abs(getattr(row, metric)) for row in found.rows), default=0) or 1,
        csv=_csv_path(visit, query),
        narrowed=lambda group: _narrowed(visit, query.group_by.value, group),
    )


async def as_csv(visit: Visit) -> Response:
    query = _query(visit).model_copy(update={"format": "csv"})
    found = await visit.ask(usage.get_usage, query=query)
    assert isinstance(found, Response)  # noqa: S101 - CSV was asked for
    return found


def _query(visit: Visit) -> UsageQuery:
    """The last thirty days unless the address says otherwise."""
    return visit.query(UsageQuery, **{"from": visit.param("from") or first_day(visit)})


def _csv_path(visit: Visit, query: UsageQuery) -> str:
    given = dict(visit.request.query_params) | {"from": str(query.since), "group_by": query.group_by.value}
    known = {"project", "group_by", "from", "to", *_FILTERS}
    return path_of("usage.csv", **{name: value for name, value in given.items() if name in known})


def _narrowed(visit: Visit, group_by: str, group: str) -> str | None:
    """The address of the same figures of one group alone, by day; None where a group is no filter, or has no name."""
    if group_by not in _FILTERS or not group:
        return None
    given = {name: value for name, value in visit.request.query_params.items() if name != "cursor"}
    return path_of("usage", **{**given, group_by: group, "group_by": "day"})


PAGES = (
    Page("GET", "/usage", explore, "viewer"),
    Page("GET", "/usage.csv", as_csv, "viewer"),
)
