"""Usage reports for pages, from the control API's handler, so that pages and API show the same figures."""

from __future__ import annotations

from typing import Final

from gateway.admin.formatting import iso_day
from gateway.admin.page_request import PageRequest
from gateway.endpoints.api import usage
from gateway.endpoints.api.usage import UsageQuery, UsageReport
from gateway.store.usage_report import GroupBy

DAYS_SHOWN: Final = 30
_DAY_MS: Final = 86_400_000


def first_day_shown(page_request: PageRequest) -> str:
    """The first of the last thirty days, including today."""
    return iso_day(page_request.now_ms - (DAYS_SHOWN - 1) * _DAY_MS)


async def load_report(page_request: PageRequest, query: UsageQuery) -> UsageReport:
    result = await page_request.call_api(usage.get_usage, query=query.model_copy(update={"format": "json"}))
    assert isinstance(result, UsageReport)  # noqa: S101 - CSV was not asked for
    return result


async def load_report_by(page_request: PageRequest, group_by: GroupBy, since: str, **more: str | int) -> UsageReport:
    """`since` is a day, or milliseconds since the epoch; `more` are further fields of the query."""
    query = {"project": page_request.project, "group_by": group_by, "from": since, **more}
    return await load_report(page_request, UsageQuery.model_validate(query))
