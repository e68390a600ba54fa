"""/api/workflows: declarations of workflows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.config.budgets import Pressure
from gateway.endpoints.api.route import ApiRequest, Deleted, Route, not_found
from gateway.endpoints.api.schema import (
    STEPS_MAX,
    Budgeted,
    LimitBody,
    ListQuery,
    Name,
    NoBody,
    Priority,
    ProjectQuery,
    Strategy,
    Strict,
    Text,
    Tokens,
    Usd,
    paged,
)
from gateway.endpoints.api.steps import StepBody, budget_fields, budget_shown, declared_steps
from gateway.errors import BadRequest
from gateway.store import workflows as workflows_store
from gateway.store.workflows import Workflow
from gateway.timestamps import iso
from policies.pressure import ladder_items


class WorkflowBody(Strict):
    """A declaration. The settings apply to what is left out."""

    description: Text | None = None
    mode: Literal["observe", "enforce"] | None = None
    agent: Name | None = None
    priority: Priority | None = None
    strategy: Strategy | None = None
    budget: Budgeted | None = Field(
        default=None, description="The limits of each run; a plain number is a limit in tokens."
    )
    budget_tokens: Tokens | None = None
    budget_usd: Usd | None = None
    on_pressure: Pressure | None = None
    routing: bool | None = Field(default=None, description="Whether a model other than the requested one may answer.")
    compression: bool | None = Field(default=None, description="False: prompts are never compressed.")
    steps: Annotated[tuple[StepBody, ...], Field(max_length=STEPS_MAX)] = ()


@dataclass(frozen=True, slots=True)
class WorkflowView:
    """The declaration as it was given, with budgets in USD."""

    workflow: str
    project: str
    mode: str | None
    description: str | None = None
    agent: str | None = None
    priority: str | None = None
    strategy: str | None = None
    budget: dict[str, Any] | None = None
    on_pressure: tuple[str | dict[str, float], ...] | None = None
    routing: bool | None = None
    compression: bool | None = None
    steps: tuple[dict[str, Any], ...] = field(default=())
    updated_at: str | None = None
    updated_by: str = ""


@dataclass(frozen=True, slots=True)
class WorkflowList:
    workflows: tuple[WorkflowView, ...]
    next: str | None


async def list_workflows(request: ApiRequest[ListQuery, NoBody]) -> WorkflowList:
    workflows = await workflows_store.list_all(request.store, request.project)
    page, following = paged([_view(workflow) for workflow in workflows], request.query)
    return WorkflowList(page, following)


async def get_workflow(request: ApiRequest[ProjectQuery, NoBody]) -> WorkflowView:
    workflow = await workflows_store.get(request.store, request.project, request.path["workflow"])
    if workflow is None:
        raise not_found("workflow", request.path["workflow"])
    return _view(workflow)


async def put_workflow(request: ApiRequest[ProjectQuery, WorkflowBody]) -> WorkflowView:
    """Declare a workflow, or replace its declaration. Runs that were planned before keep their plan."""
    name = _WorkflowPath(workflow=request.path["workflow"]).workflow
    try:
        declaration = _declaration(request.body)
    except ValueError as error:
        raise BadRequest.field("steps", str(error)) from error
    workflow = Workflow(
        request.project, name, request.body.mode or "", declaration, request.services.now_ms(), request.actor.name
    )
    await request.services.parts.control.change(workflows_store.put(request.store, workflow))
    await request.audit("workflow.declared", name, steps=len(request.body.steps), mode=request.body.mode)
    return _view(workflow)


async def delete_workflow(request: ApiRequest[ProjectQuery, NoBody]) -> Deleted:
    name = request.path["workflow"]
    if not await request.services.parts.control.change(workflows_store.delete(request.store, request.project, name)):
        raise not_found("workflow", name)
    await request.audit("workflow.deleted", name)
    return Deleted(name)


class _WorkflowPath(Strict):
    workflow: Name


_PLAIN = ("description", "agent", "priority", "strategy", "routing", "compression")


def _declaration(body: WorkflowBody) -> dict[str, Any]:
    declaration: dict[str, Any] = {name: value for name in _PLAIN if (value := getattr(body, name)) is not None}
    if body.budget is not None:
        declaration |= budget_fields(body.budget)
    declaration |= budget_fields(LimitBody(tokens=body.budget_tokens), body.budget_usd)
    if body.on_pressure is not None:
        declaration["on_pressure"] = ladder_items(body.on_pressure)
    return declaration | {"steps": list(declared_steps(body.steps))}


def _view(workflow: Workflow) -> WorkflowView:
    declared = workflow.declaration
    on_pressure = declared.get("on_pressure")
    return WorkflowView(
        workflow=workflow.name,
        project=workflow.project,
        mode=workflow.mode or None,
        **{name: declared.get(name) for name in _PLAIN},
        budget=budget_shown(declared),
        on_pressure=None if on_pressure is None else tuple(on_pressure),
        steps=tuple(_step(step) for step in declared.get("steps") or ()),
        updated_at=iso(workflow.updated_at_ms),
        updated_by=workflow.updated_by,
    )


_BUDGET = ("budget_tokens", "budget_nano_usd", "budget_requests")


def _step(step: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in step.items() if name not in _BUDGET}
    budget = budget_shown(step)
    if budget is not None:
        fields["budget"] = budget
    if "steps" in step:
        fields["steps"] = [_step(inner) for inner in step["steps"]]
    return fields


ROUTES = (
    Route("GET", "/workflows", list_workflows, WorkflowList, "Declared workflows, by name.", ListQuery),
    Route("GET", "/workflows/{workflow}", get_workflow, WorkflowView, "One declaration."),
    Route("PUT", "/workflows/{workflow}", put_workflow, WorkflowView, "Declare a workflow.", body=WorkflowBody),
    Route("DELETE", "/workflows/{workflow}", delete_workflow, Deleted, "Delete a declaration."),
)
