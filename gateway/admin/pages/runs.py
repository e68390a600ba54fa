"""/admin/runs: the list of runs, updated live; /admin/runs/{run}: one run with its actions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from pydantic import ValidationError
from starlette.responses import Response, StreamingResponse

from gateway.admin.forms import FormFault, form_fault, parse_decimal, parse_integer
from gateway.admin.page_request import Page, PageRequest
from gateway.admin.shared_budgets import load_project_budgets, load_shared_budgets
from gateway.admin.timeline import timeline
from gateway.endpoints.api import runs
from gateway.endpoints.api.runs import BudgetChange, RunsQuery
from gateway.endpoints.api.schema import RowsQuery
from gateway.errors import BadRequest
from gateway.runs.view import RunLines
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
_POLL_INTERVAL_S: Final = 1.0
# A stream ends after this, and the browser opens the next one, so that a stopping server need not wait for open pages.
_POLLS_PER_STREAM: Final = 10
_RETRY_MS: Final = 500


async def list_or_show_runs(page_request: PageRequest) -> Response:
    """All runs, or the one whose name is in the query because it cannot be part of a path."""
    if page_request.name:
        return await show_run(page_request)
    run_list = await _list_runs(page_request)
    return page_request.render(
        "runs", **await _row_values(page_request, run_list), states=STATES, filters=_filters(page_request)
    )


async def stream_runs(page_request: PageRequest) -> Response:
    """The rows as server-sent events, whenever they have changed."""
    headers = {"x-accel-buffering": "no"}
    await _list_runs(page_request)  # faults of the filters are reported before the stream begins
    return StreamingResponse(_row_events(page_request), media_type="text/event-stream", headers=headers)


async def _row_events(page_request: PageRequest) -> AsyncIterator[str]:
    before: str | None = None
    yield f"retry: {_RETRY_MS}\n\n"
    for _ in range(_POLLS_PER_STREAM):
        try:
            values = await _row_values(page_request, await _list_runs(page_request))
        except StoreUnavailable:
            return  # the browser tries again by itself
        rows = page_request.renderer.render_fragment(page_request, "run_rows.html", values)
        if rows != before:
            yield "event: rows\n" + "".join(f"data: {line}\n" for line in rows.splitlines() or [""]) + "\n"
            before = rows
        await asyncio.sleep(_POLL_INTERVAL_S)


async def show_run(page_request: PageRequest, fault: FormFault | None = None) -> Response:
    """`fault`: the faults of the form of the run's budget, which is shown again with its values."""
    run_view = await page_request.call_api(runs.get_run, path={"run": page_request.name})
    usage_filter = UsageFilter(project=page_request.project, run=page_request.name)
    page = await usage_report.calls(
        page_request.store, usage_filter, _CALLS_SHOWN, page_request.query(RowsQuery).cursor
    )
    return page_request.render(
        "run",
        status=200 if fault is None else fault.status,
        run=run_view,
        calls=page.calls,
        next_cursor=page.next,
        timeline=timeline(page.calls),
        form={"tokens": run_view.tokens.limit, "usd": run_view.cost_usd.limit}
        | dict(page_request.form if fault else {}),
        fault=fault,
    )


async def change_run(page_request: PageRequest) -> Response:
    action = page_request.form.get("action", "")
    path = {"run": page_request.name}
    if action == "budget":
        try:
            await page_request.call_api(runs.set_run_budget, path=path, body=_parse_budget(page_request))
        except ValidationError as error:
            return await show_run(page_request, form_fault(error, page_request.request_id, _LIMITS))
        except BadRequest as error:
            if error.status != 400:
                raise
            return await show_run(page_request, form_fault(error, page_request.request_id, _LIMITS))
    elif action in _ACTIONS:
        await page_request.call_api(_ACTIONS[action], path=path)
    else:
        raise BadRequest.field("action", "is none of budget, " + ", ".join(_ACTIONS))
    return page_request.redirect("runs", page_request.name, done=action)


def _parse_budget(page_request: PageRequest) -> BudgetChange:
    """The change of a run's budget. An empty field removes the run's own limit."""
    texts = {name: page_request.form.get(name, "").strip() for name in _LIMITS if name in page_request.form}
    fields: dict[str, Any] = {
        name: None if not text else parse_decimal(name, text) if name == "usd" else parse_integer(name, text)
        for name, text in texts.items()
    }
    return BudgetChange.model_validate(fields)


async def _row_values(page_request: PageRequest, run_list: RunLines) -> dict[str, Any]:
    """The cells of one row of the table."""
    return {
        "run_list": run_list,
        "shared_budgets": await load_shared_budgets(page_request, run_list.runs),
        "project_budgets": await load_project_budgets(page_request),
    }


async def _list_runs(page_request: PageRequest) -> RunLines:
    return await page_request.call_api(runs.list_runs, query=page_request.query(RunsQuery))


def _filters(page_request: PageRequest) -> dict[str, str]:
    return {name: page_request.param(name) for name in ("workflow", "agent", "user", "state", "from", "to")}


PAGES = (
    Page("GET", "/runs", list_or_show_runs, "viewer"),
    Page("POST", "/runs", change_run, "admin"),  # for a run whose name cannot be part of a path
    Page("GET", "/live/runs", stream_runs, "viewer"),
    Page("GET", "/runs/{name:path}", show_run, "viewer"),
    Page("POST", "/runs/{name:path}", change_run, "admin"),
)
