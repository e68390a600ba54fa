"""/api/runs: announce, show, pause, complete, cancel and reset runs, and give them their own budgets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from gateway.decisions import decisions_of
from gateway.endpoints.api.route import ApiRequest, Route, conflict
from gateway.endpoints.api.schema import (
    STEPS_MAX,
    Instant,
    Name,
    NoBody,
    Priority,
    ProjectQuery,
    Requests,
    RowsQuery,
    Share,
    Strategy,
    Strict,
    Tokens,
    Usd,
    in_ms,
)
from gateway.endpoints.api.steps import StepBody, declared_steps
from gateway.errors import BadRequest
from gateway.runs.control import NO_SUCH_RUN, Action, Denied
from gateway.runs.plan import RunRequest
from gateway.runs.view import RunLines, RunView
from gateway.store import runs as runs_store
from gateway.store import usage_report
from gateway.store.runs import RunFilter
from gateway.store.usage_report import UsageFilter
from gateway.timestamps import iso
from policies.amounts import Limit, usd

StateName = Literal["active", "paused", "exhausted", "completed", "cancelled"]


class RunBody(Strict):
    """`budget_tokens`, `budget_usd` and `budget_requests` are limits of this run that replace those of budgets.

    A run that is announced again keeps what is left out and what it has spent; `steps: []` plans it by its workflow again.
    """

    workflow: Name
    run: Name | None = Field(default=None, description="Its id; generated if left out.")
    agent: Name | None = None
    user: Name | None = None
    parent_run: Name | None = None
    budget_tokens: Tokens | None = None
    budget_usd: Usd | None = None
    budget_requests: Requests | None = None
    strategy: Strategy | None = None
    ais: Share | None = Field(default=None, description="The agent's intensity score; default: what is known of it.")
    priority: Priority | None = Field(default=None, description="The priority of steps that name none.")
    steps: Annotated[tuple[StepBody, ...], Field(max_length=STEPS_MAX)] = ()


class BudgetChange(Strict):
    """The new limits, not additions. Null removes the run's own limit; a unit that is left out is kept. `budget_tokens` and the other
    names of an announcement are accepted, too."""

    tokens: Tokens | None = Field(default=None, validation_alias=AliasChoices("tokens", "budget_tokens"))
    usd: Usd | None = Field(default=None, validation_alias=AliasChoices("usd", "budget_usd"))
    requests: Requests | None = Field(default=None, validation_alias=AliasChoices("requests", "budget_requests"))

    @model_validator(mode="after")
    def _require_change(self) -> BudgetChange:
        if not self.model_fields_set:
            raise ValueError("give at least one of tokens, usd, requests")
        return self


class RunsQuery(RowsQuery):
    """`from` (inclusive) and `to` (exclusive) refer to the time of a run's last call."""

    workflow: Name | None = None
    agent: Name | None = None
    user: Name | None = None
    parent_run: Name | None = None
    state: StateName | None = None
    since: Instant | None = Field(default=None, alias="from")
    until: Instant | None = Field(default=None, alias="to")


@dataclass(frozen=True, slots=True)
class Reset:
    """`summary` is the run before the reset, `run` the run after it."""

    summary: RunView
    run: RunView


@dataclass(frozen=True, slots=True)
class CallView:
    """One call of a run. `status`: ok, refused, error, cancelled, lost, late, repair.

    `decisions` has everything that was decided about it, in order: rungs of the ladder, routing, compression, each with its reason.
    """

    id: str
    request_id: str
    at: str | None
    step: str
    agent: str
    intent: str
    model_requested: str
    model: str
    provider: str
    protocol: str
    stream: bool
    status: str
    code: str
    input_tokens: int
    output_tokens: int
    total_tokens: int
    reserved_tokens: int
    overrun_tokens: int
    saved_tokens: int
    saved_usd: float
    cost_usd: float
    actions: str
    usage_source: str
    duration_ms: int | None
    first_byte_ms: int | None
    overhead_us: int | None
    decisions: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class CallList:
    calls: tuple[CallView, ...]
    next: str | None


async def create_run(request: ApiRequest[ProjectQuery, RunBody]) -> RunView:
    body = request.body
    run, runs = body.run or f"run-{request.services.parts.ids.new()}", request.services.parts.runs
    why_not = await runs.parent_fault(request.project, run, body.parent_run) if body.parent_run else ""
    if why_not:
        raise BadRequest.field("parent_run", why_not)
    try:
        run_request = RunRequest(
            run=run,
            workflow=body.workflow,
            agent=body.agent or "",
            user=body.user or "",
            parent_run=body.parent_run or "",
            budget=Limit(body.budget_tokens, body.budget_usd, body.budget_requests),
            strategy=body.strategy,
            ais=body.ais,
            steps=tuple(declared_steps(body.steps, body.priority)),
            keeps_steps="steps" not in body.model_fields_set,
        )
        view = _allowed(await request.services.control.initialise(request.project, run_request))
        runs.note_parent(request.project, run, run_request.parent_run)
    except ValueError as error:
        raise BadRequest.field("steps", str(error)) from error
    await request.audit("run.initialised", run, run=run, workflow=body.workflow, budget=asdict(run_request.budget))
    return view


