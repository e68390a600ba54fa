"""/admin/budgets: "what blocks this?", answered first; then every budget with its balance, and forms to create and change budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from starlette.responses import Response

from gateway.admin.formatting import input_text
from gateway.admin.forms import FormFault, form_fault, parse_decimal, parse_integer
from gateway.admin.page_request import Page, PageRequest
from gateway.admin.shared_budgets import is_observed, load_account_rows
from gateway.admin.verdict import AccountRow, run_row, step_row, verdict
from gateway.endpoints.api import budgets, runs
from gateway.endpoints.api.budgets import BudgetBody
from gateway.endpoints.api.route import conflict
from gateway.endpoints.api.schema import ListQuery
from gateway.errors import BadRequest, GatewayError
from gateway.runs.view import RunView
from policies.budgets import HoldKind, Mode, OnOutage, Scope, Subject, Window

_SUBJECT_FIELDS: Final = ("key", "workflow", "run", "step", "agent")
_TEXT_FIELDS: Final = ("scope", "match", "project", "window", "hold", "on_outage", "mode", "timezone")
_CHOICES: Final = {
    "scope": tuple(Scope),
    "window": tuple(one for one in Window if one is not Window.RUN),
    "mode": tuple(Mode),
    "hold": tuple(HoldKind),
    "on_outage": tuple(OnOutage),
}
_EMPTY_FORM: Final = {
    "id": "",
    "scope": "workflow",
    "match": "*",
    "project": "",
    "tokens": "",
    "usd": "",
    "requests": "",
    "window": "day",
    "mode": "enforce",
    "hold": "worst_case",
    "on_outage": "refuse",
    "on_pressure": "compress, route, clamp, refuse",
    "timezone": "UTC",
    "wait_seconds": "10",
    "seen": "",
}


async def show_budgets(page_request: PageRequest) -> Response:
    edited = page_request.param("edit")
    if not edited:
        return await _budgets_page(page_request, dict(_EMPTY_FORM))
    budget = await page_request.call_api(budgets.get_budget, path={"id": edited})
    texts = {
        name: input_text(getattr(budget, name)) for name in (*_TEXT_FIELDS, "tokens", "usd", "requests", "wait_seconds")
    }
    hidden = {"id": budget.id, "seen": budget.updated_at or ""}
    return await _budgets_page(
        page_request, {**texts, **hidden, "on_pressure": ", ".join(rung_texts(budget.on_pressure))}
    )


async def put_budget(page_request: PageRequest) -> Response:
    form = {**_EMPTY_FORM, **{name: page_request.form[name] for name in _EMPTY_FORM if name in page_request.form}}
    try:
        body = BudgetBody.model_validate(_parse_form(form))
        if form["id"]:
            await _refuse_overwriting(page_request, form)
            await page_request.call_api(budgets.put_budget, path={"id": form["id"]}, body=body)
        else:
            await page_request.call_api(budgets.create_budget, body=body)
    except (GatewayError, ValidationError) as error:
        return await _budgets_page(page_request, form, form_fault(error, page_request.request_id, _EMPTY_FORM))
    return page_request.redirect("budgets", done="saved")


async def _refuse_overwriting(page_request: PageRequest, form: dict[str, str]) -> None:
    """Raises `BadRequest` if somebody else changed the budget after the form was opened. Sending the form again overwrites the change."""
    current = await page_request.call_api(budgets.get_budget, path={"id": form["id"]})
    seen_version, form["seen"] = form["seen"], current.updated_at or ""
    if seen_version and seen_version != form["seen"]:
        raise conflict(
            f"{current.updated_by} changed this budget meanwhile; it stands above as it is now. "
            "Nothing was saved: save again to replace it."
        )


async def delete_budget(page_request: PageRequest) -> Response:
    await page_request.call_api(budgets.delete_budget, path={"id": page_request.form.get("id", "")})
    return page_request.redirect("budgets", done="deleted")


def _parse_form(form: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: form[name].strip() for name in _TEXT_FIELDS if form[name].strip()}
    # An empty name matches nothing. Left out, it would become the default, which matches everything.
    fields["match"] = form["match"].strip()
    if form["scope"] in ("run", "step"):
        fields.pop("window", None)
    for name in ("tokens", "requests"):
        if form[name].strip():
            fields[name] = parse_integer(name, form[name])
    if form["usd"].strip():
        fields["usd"] = parse_decimal("usd", form["usd"])
    fields["wait_seconds"] = parse_decimal("wait_seconds", form["wait_seconds"] or _EMPTY_FORM["wait_seconds"])
    fields["on_pressure"] = [_parse_rung(text) for text in form["on_pressure"].split(",") if text.strip()]
    return fields


def rung_texts(on_pressure: Sequence[str | Mapping[str, float]]) -> list[str]:
    """The rungs as the form shows them: `clamp`, or `compress 0.3` for a rung with a share."""
    return [
        rung if isinstance(rung, str) else " ".join(f"{name} {share:g}" for name, share in rung.items())
        for rung in on_pressure
    ]


def _parse_rung(text: str) -> str | dict[str, float]:
    name, _, share = text.replace(":", " ").strip().partition(" ")
    return {name: parse_decimal("on_pressure", share)} if share.strip() else name


async def _budgets_page(page_request: PageRequest, form: dict[str, str], fault: FormFault | None = None) -> Response:
    subject_params = {name: page_request.param(name) for name in _SUBJECT_FIELDS}
    rows, state = await _account_rows(page_request, subject_params) if any(subject_params.values()) else ([], None)
    budget_list = await page_request.call_api(
        budgets.list_budgets, query=ListQuery(project=page_request.project, limit=500)
    )
    return page_request.render(
        "budgets",
        status=fault.status if fault else 200,
        subject_params=subject_params,
        has_subject=any(subject_params.values()),
        rows=rows,
        verdict=verdict(rows, state),
        budgets=budget_list.budgets,
        rung_texts=rung_texts,
        form=form,
        fault=fault,
        choices=_CHOICES,
        key_names=sorted({key.name for key in page_request.services.parts.control.snapshot.keys.values()}),
    )


async def _account_rows(
    page_request: PageRequest, subject_params: dict[str, str]
) -> tuple[list[AccountRow], str | None]:
    """Every account that such a call would be reserved on, and the run's state. Limits are those that admission would use."""
    run = await _find_run(page_request, subject_params["run"]) if subject_params["run"] else None
    subject = _subject(page_request, subject_params, run)
    (rows,) = await load_account_rows(page_request, [subject])
    if run is None:
        return rows, None
    is_enforced = not is_observed(page_request, subject.workflow)
    steps = [step_row(step, is_enforced=is_enforced) for step in run.steps if step.step == subject_params["step"]]
    return [*steps, run_row(run), *rows], run.state


async def _find_run(page_request: PageRequest, name: str) -> RunView | None:
    try:
        return await page_request.call_api(runs.get_run, path={"run": name})
    except BadRequest:
        return None  # a run that has not begun blocks nothing


def _subject(page_request: PageRequest, subject_params: dict[str, str], run: RunView | None) -> Subject:
    """Values that are missing are taken from the run."""
    return Subject(
        page_request.project,
        key=subject_params["key"] or None,
        workflow=subject_params["workflow"] or (run.workflow if run else "") or None,
        run=subject_params["run"] or None,
        step=subject_params["step"] or None,
        agent=subject_params["agent"] or (run.agent if run else "") or None,
    )


PAGES = (
    Page("GET", "/budgets", show_budgets, "viewer"),
    Page("POST", "/budgets", put_budget, "admin"),
    Page("POST", "/budgets/delete", delete_budget, "admin"),
)
