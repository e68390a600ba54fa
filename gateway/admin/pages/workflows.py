"""/admin/workflows: declarations, what each strategy would allocate, what past runs suggest, observe or enforce."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson
from pydantic import ValidationError
from starlette.responses import Response

from gateway.admin.reports import first_day, report_by
from gateway.admin.visit import Page, Visit
from gateway.endpoints.api import allocate, suggestions, workflows
from gateway.endpoints.api.allocate import AllocateBody, Shares
from gateway.endpoints.api.application import as_gateway_error, parsed
from gateway.endpoints.api.route import conflict
from gateway.endpoints.api.schema import ListQuery
from gateway.endpoints.api.workflows import WorkflowBody, WorkflowView
from gateway.errors import BadRequest, GatewayError
from gateway.store.usage_report import GroupBy
from policies.settings import ALLOCATION_STRATEGIES

# What the editor begins with for a workflow that nobody has called yet.
_EXAMPLE: Final[dict[str, Any]] = {
    "budget": {"tokens": 20_000},
    "steps": [
        {"id": "extract", "prompt": "Extract the order number and the date as JSON."},
        {"id": "draft", "intent": "generate", "priority": "high"},
    ],
}
# Characters that turn the text behind them round: a declaration would be read as what it is not.
_DIRECTION: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_EDITED: Final = (
    "description",
    "mode",
    "agent",
    "priority",
    "strategy",
    "budget",
    "on_pressure",
    "routing",
    "compression",
    "steps",
)


async def list_all(visit: Visit) -> Response:
    if visit.name:
        return await show_workflow(visit)
    declared = {one.workflow: one for one in await _declared(visit)}
    seen = {row.workflow or "": row for row in (await report_by(visit, GroupBy.WORKFLOW, first_day(visit))).rows}
    names = sorted({*declared, *seen} - {""})
    lines = [(name, declared.get(name), seen.get(name)) for name in names]
    return visit.show("workflows", lines=lines, settings=visit.desk.parts.control.snapshot.settings)


async def show_workflow(visit: Visit) -> Response:
    found = await _known(visit)
    draft = _edited(found) if found is not None else await _draft(visit)
    text = _DIRECTION.sub(_escaped, orjson.dumps(draft, option=orjson.OPT_INDENT_2).decode())
    return await _editor(visit, text, found)


async def change_workflow(visit: Visit) -> Response:
    action, path = visit.form.get("action", ""), {"workflow": visit.name}
    if action == "delete":
        await visit.ask(workflows.delete_workflow, path=path)
        return visit.go("workflows", done="deleted")
    if action == "suggested":
        await visit.ask(suggestions.apply_suggestions, path=path)
        return visit.go("workflows", visit.name, done="suggested")
    text = visit.form.get("declaration", "")
    try:
        body = WorkflowBody.model_validate(parsed(text.encode()))
        if action == "save":
            await _refuse_overwriting(visit)
            await visit.ask(workflows.put_workflow, path=path, body=body)
            return visit.go("workflows", visit.name, done="saved")
        if action != "preview":
            raise BadRequest.field("action", "is none of save, preview, delete, suggested")
    except (GatewayError, ValidationError) as error:
        return await _editor(visit, text, await _known(visit), fault=as_gateway_error(error, visit.request_id))
    return await _editor(visit, text, await _known(visit))


async def _refuse_overwriting(visit: Visit) -> None:
    """Raises `BadRequest` if somebody else changed the declaration after the form was opened. Sending it again overwrites the change."""
    found = await _known(visit)
    if "seen" in visit.form and visit.form["seen"] != _changed_at(found):
        who = "Somebody deleted" if found is None else f"{found.updated_by} changed"
        raise conflict(f"{who} this declaration meanwhile. Nothing was saved: save again to replace it.")


def _changed_at(found: WorkflowView | None) -> str:
    return (found and found.updated_at) or ""


async def set_mode(visit: Visit) -> Response:
    """Observe or enforce, and nothing else of the declaration."""
    found = await visit.ask(workflows.get_workflow, path={"workflow": visit.name})
    body = WorkflowBody.model_validate({**_edited(found), "mode": visit.form.get("mode") or None})
    await visit.ask(workflows.put_workflow, path={"workflow": visit.name}, body=body)
    return visit.go("workflows", visit.name, done="saved")


async def _editor(visit: Visit, text: str, found: WorkflowView | None, fault: GatewayError | None = None) -> Response:
    shares, why_not = await _previews(visit, text) if not fault else ({}, "It cannot be read as it stands.")
    suggested = await visit.ask(suggestions.list_suggestions, path={"workflow": visit.name})
    used = await report_by(visit, GroupBy.WORKFLOW, first_day(visit), workflow=visit.name)
    return visit.show(
        "workflow",
        status=fault.status if fault else 200,
        name=visit.name,
        declared=found,
        text=text,
        fault=fault.message if fault else "",
        # After a conflict, the next save overwrites the current declaration.
        seen=_changed_at(found) if fault is None or fault.status == 409 else visit.form.get("seen", ""),
        is_preview=visit.form.get("action") == "preview",
        shares=shares,
        why_not=why_not,
        steps=[one.step for one in next(iter(shares.values())).allocations] if shares else [],
        suggestions=suggested.suggestions,
        used=next(iter(used.rows), None),
        settings=visit.desk.parts.control.snapshot.settings,
    )


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


async def _previews(visit: Visit, text: str) -> tuple[dict[str, Shares], str]:
    """The shares of every strategy, or why there are none."""
    try:
        body = WorkflowBody.model_validate(parsed(text.encode()))
    except (GatewayError, ValidationError) as error:
        return {}, as_gateway_error(error, visit.request_id).message
    if not body.steps:
        return {}, "Without steps there is nothing to share: each step is given its own part as it appears."
    tokens = body.budget.tokens if body.budget is not None else None
    shares: dict[str, Shares] = {}
    for strategy in ALLOCATION_STRATEGIES:
        wanted = AllocateBody.model_validate(
            {"strategy": strategy, "tokens": tokens, "workflow": visit.name, "agent": body.agent, "steps": body.steps}
        )
        try:
            shares[strategy] = await visit.ask(allocate.allocate_steps, body=wanted)
        except BadRequest as error:
            return {}, error.message
    return shares, ""


async def _declared(visit: Visit) -> tuple[WorkflowView, ...]:
    query = ListQuery(project=visit.project, limit=1_000)
    return (await visit.ask(workflows.list_workflows, query=query)).workflows


async def _known(visit: Visit) -> WorkflowView | None:
    try:
        return await visit.ask(workflows.get_workflow, path={"workflow": visit.name})
    except BadRequest:
        return None  # it is not declared


async def _draft(visit: Visit) -> dict[str, Any]:
    """A first declaration of a workflow that was only seen: its steps, largest first. Of one that was not, an example."""
    used = await report_by(visit, GroupBy.STEP, first_day(visit), workflow=visit.name)
    steps = [{"id": row.step} for row in used.rows if row.step]
    return {"steps": steps} if steps else _EXAMPLE


def _edited(found: WorkflowView) -> dict[str, Any]:
    return {name: value for name in _EDITED if (value := getattr(found, name)) is not None}


PAGES = (
    Page("GET", "/workflows", list_all, "viewer"),
    Page("POST", "/workflows", change_workflow, "admin"),  # of a name that a path cannot carry
    Page("POST", "/workflow-mode/{name:path}", set_mode, "admin"),
    Page("GET", "/workflows/{name:path}", show_workflow, "viewer"),
    Page("POST", "/workflows/{name:path}", change_workflow, "admin"),
)