async def list_runs(request: ApiRequest[RunsQuery, NoBody]) -> RunLines:
    query = request.query
    await request.services.catch_up()
    run_filter = RunFilter(
        project=query.project,
        workflow=query.workflow,
        agent=query.agent,
        user=query.user,
        state=query.state,
        parent_run=query.parent_run,
        from_ms=in_ms(query.since),
        to_ms=in_ms(query.until),
    )
    return await request.services.views.list(run_filter, query.limit, query.cursor)


async def get_run(request: ApiRequest[ProjectQuery, NoBody]) -> RunView:
    """The run as it stands now, including every call that has ended."""
    await request.services.catch_up()
    view = await request.services.views.get(request.project, request.path["run"])
    if view is None:
        raise _no_run(request.path["run"])
    return view


async def list_calls(request: ApiRequest[RowsQuery, NoBody]) -> CallList:
    await request.services.catch_up()
    usage_filter = UsageFilter(project=request.project, run=request.path["run"])
    page = await usage_report.calls(request.store, usage_filter, request.query.limit, request.query.cursor)
    if not page.calls and await runs_store.get(request.store, request.project, request.path["run"]) is None:
        raise _no_run(request.path["run"])
    return CallList(tuple(_call(row) for row in page.calls), page.next)


async def pause_run(request: ApiRequest[ProjectQuery, NoBody]) -> RunView:
    return await _act(request, "pause", "run.paused")


async def resume_run(request: ApiRequest[ProjectQuery, NoBody]) -> RunView:
    return await _act(request, "resume", "run.resumed")


async def cancel_run(request: ApiRequest[ProjectQuery, NoBody]) -> RunView:
    """Calls in flight end normally; new ones are refused."""
    return await _act(request, "cancel", "run.cancelled")


async def complete_run(request: ApiRequest[ProjectQuery, NoBody]) -> RunView:
    """The `metrics` of the answer are final: what the run has used and saved, and what was refused."""
    return await _act(request, "complete", "run.completed")


async def set_run_budget(request: ApiRequest[ProjectQuery, BudgetChange]) -> RunView:
    run = request.path["run"]
    change_fields = {name: getattr(request.body, name) for name in request.body.model_fields_set}
    change = {"nano_usd" if name == "usd" else name: value for name, value in change_fields.items()}
    view = _allowed(await request.services.control.set_budget(request.project, run, change))
    await request.audit("run.budget", run, run=run, **change)
    return view


async def reset_run(request: ApiRequest[ProjectQuery, NoBody]) -> Reset:
    """What the run has used so far no longer counts against it. All other totals keep it."""
    run = request.path["run"]
    before_and_after = await request.services.control.reset(request.project, run, request.request_id)
    if isinstance(before_and_after, Denied):
        raise _denial(before_and_after)
    view_before, view_after = before_and_after
    await request.audit(
        "run.reset",
        run,
        run=run,
        tokens=view_before.tokens.settled,
        usd=view_before.cost_usd.settled,
        calls=view_before.calls,
    )
    return Reset(view_before, view_after)


async def _act(request: ApiRequest[ProjectQuery, NoBody], action: Action, event: str) -> RunView:
    run = request.path["run"]
    view = _allowed(await request.services.control.act(request.project, run, action))
    await request.audit(event, run, run=run, tokens=view.tokens.settled)
    return view


def _allowed(view_or_denied: RunView | Denied) -> RunView:
    if isinstance(view_or_denied, Denied):
        raise _denial(view_or_denied)
    return view_or_denied


def _denial(denied: Denied) -> BadRequest:
    if denied.code == NO_SUCH_RUN:
        return BadRequest(denied.message, status=404, code=denied.code)
    return conflict(denied.message, denied.code)


def _no_run(run: str) -> BadRequest:
    return BadRequest(f"There is no run {run[:200]!r}.", status=404, code=NO_SUCH_RUN)


_SAME_NAME = tuple(name for name in CallView.__slots__ if name not in ("at", "cost_usd", "saved_usd", "decisions"))


def _call(row: Any) -> CallView:
    return CallView(
        **{name: row[name] for name in _SAME_NAME},
        at=iso(row["at"]),
        cost_usd=usd(row["cost_nano_usd"]),
        saved_usd=usd(row["saved_nano_usd"]),
        decisions=decisions_of(row["detail"]),
    )


ROUTES = (
    Route("GET", "/runs", list_runs, RunLines, "Runs, the latest first.", RunsQuery),
    Route("POST", "/runs", create_run, RunView, "Announce a run: intents, allocations, tiers.", body=RunBody),
    Route("POST", "/runs/{run}/complete", complete_run, RunView, "Complete a run: its metrics are final."),
    Route("POST", "/runs/{run}/cancel", cancel_run, RunView, "Cancel a run: its next call is refused."),
    Route("POST", "/runs/{run}/pause", pause_run, RunView, "Refuse the calls of a run until it is resumed."),
    Route("POST", "/runs/{run}/resume", resume_run, RunView, "Let a paused run continue."),
    Route("POST", "/runs/{run}/budget", set_run_budget, RunView, "Give a run its own limits.", body=BudgetChange),
    Route("POST", "/runs/{run}/reset", reset_run, Reset, "Let a run start over with nothing spent."),
    Route("GET", "/runs/{run}/calls", list_calls, CallList, "The calls of a run, the latest first.", RowsQuery),
    Route("GET", "/runs/{run}", get_run, RunView, "One run with its steps."),
)
