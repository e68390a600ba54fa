"""/api/workflows/{workflow}/suggestions: budgets suggested from what the workflow's runs used."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.endpoints.api.route import Ask, Route
from gateway.endpoints.api.schema import NoBody, ProjectQuery
from gateway.errors import BadRequest
from gateway.store import budgets as budgets_store
from gateway.suggestions import Suggestion, as_budget, suggest


@dataclass(frozen=True, slots=True)
class Suggestions:
    """`applied` has the ids of the budgets that were created."""

    workflow: str
    suggestions: tuple[Suggestion, ...]
    applied: tuple[str, ...] = ()


async def list_suggestions(ask: Ask[ProjectQuery, NoBody]) -> Suggestions:
    """A fifth above the p95 of the runs that finished in the last 30 days; empty if there are none."""
    await ask.desk.catch_up()
    workflow = ask.path["workflow"]
    return Suggestions(workflow, await suggest(ask.store, ask.project, workflow, ask.desk.now_ms()))


async def apply_suggestions(ask: Ask[ProjectQuery, NoBody]) -> Suggestions:
    """Create the suggested budgets, in place of those suggested earlier."""
    found = await list_suggestions(ask)
    if not found.suggestions:
        raise BadRequest(
            f"Workflow {found.workflow!r} has no finished run to learn from.", status=409, code="nothing_to_suggest"
        )
    stored = [as_budget(one, ask.project, ask.desk.now_ms(), ask.actor.name) for one in found.suggestions]
    for budget in stored:
        await ask.desk.parts.control.change(budgets_store.put(ask.store, budget))
    applied = tuple(budget.id for budget in stored)
    await ask.audit("budget.suggested", found.workflow, budgets=list(applied))
    return Suggestions(found.workflow, found.suggestions, applied)


ROUTES = (
    Route("GET", "/workflows/{workflow}/suggestions", list_suggestions, Suggestions, "Budgets suggested by past runs."),
    Route("POST", "/workflows/{workflow}/suggestions", apply_suggestions, Suggestions, "Create the suggested budgets."),
)
