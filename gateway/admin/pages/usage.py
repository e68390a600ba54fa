"""/admin/usage: metric × group × time, as a chart, a table and CSV. The name of a row links to the figures of that group alone."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from gateway.admin.day_chart import day_chart
from gateway.admin.formatting import page_path
from gateway.admin.page_request import Page, PageRequest
from gateway.admin.reports import first_day_shown, load_report
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


async def show_usage(page_request: PageRequest) -> Response:
    metric = page_request.param("metric") if page_request.param("metric") in METRICS else "total_tokens"
    query = _usage_query(page_request)
    report = await load_report(page_request, query)
    rows = (
        sorted(report.rows, key=lambda row: -getattr(row, metric)) if query.group_by is not GroupBy.DAY else report.rows
    )
    return page_request.render(
        "usage",
        report=report,
        metric=metric,
        metrics=METRICS,
        groups=[one.value for one in GroupBy],
        group_by=query.group_by.value,
        filters={name: page_request.param(name) for name in _FILTERS},
        since=query.since,
        until=query.until or "",
        rows=rows,
        chart=await day_chart(page_request, query, report, metric),
        largest=max((abs(getattr(row, metric)) for row in report.rows), default=0) or 1,
        csv=_csv_path(page_request, query),
        filtered_path=lambda group: _filtered_path(page_request, query.group_by.value, group),
    )


async def download_csv(page_request: PageRequest) -> Response:
    query = _usage_query(page_request).model_copy(update={"format": "csv"})
    response = await page_request.call_api(usage.get_usage, query=query)
    assert isinstance(response, Response)  # noqa: S101 - CSV was asked for
    return response


def _usage_query(page_request: PageRequest) -> UsageQuery:
    """The last thirty days unless the address says otherwise."""
    return page_request.query(UsageQuery, **{"from": page_request.param("from") or first_day_shown(page_request)})


def _csv_path(page_request: PageRequest, query: UsageQuery) -> str:
    given = dict(page_request.http_request.query_params) | {"from": str(query.since), "group_by": query.group_by.value}
    known = {"project", "group_by", "from", "to", *_FILTERS}
    return page_path("usage.csv", **{name: value for name, value in given.items() if name in known})


def _filtered_path(page_request: PageRequest, group_by: str, group: str) -> str | None:
    """The address of one group's figures by day; None if the group cannot be filtered by, or has no name."""
    if group_by not in _FILTERS or not group:
        return None
    given = {name: value for name, value in page_request.http_request.query_params.items() if name != "cursor"}
    return page_path("usage", **{**given, group_by: group, "group_by": "day"})


PAGES = (
    Page("GET", "/usage", show_usage, "viewer"),
    Page("GET", "/usage.csv", download_csv, "viewer"),
)
