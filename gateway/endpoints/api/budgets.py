"""/api/budgets: the budgets of the configuration file and those created at run time, with their accounts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from gateway.budgets.balances import BudgetAccount, accounts_of, balances_of
from gateway.config.budgets import BudgetConfig
from gateway.endpoints.api.route import ApiRequest, Deleted, Route, conflict, not_found
from gateway.endpoints.api.schema import ListQuery, NoBody, ProjectQuery, Usd, paged
from gateway.store import budgets as budgets_store
from gateway.store.budgets import StoredBudget
from gateway.timestamps import iso
from policies.amounts import usd
from policies.budgets import Budget
from policies.pressure import ladder_items

_OF_FILE = "file:"


class BudgetBody(BudgetConfig):
    """A limit on every scope whose name matches. At least one of tokens, usd and requests."""

    usd: Usd | None = Field(default=None)


@dataclass(frozen=True, slots=True)
class BudgetView:
    """`accounts` are those of the current window, compared with this budget's limits, the fullest first. Runs and steps show their own."""

    id: str
    origin: Literal["file", "store"]
    scope: str
    match: str
    project: str | None
    tokens: int | None
    usd: float | None
    requests: int | None
    window: str
    on_pressure: tuple[str | dict[str, float], ...]
    hold: str
    on_outage: str
    mode: str
    timezone: str
    wait_seconds: float
    accounts: tuple[BudgetAccount, ...]
    updated_at: str | None
    updated_by: str


@dataclass(frozen=True, slots=True)
class BudgetList:
    budgets: tuple[BudgetView, ...]
    next: str | None


async def list_budgets(request: ApiRequest[ListQuery, NoBody]) -> BudgetList:
    """The budgets of the query's project, and those that apply to every project."""
    everything = [*_of_file(request), *(("store", stored) for stored in await budgets_store.list_all(request.store))]
    in_project = [item for item in everything if item[1].budget.project in (None, request.project)]

    page, following = paged(in_project, request.query)
    return BudgetList(await _views(request, list(page)), following)


async def get_budget(request: ApiRequest[ProjectQuery, NoBody]) -> BudgetView:
    return (await _views(request, [await _find(request)]))[0]


async def create_budget(request: ApiRequest[ProjectQuery, BudgetBody]) -> BudgetView:
    return await _put(request, f"budget-{request.services.parts.ids.new()}", "budget.created")


async def put_budget(request: ApiRequest[ProjectQuery, BudgetBody]) -> BudgetView:
    """Replace a budget created at run time. What was used under it stays used."""
    audited_before = _audited((await _find_stored(request)).budget)
    audited_after = _audited(request.body.budget())
    old = {name: value for name, value in audited_before.items() if value != audited_after[name]}
    return await _put(request, request.path["id"], "budget.changed", old=old)


async def delete_budget(request: ApiRequest[ProjectQuery, NoBody]) -> Deleted:
    stored = await _find_stored(request)
    await request.services.parts.control.change(budgets_store.delete(request.store, stored.id))
    await request.audit("budget.deleted", stored.id, **_audited(stored.budget))
    return Deleted(stored.id)


Known = tuple[Literal["file", "store"], StoredBudget]


def _of_file(request: ApiRequest[Any, Any]) -> list[Known]:
    budgets = enumerate(request.services.parts.config.budgets)
    return [("file", StoredBudget(f"{_OF_FILE}{position}", budget.budget())) for position, budget in budgets]


async def _find(request: ApiRequest[Any, Any]) -> Known:
    budget_id = request.path["id"]
    for candidate in _of_file(request):
        if candidate[1].id == budget_id:
            return candidate
    stored = await budgets_store.get(request.store, budget_id)
    if stored is None:
        raise not_found("budget", budget_id)
    return "store", stored


async def _find_stored(request: ApiRequest[Any, Any]) -> StoredBudget:
    origin, stored = await _find(request)
    if origin == "file":
        raise conflict(f"Budget {stored.id} is in the configuration file, and is changed there.", "budget_of_file")
    return stored


async def _put(
    request: ApiRequest[ProjectQuery, BudgetBody], budget_id: str, action: str, **audit_detail: Any
) -> BudgetView:
    stored = StoredBudget(budget_id, request.body.budget(), request.services.now_ms(), request.actor.name)
    await request.services.parts.control.change(budgets_store.put(request.store, stored))
    await request.audit(action, budget_id, **_audited(stored.budget), **audit_detail)
    return (await _views(request, [("store", stored)]))[0]


def _audited(budget: Budget) -> dict[str, Any]:
    """All of a budget as the audit log has it: a change to `observe` matters as much as one of the limit."""
    return {
        "scope": budget.scope.value,
        "match": budget.match,
        "for_project": budget.project,
        "tokens": budget.limit.tokens,
        "nano_usd": budget.limit.nano_usd,
        "requests": budget.limit.requests,
        "window": budget.window.value,
        "mode": budget.mode.value,
        "on_pressure": ladder_items(budget.on_pressure),
        "hold": budget.hold.value,
        "on_outage": budget.on_outage.value,
        "timezone": budget.timezone,
        "wait_ms": budget.wait_ms,
    }


async def _views(request: ApiRequest[Any, Any], budgets_with_origin: list[Known]) -> tuple[BudgetView, ...]:
    services = request.services
    key_names = {key.id: key.name for key in services.parts.control.snapshot.keys.values()}
    now_ms = services.parts.clock.now_ms()
    budgets = [stored.budget for _, stored in budgets_with_origin]
    links = await accounts_of(services.store, request.project, budgets, key_names, now_ms)
    accounts = await balances_of(services.parts.ledger, request.project, links)
    return tuple(
        _view(origin, stored, budget_accounts)
        for (origin, stored), budget_accounts in zip(budgets_with_origin, accounts, strict=True)
    )


def _view(origin: Literal["file", "store"], stored: StoredBudget, accounts: tuple[BudgetAccount, ...]) -> BudgetView:
    budget: Budget = stored.budget
    limit = budget.limit
    return BudgetView(
        id=stored.id,
        origin=origin,
        scope=budget.scope.value,
        match=budget.match,
        project=budget.project,
        tokens=limit.tokens,
        usd=None if limit.nano_usd is None else usd(limit.nano_usd),
        requests=limit.requests,
        window=budget.window.value,
        on_pressure=tuple(ladder_items(budget.on_pressure)),
        hold=budget.hold.value,
        on_outage=budget.on_outage.value,
        mode=budget.mode.value,
        timezone=budget.timezone,
        wait_seconds=budget.wait_ms / 1000,
        accounts=accounts,
        updated_at=iso(stored.updated_at_ms),
        updated_by=stored.updated_by,
    )


ROUTES = (
    Route("GET", "/budgets", list_budgets, BudgetList, "All budgets and what is left of them.", ListQuery),
    Route("POST", "/budgets", create_budget, BudgetView, "Create a budget.", body=BudgetBody),
    Route("GET", "/budgets/{id}", get_budget, BudgetView, "One budget."),
    Route("PUT", "/budgets/{id}", put_budget, BudgetView, "Replace a budget.", body=BudgetBody),
    Route("DELETE", "/budgets/{id}", delete_budget, Deleted, "Delete a budget."),
)
