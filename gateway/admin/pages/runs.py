"""/admin/runs: the runs as they move, and /admin/runs/{run}: everything about one, with what can be done to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from pydantic import ValidationError
from starlette.responses import Response, StreamingResponse

from gateway.admin.form_fault import FormFault, form_fault
from gateway.admin.form_numbers import decimal, whole
from gateway.admin.shared_budgets import of_project, shared_of
from gateway.admin.timeline import timeline
from gateway.admin.visit import Page, Visit
from gateway.endpoints.api import runs
from gateway.endpoints.api.runs import BudgetChange, RunsQuery
from gateway.endpoints.api.schema import RowsQuery
from gateway.errors import BadRequest
from gateway.run_view import RunLines
from gateway.store import usage_report
from gateway.store.database import StoreUnavailable
from gateway.store.runs import STATES
from gateway.store.usage_report import UsageFilter

_ACTIONS: Final = {
    "pause": runs.pause_run,
    "resume": runs.resume_run,
    "complete": runs.complete_run,
    "cancel": runs.cancel_run,
    "reset": runs.reset_run,
}
_LIMITS: Final = ("tokens", "usd", "requests")
_CALLS_SHOWN: Final = 200
_EVERY_S: Final = 1.0
# A stream ends soon and the browser opens the next: a server that stops need not wait for somebody who looks on.
_LOOKS: Final = 10
_RETRY_MS: Final = 500


async def runs_or_run(visit: Visit) -> Response:
    """All of them, or the one whose name is in the query because a path cannot carry it."""
    if visit.name:
        return await show_run(visit)
    found = await _found(visit)
    return visit.show("runs", **await _rows(visit, found), states=STATES, filters=_filters(visit))


async def live_runs(visit: Visit) -> Response:
    """The rows again, as server-sent events, whenever they are different."""
    headers = {"x-accel-buffering": "no"}
    await _found(visit)  # what is wrong with the filters is said before the stream begins
    return StreamingResponse(_events(visit), media_type="text/event-stream", headers=headers)


async def _events(visit: Visit) -> AsyncIterator[str]:
    before: str | None = None
    yield f"retry: {_RETRY_MS}\n\n"
    for _ in range(_LOOKS):
        try:
            values = await _rows(visit, await _found(visit))
        except StoreUnavailable:
            return  # the browser tries again by itself
        rows = visit.renderer.fragment(visit, "run_rows.html", values)
        if rows != before:
            yield "event: rows\n" + "".join(f"data: {line}\n" for line in rows.splitlines() or [""]) + "\n"
            before = rows
        await asyncio.sleep(_EVERY_S)


async def show_run(visit: Visit, fault: FormFault | None = None) -> Response:
    """`fault`: what was wrong with the form of the run's budget, which keeps what was typed."""
    shown = await visit.ask(runs.get_run, path={"run": visit.name})
    wanted = UsageFilter(project=visit.project, run=visit.name)
    page = await usage_report.calls(visit.store, wanted, _CALLS_SHOWN, visit.query(RowsQuery).cursor)
    return visit.show(
        "run",
        status=200 if fault is None else fault.status,
        run=shown,
        calls=page.calls,
        following=page.next,
        timeline=timeline(page.calls),
        form={"tokens": shown.tokens.limit, "usd": shown.cost_usd.limit} | dict(visit.form if fault else {}),
        fault=fault,
    )


async def change_run(visit: Visit) -> Response:
    action = visit.form.get("action", "")
    path = {"run": visit.name}
    if action == "budget":
        try:
            await visit.ask(runs.set_run_budget, path=path, body=_budget(visit))
        except ValidationError as error:
            return await show_run(visit, form_fault(error, visit.request_id, _LIMITS))
        except BadRequest as error:
            if error.status != 400:
                raise
            return await show_run(visit, form_fault(error, visit.request_id, _LIMITS))
    elif action in _ACTIONS:
        await visit.ask(_ACTIONS[action], path=path)
    else:
        raise BadRequest.field("action", "is none of budget, " + ", ".join(_ACTIONS))
    return visit.go("runs", visit.name, done=action)


def _budget(visit: Visit) -> BudgetChange:
    """An empty field takes the run's own limit back."""
    texts = {name: visit.form.get(name, "").strip() for name in _LIMITS if name in visit.form}
    given: dict[str, Any] = {
        name: None if not text else decimal(name, text) if name == "usd" else whole(name, text)
        for name, text in texts.items()
    }
    return BudgetChange.model_validate(given)


async def _rows(visit: Visit, found: RunLines) -> dict[str, Any]:
    """What the rows of the table show."""
    return {"found": found, "shared": await shared_of(visit, found.runs), "of_project": await of_project(visit)}


async def _found(visit: Visit) -> RunLines:
    return await visit.ask(runs.list_runs, query=visit.query(RunsQuery))


def _filters(visit: Visit) -> dict[str, str]:
    return {name: visit.param(name) for name in ("workflow", "agent", "user", "state", "from", "to")}


PAGES = (
    Page("GET", "/runs", runs_or_run, "viewer"),
    Page("POST", "/runs", change_run, "admin"),  # of a run whose name a path cannot carry
    Page("GET", "/live/runs", live_runs, "viewer"),
    Page("GET", "/runs/{name:path}", show_run, "viewer"),
    Page("POST", "/runs/{name:path}", change_run, "admin"),
)
