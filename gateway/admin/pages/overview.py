"""/admin: what is running, what it cost, what was refused and why, what was saved."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from starlette.responses import Response

from gateway.admin.day_chart import DayChart, day_chart
from gateway.admin.figures import day_of
from gateway.admin.reports import DAYS, first_day, report_by
from gateway.admin.shared_budgets import shared_of
from gateway.admin.visit import Page, Visit
from gateway.budget_view import BudgetAccount
from gateway.endpoints.api import budgets, runs
from gateway.endpoints.api.runs import RunsQuery
from gateway.endpoints.api.schema import ListQuery
from gateway.endpoints.api.usage import UsageQuery, UsageReport, UsageTotals, figures
from gateway.store.recent_calls import recent_calls
from gateway.store.runs import Sums
from gateway.store.usage_report import GroupBy
from policies.windows import WINDOWS, window_bounds

_HOUR_MS = 3_600_000
_ROWS_SHOWN = 6
_CAPS_SHOWN = 3
# Of a window: before that a single call would foretell anything.
_ELAPSED_MIN = 0.02


@dataclass(frozen=True, slots=True)
class Burn:
    """What the last hour used, and the month at its end if every hour to come were like it."""

    tokens: int
    cost_usd: float
    month_tokens: int
    month_cost_usd: float


@dataclass(frozen=True, slots=True)
class DayColumns:
    """The last thirty days, oldest first; days without a call are 0."""

    days: tuple[str, ...]
    tokens: tuple[int, ...]
    cost_usd: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Cap:
    """A budget near its limit. `at_reset` is the share of it that is used when its window ends, if it goes on like this."""

    budget: budgets.BudgetView
    account: BudgetAccount
    at_reset: float | None
    full_in_ms: float | None  # only where that is before the window ends


async def overview(visit: Visit) -> Response:
    now = datetime.fromtimestamp(visit.now_ms / 1000, UTC)
    month_start, today = day_of(visit.now_ms)[:8] + "01", day_of(visit.now_ms)
    first = date.fromisoformat(first_day(visit))
    (month, hour, savings, workflows, by_day), (known, latest, calls) = await asyncio.gather(
        asyncio.gather(
            report_by(visit, GroupBy.INTENT, month_start),
            report_by(visit, GroupBy.WORKFLOW, str(visit.now_ms - _HOUR_MS)),
            report_by(visit, GroupBy.SAVINGS, month_start),
            report_by(visit, GroupBy.WORKFLOW, first.isoformat()),
            report_by(visit, GroupBy.DAY, first.isoformat()),
        ),
        asyncio.gather(
            visit.ask(budgets.list_budgets, query=ListQuery(project=visit.project, limit=200)),
            visit.ask(runs.list_runs, query=visit.query(RunsQuery, limit=_ROWS_SHOWN)),
            recent_calls(visit.store, visit.project),
        ),
    )
    return visit.show(
        "overview",
        today=next((row for row in by_day.rows if row.day == today), UsageTotals(**figures(Sums()))),
        month=month.total,
        intents=month.rows,
        savings=savings.rows,
        workflows=workflows.rows[:_ROWS_SHOWN],
        tokens=workflows.total.total_tokens,
        days=_days(first, by_day),
        chart=await _spend_chart(visit, first, workflows, by_day),
        burn=_burn(hour.total, month.total, now),
        caps=_fullest(known, visit.now_ms),
        found=latest,
        shared=await shared_of(visit, latest.runs),
        of_project=None,
        recent=calls,
        month_start=month_start,
        today_name=today,
        is_new=not calls.calls and not by_day.rows,
        is_open=visit.desk.access.is_open(),
        model=next(iter(visit.desk.parts.pool.names), "…"),
    )


def _days(first: date, by_day: UsageReport) -> DayColumns:
    found = {row.day: row for row in by_day.rows}
    days = tuple((first + timedelta(days=at)).isoformat() for at in range(DAYS))
    rows = [found.get(day) for day in days]
    tokens = tuple(row.total_tokens if row else 0 for row in rows)
    return DayColumns(days, tokens, tuple(row.cost_usd if row else 0.0 for row in rows))


async def _spend_chart(visit: Visit, first: date, workflows: UsageReport, by_day: UsageReport) -> DayChart:
    """Dollars of each day by workflow; where nothing costs anything, tokens."""
    query = UsageQuery.model_validate(
        {"project": visit.project, "group_by": GroupBy.WORKFLOW, "from": first.isoformat()}
    )
    metric = "cost_usd" if workflows.total.cost_usd else "total_tokens"
    return await day_chart(visit, query, workflows, metric, by_day)


def _burn(hour: UsageTotals, month: UsageTotals, now: datetime) -> Burn:
    following = (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    hours_left = (following - now).total_seconds() / 3600
    return Burn(
        hour.total_tokens,
        hour.cost_usd,
        month.total_tokens + int(hour.total_tokens * hours_left),
        month.cost_usd + hour.cost_usd * hours_left,
    )


def _fullest(known: budgets.BudgetList, now_ms: int) -> list[Cap]:
    """The accounts of budgets on workflows, agents, keys and projects that are nearest to their limit."""
    pairs = [(budget, account) for budget in known.budgets for account in budget.accounts if account.used]
    nearest = sorted(pairs, key=lambda pair: -(pair[1].used or 0.0))[:_CAPS_SHOWN]
    return [_cap(budget, account, now_ms) for budget, account in nearest]


def _cap(budget: budgets.BudgetView, account: BudgetAccount, now_ms: int) -> Cap:
    """Straight on from the window's begin until now; too little of it says nothing."""
    used = account.used or 0.0
    if budget.window not in WINDOWS or used >= 1:
        return Cap(budget, account, None, None)
    start_ms, end_ms = window_bounds(budget.window, now_ms, budget.timezone)
    elapsed = (now_ms - start_ms) / (end_ms - start_ms)
    if elapsed < _ELAPSED_MIN:
        return Cap(budget, account, None, None)
    at_reset = used / elapsed
    full_in_ms = (1 - used) / used * (now_ms - start_ms) if at_reset > 1 else None
    return Cap(budget, account, at_reset, full_in_ms)


PAGES = (
    Page("GET", "", overview, "viewer"),
    Page("GET", "/", overview, "viewer"),
    Page("GET", "/overview", overview, "viewer"),
)
