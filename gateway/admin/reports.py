"""Usage as pages ask for it: by the control API's own handler, so that no page has figures of its own."""

from __future__ import annotations

from typing import Final

from gateway.admin.figures import day_of
from gateway.admin.visit import Visit
from gateway.endpoints.api import usage
from gateway.endpoints.api.usage import UsageQuery, UsageReport
from gateway.store.usage_report import GroupBy

DAYS: Final = 30
_DAY_MS: Final = 86_400_000


def first_day(visit: Visit) -> str:
    """The first of the last thirty days, today among them."""
    return day_of(visit.now_ms - (DAYS - 1) * _DAY_MS)


async def report(visit: Visit, query: UsageQuery) -> UsageReport:
    found = await visit.ask(usage.get_usage, query=query.model_copy(update={"format": "json"}))
    assert isinstance(found, UsageReport)  # noqa: S101 - CSV was not asked for
    return found


async def report_by(visit: Visit, group_by: GroupBy, since: str, **more: str | int) -> UsageReport:
    """`since` is a day, or milliseconds since the epoch; `more` are further fields of the query."""
    query = {"project": visit.project, "group_by": group_by, "from": since, **more}
    return await report(visit, UsageQuery.model_validate(query))
