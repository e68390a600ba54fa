"""/api/workflows/{workflow}/suggestions: budgets suggested from what the workflow's runs used."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.budgets.suggestions import Suggestion, as_budget, suggest
from gateway.endpoints.api.route import ApiRequest, Route
from gateway.endpoints.api.schema import NoBody, ProjectQuery
from gateway.errors import BadRequest
from gateway.store import budgets as budgets_store


@dataclass(frozen=True, slots=True)
class Suggestions:
    """`applied` has the ids of the budgets that were created."""

    workflow: str
    suggestions: tuple[Suggestion, ...]
    applied: tuple[str, ...] = ()


async def list_suggestions(request: ApiRequest[ProjectQuery, NoBody]) -> Suggestions:
    """A fifth above the p95 of the runs that finished in the last 30 days; empty if there are none."""
    await request.services.catch_up()
    workflow = request.path["workflow"]
    return Suggestions(workflow, await suggest(request.store, request.project, workflow, request.services.now_ms()))


async def apply_suggestions(request: ApiRequest[ProjectQuery, NoBody]) -> Suggestions:
    """Create the suggested budgets, in place of those suggested earlier."""
    suggestion_list = await list_suggestions(request)
    if not suggestion_list.suggestions:
        raise BadRequest(
            f"Workflow {suggestion_list.workflow!r} has no finished run to learn from.",
            status=409,
            code="nothing_to_suggest",
        )
    stored = [
        as_budget(suggestion, request.project, request.services.now_ms(), request.actor.name)
        for suggestion in suggestion_list.suggestions
    ]
    for budget in stored:
        await request.services.parts.control.change(budgets_store.put(request.store, budget))
    applied = tuple(budget.id for budget in stored)
    await request.audit("budget.suggested", suggestion_list.workflow, budgets=list(applied))
    return Suggestions(suggestion_list.workflow, suggestion_list.suggestions, applied)


ROUTES = (
    Route("GET", "/workflows/{workflow}/suggestions", list_suggestions, Suggestions, "Budgets suggested by past runs."),
    Route("POST", "/workflows/{workflow}/suggestions", apply_suggestions, Suggestions, "Create the suggested budgets."),
)
