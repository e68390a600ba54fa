"""/admin/workflows: declarations, what each strategy would allocate, what past runs suggest, observe or enforce."""

from __future__ import annotations

import re
from typing import Any, Final

import orjson
from pydantic import ValidationError
from starlette.responses import Response

from gateway.admin.page_request import Page, PageRequest
from gateway.admin.reports import first_day_shown, load_report_by
from gateway.endpoints.api import allocate, suggestions, workflows
from gateway.endpoints.api.allocate import AllocateBody, Shares
from gateway.endpoints.api.application import as_gateway_error, parsed
from gateway.endpoints.api.route import conflict
from gateway.endpoints.api.schema import ListQuery
from gateway.endpoints.api.workflows import WorkflowBody, WorkflowView
from gateway.errors import BadRequest, GatewayError
from gateway.store.usage_report import GroupBy
from policies.settings import ALLOCATION_STRATEGIES

# The initial text of the editor for a workflow without calls.
_EXAMPLE: Final[dict[str, Any]] = {
    "budget": {"tokens": 20_000},
    "steps": [
        {"id": "extract", "prompt": "Extract the order number and the date as JSON."},
        {"id": "draft", "intent": "generate", "priority": "high"},
    ],
}
# Characters that change the direction of text, which would make a declaration look like a different one.
_BIDI_CONTROLS: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_EDITABLE_FIELDS: Final = (
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


async def list_workflows(page_request: PageRequest) -> Response:
    if page_request.name:
        return await show_workflow(page_request)
    declared = {one.workflow: one for one in await _list_declared(page_request)}
    seen = {
        row.workflow or "": row
        for row in (await load_report_by(page_request, GroupBy.WORKFLOW, first_day_shown(page_request))).rows
    }
    names = sorted({*declared, *seen} - {""})
    rows = [(name, declared.get(name), seen.get(name)) for name in names]
    return page_request.render("workflows", rows=rows, settings=page_request.services.parts.control.snapshot.settings)


async def show_workflow(page_request: PageRequest) -> Response:
    workflow = await _find_workflow(page_request)
    draft = _editable_fields(workflow) if workflow is not None else await _draft_declaration(page_request)
    text = _BIDI_CONTROLS.sub(_unicode_escape, orjson.dumps(draft, option=orjson.OPT_INDENT_2).decode())
    return await _editor_page(page_request, text, workflow)


async def change_workflow(page_request: PageRequest) -> Response:
    action, path = page_request.form.get("action", ""), {"workflow": page_request.name}
    if action == "delete":
        await page_request.call_api(workflows.delete_workflow, path=path)
        return page_request.redirect("workflows", done="deleted")
    if action == "suggested":
        await page_request.call_api(suggestions.apply_suggestions, path=path)
        return page_request.redirect("workflows", page_request.name, done="suggested")
    text = page_request.form.get("declaration", "")
    try:
        body = WorkflowBody.model_validate(parsed(text.encode()))
        if action == "save":
            await _refuse_overwriting(page_request)
            await page_request.call_api(workflows.put_workflow, path=path, body=body)
            return page_request.redirect("workflows", page_request.name, done="saved")
        if action != "preview":
            raise BadRequest.field("action", "is none of save, preview, delete, suggested")
    except (GatewayError, ValidationError) as error:
        return await _editor_page(
            page_request,
            text,
            await _find_workflow(page_request),
            fault=as_gateway_error(error, page_request.request_id),
        )
    return await _editor_page(page_request, text, await _find_workflow(page_request))


async def _refuse_overwriting(page_request: PageRequest) -> None:
    """Raises `BadRequest` if somebody else changed the declaration after the form was opened. Sending it again overwrites the change."""
    workflow = await _find_workflow(page_request)
    if "seen" in page_request.form and page_request.form["seen"] != _changed_at(workflow):
        who = "Somebody deleted" if workflow is None else f"{workflow.updated_by} changed"
        raise conflict(f"{who} this declaration meanwhile. Nothing was saved: save again to replace it.")


def _changed_at(workflow: WorkflowView | None) -> str:
    return (workflow and workflow.updated_at) or ""


async def set_mode(page_request: PageRequest) -> Response:
    """Change only the declaration's mode: observe or enforce."""
    workflow = await page_request.call_api(workflows.get_workflow, path={"workflow": page_request.name})
    body = WorkflowBody.model_validate({**_editable_fields(workflow), "mode": page_request.form.get("mode") or None})
    await page_request.call_api(workflows.put_workflow, path={"workflow": page_request.name}, body=body)
    return page_request.redirect("workflows", page_request.name, done="saved")


async def _editor_page(
    page_request: PageRequest, text: str, workflow: WorkflowView | None, fault: GatewayError | None = None
) -> Response:
    shares, no_preview_reason = (
        await _preview_shares(page_request, text) if not fault else ({}, "It cannot be read as it stands.")
    )
    suggested = await page_request.call_api(suggestions.list_suggestions, path={"workflow": page_request.name})
    used = await load_report_by(
        page_request, GroupBy.WORKFLOW, first_day_shown(page_request), workflow=page_request.name
    )
    return page_request.render(
        "workflow",
        status=fault.status if fault else 200,
        name=page_request.name,
        declared=workflow,
        text=text,
        fault=fault.message if fault else "",
        # After a conflict, the next save overwrites the current declaration.
        seen=_changed_at(workflow) if fault is None or fault.status == 409 else page_request.form.get("seen", ""),
        is_preview=page_request.form.get("action") == "preview",
        shares=shares,
        no_preview_reason=no_preview_reason,
        steps=[one.step for one in next(iter(shares.values())).allocations] if shares else [],
        suggestions=suggested.suggestions,
        used=next(iter(used.rows), None),
        settings=page_request.services.parts.control.snapshot.settings,
    )


def _unicode_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


async def _preview_shares(page_request: PageRequest, text: str) -> tuple[dict[str, Shares], str]:
    """The shares that each strategy would allocate, or the reason why there are none."""
    try:
        body = WorkflowBody.model_validate(parsed(text.encode()))
    except (GatewayError, ValidationError) as error:
        return {}, as_gateway_error(error, page_request.request_id).message
    if not body.steps:
        return {}, "Without steps there is nothing to share: each step is given its own part as it appears."
    tokens = body.budget.tokens if body.budget is not None else None
    shares: dict[str, Shares] = {}
    for strategy in ALLOCATION_STRATEGIES:
        wanted = AllocateBody.model_validate(
            {
                "strategy": strategy,
                "tokens": tokens,
                "workflow": page_request.name,
                "agent": body.agent,
                "steps": body.steps,
            }
        )
        try:
            shares[strategy] = await page_request.call_api(allocate.allocate_steps, body=wanted)
        except BadRequest as error:
            return {}, error.message
    return shares, ""


async def _list_declared(page_request: PageRequest) -> tuple[WorkflowView, ...]:
    query = ListQuery(project=page_request.project, limit=1_000)
    return (await page_request.call_api(workflows.list_workflows, query=query)).workflows


async def _find_workflow(page_request: PageRequest) -> WorkflowView | None:
    try:
        return await page_request.call_api(workflows.get_workflow, path={"workflow": page_request.name})
    except BadRequest:
        return None  # it is not declared


async def _draft_declaration(page_request: PageRequest) -> dict[str, Any]:
    """A first declaration of a workflow that was only seen: its steps, largest first. Of one that was not, an example."""
    used = await load_report_by(page_request, GroupBy.STEP, first_day_shown(page_request), workflow=page_request.name)
    steps = [{"id": row.step} for row in used.rows if row.step]
    return {"steps": steps} if steps else _EXAMPLE


def _editable_fields(workflow: WorkflowView) -> dict[str, Any]:
    return {name: value for name in _EDITABLE_FIELDS if (value := getattr(workflow, name)) is not None}


PAGES = (
    Page("GET", "/workflows", list_workflows, "viewer"),
    Page("POST", "/workflows", change_workflow, "admin"),  # for a name that cannot be part of a path
    Page("POST", "/workflow-mode/{name:path}", set_mode, "admin"),
    Page("GET", "/workflows/{name:path}", show_workflow, "viewer"),
    Page("POST", "/workflows/{name:path}", change_workflow, "admin"),
)
