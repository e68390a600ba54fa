"""/admin: what is running, what it cost, what was refused and why, what was saved."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from starlette.responses import Response

from gateway.admin.day_chart import DayChart, day_chart
from gateway.admin.formatting import iso_day
from gateway.admin.page_request import Page, PageRequest
from gateway.admin.reports import DAYS_SHOWN, first_day_shown, load_report_by
from gateway.admin.shared_budgets import load_shared_budgets
from gateway.budgets.balances import BudgetAccount
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
_FORECASTS_SHOWN = 3
# The share of a window that must have passed: earlier, a single call would determine the forecast.
_ELAPSED_SHARE_MIN = 0.02


@dataclass(frozen=True, slots=True)
class BurnRate:
    """The use of the last hour, and the month's total if every remaining hour used as much."""

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
class BudgetForecast:
    """A budget near its limit. `share_at_reset` is the share of it that is used when its window ends, if use continues at the same rate."""

    budget: budgets.BudgetView
    account: BudgetAccount
    share_at_reset: float | None
    full_in_ms: float | None  # only where that is before the window ends


async def overview(page_request: PageRequest) -> Response:
    now = datetime.fromtimestamp(page_request.now_ms / 1000, UTC)
    month_start, today = iso_day(page_request.now_ms)[:8] + "01", iso_day(page_request.now_ms)
    first = date.fromisoformat(first_day_shown(page_request))
    (month, hour, savings, workflows, by_day), (budget_list, run_list, calls) = await asyncio.gather(
        asyncio.gather(
            load_report_by(page_request, GroupBy.INTENT, month_start),
            load_report_by(page_request, GroupBy.WORKFLOW, str(page_request.now_ms - _HOUR_MS)),
            load_report_by(page_request, GroupBy.SAVINGS, month_start),
            load_report_by(page_request, GroupBy.WORKFLOW, first.isoformat()),
            load_report_by(page_request, GroupBy.DAY, first.isoformat()),
        ),
        asyncio.gather(
            page_request.call_api(budgets.list_budgets, query=ListQuery(project=page_request.project, limit=200)),
            page_request.call_api(runs.list_runs, query=page_request.query(RunsQuery, limit=_ROWS_SHOWN)),
            recent_calls(page_request.store, page_request.project),
        ),
    )
    return page_request.render(
        "overview",
        today=next((row for row in by_day.rows if row.day == today), UsageTotals(**figures(Sums()))),
        month=month.total,
        intents=month.rows,
        savings=savings.rows,
        workflows=workflows.rows[:_ROWS_SHOWN],
        tokens=workflows.total.total_tokens,
        days=_day_columns(first, by_day),
        chart=await _spend_chart(page_request, first, workflows, by_day),
        burn=_burn_rate(hour.total, month.total, now),
        forecasts=_fullest_budgets(budget_list, page_request.now_ms),
        has_shared_budgets=any(budget.scope not in ("run", "step") for budget in budget_list.budgets),
        run_list=run_list,
        shared_budgets=await load_shared_budgets(page_request, run_list.runs),
        project_budgets=None,
        recent=calls,
        month_start=month_start,
        today_name=today,
        is_new=not calls.calls and not by_day.rows,
        is_open=page_request.services.access.is_open(),
        model=next(iter(page_request.services.parts.pool.names), "…"),
    )


def _day_columns(first: date, by_day: UsageReport) -> DayColumns:
    rows_by_day = {row.day: row for row in by_day.rows}
    days = tuple((first + timedelta(days=offset)).isoformat() for offset in range(DAYS_SHOWN))
    rows = [rows_by_day.get(day) for day in days]
    tokens = tuple(row.total_tokens if row else 0 for row in rows)
    return DayColumns(days, tokens, tuple(row.cost_usd if row else 0.0 for row in rows))


async def _spend_chart(page_request: PageRequest, first: date, workflows: UsageReport, by_day: UsageReport) -> DayChart:
    """Dollars of each day by workflow; where nothing costs anything, tokens."""
    query = UsageQuery.model_validate(
        {"project": page_request.project, "group_by": GroupBy.WORKFLOW, "from": first.isoformat()}
    )
    metric = "cost_usd" if workflows.total.cost_usd else "total_tokens"
    return await day_chart(page_request, query, workflows, metric, by_day)


def _burn_rate(hour: UsageTotals, month: UsageTotals, now: datetime) -> BurnRate:
    next_month = (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    hours_left = (next_month - now).total_seconds() / 3600
    return BurnRate(
        hour.total_tokens,
        hour.cost_usd,
        month.total_tokens + int(hour.total_tokens * hours_left),
        month.cost_usd + hour.cost_usd * hours_left,
    )


def _fullest_budgets(budget_list: budgets.BudgetList, now_ms: int) -> list[BudgetForecast]:
    """The accounts of budgets on workflows, agents, keys and projects that are nearest to their limit."""
    pairs = [(budget, account) for budget in budget_list.budgets for account in budget.accounts if _is_in_use(account)]
    nearest = sorted(pairs, key=lambda pair: -(pair[1].used or 0.0))[:_FORECASTS_SHOWN]
    return [_forecast(budget, account, now_ms) for budget, account in nearest]


def _is_in_use(account: BudgetAccount) -> bool:
    """Whether anything of it is used, also if the share rounds to 0."""
    return bool(account.used or account.requests_settled or account.requests_reserved)


def _forecast(budget: budgets.BudgetView, account: BudgetAccount, now_ms: int) -> BudgetForecast:
    """Extrapolate linearly from the begin of the window. Without a forecast if too little of the window has passed."""
    used_share = account.used or 0.0
    if budget.window not in WINDOWS or used_share >= 1:
        return BudgetForecast(budget, account, None, None)
    start_ms, end_ms = window_bounds(budget.window, now_ms, budget.timezone)
    elapsed = (now_ms - start_ms) / (end_ms - start_ms)
    if elapsed < _ELAPSED_SHARE_MIN:
        return BudgetForecast(budget, account, None, None)
    share_at_reset = used_share / elapsed
    full_in_ms = (1 - used_share) / used_share * (now_ms - start_ms) if share_at_reset > 1 else None
    return BudgetForecast(budget, account, share_at_reset, full_in_ms)


PAGES = (
    Page("GET", "", overview, "viewer"),
    Page("GET", "/", overview, "viewer"),
    Page("GET", "/overview", overview, "viewer"),
)
