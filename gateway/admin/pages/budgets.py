"""/admin/budgets: "what blocks this?", verdict first; then every budget, where it stands, and forms to make and change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from starlette.responses import Response

from gateway.admin.figures import plain
from gateway.admin.form_fault import FormFault, form_fault
from gateway.admin.form_numbers import decimal, whole
from gateway.admin.shared_budgets import observes, shared_rows
from gateway.admin.verdict import Row, of_run, of_step, verdict
from gateway.admin.visit import Page, Visit
from gateway.endpoints.api import budgets, runs
from gateway.endpoints.api.budgets import BudgetBody
from gateway.endpoints.api.route import conflict
from gateway.endpoints.api.schema import ListQuery
from gateway.errors import BadRequest, GatewayError
from gateway.run_view import RunView
from policies.budgets import HoldKind, Mode, OnOutage, Scope, Subject, Window

_ASKED: Final = ("key", "workflow", "run", "step", "agent")
_TEXTS: Final = ("scope", "match", "window", "hold", "on_outage", "mode", "timezone")
_CHOICES: Final = {
    "scope": tuple(Scope),
    "window": tuple(one for one in Window if one is not Window.RUN),
    "mode": tuple(Mode),
    "hold": tuple(HoldKind),
    "on_outage": tuple(OnOutage),
}
_EMPTY: Final = {
    "id": "",
    "scope": "workflow",
    "match": "*",
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


async def show_budgets(visit: Visit) -> Response:
    edited = visit.param("edit")
    if not edited:
        return await _page(visit, dict(_EMPTY))
    found = await visit.ask(budgets.get_budget, path={"id": edited})
    texts = {name: plain(getattr(found, name)) for name in (*_TEXTS, "tokens", "usd", "requests", "wait_seconds")}
    hidden = {"id": found.id, "seen": found.updated_at or ""}
    return await _page(visit, {**texts, **hidden, "on_pressure": ", ".join(rung_texts(found.on_pressure))})


async def put_budget(visit: Visit) -> Response:
    form = {**_EMPTY, **{name: visit.form[name] for name in _EMPTY if name in visit.form}}
    try:
        body = BudgetBody.model_validate(_fields(form))
        if form["id"]:
            await _refuse_overwriting(visit, form)
            await visit.ask(budgets.put_budget, path={"id": form["id"]}, body=body)
        else:
            await visit.ask(budgets.create_budget, body=body)
    except (GatewayError, ValidationError) as error:
        return await _page(visit, form, form_fault(error, visit.request_id, _EMPTY))
    return visit.go("budgets", done="saved")


async def _refuse_overwriting(visit: Visit, form: dict[str, str]) -> None:
    """Raises `BadRequest` if somebody else changed the budget after the form was opened. Sending the form again overwrites the change."""
    found = await visit.ask(budgets.get_budget, path={"id": form["id"]})
    seen, form["seen"] = form["seen"], found.updated_at or ""
    if seen and seen != form["seen"]:
        raise conflict(
            f"{found.updated_by} changed this budget meanwhile; it stands above as it is now. Nothing was saved: save again to replace it."
        )


async def delete_budget(visit: Visit) -> Response:
    await visit.ask(budgets.delete_budget, path={"id": visit.form.get("id", "")})
    return visit.go("budgets", done="deleted")


def _fields(form: dict[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {name: form[name].strip() for name in _TEXTS if form[name].strip()}
    given["match"] = form["match"].strip()  # an emptied name means nobody, and not everybody
    if form["scope"] in ("run", "step"):
        given.pop("window", None)
    for name in ("tokens", "requests"):
        if form[name].strip():
            given[name] = whole(name, form[name])
    if form["usd"].strip():
        given["usd"] = decimal("usd", form["usd"])
    given["wait_seconds"] = decimal("wait_seconds", form["wait_seconds"] or _EMPTY["wait_seconds"])
    given["on_pressure"] = [_rung(text) for text in form["on_pressure"].split(",") if text.strip()]
    return given


def rung_texts(on_pressure: Sequence[str | Mapping[str, float]]) -> list[str]:
    """As the form has them: `clamp`, and `compress 0.3` for one that is taken from that share on."""
    return [
        one if isinstance(one, str) else " ".join(f"{name} {share:g}" for name, share in one.items())
        for one in on_pressure
    ]


def _rung(text: str) -> str | dict[str, float]:
    name, _, share = text.replace(":", " ").strip().partition(" ")
    return {name: decimal("on_pressure", share)} if share.strip() else name


async def _page(visit: Visit, form: dict[str, str], fault: FormFault | None = None) -> Response:
    asked = {name: visit.param(name) for name in _ASKED}
    rows, state = await _rows(visit, asked) if any(asked.values()) else ([], None)
    known = await visit.ask(budgets.list_budgets, query=ListQuery(project=visit.project, limit=500))
    return visit.show(
        "budgets",
        status=fault.status if fault else 200,
        asked=asked,
        is_asked=any(asked.values()),
        rows=rows,
        verdict=verdict(rows, state),
        budgets=known.budgets,
        rung_texts=rung_texts,
        form=form,
        fault=fault,
        choices=_CHOICES,
        key_names=sorted({key.name for key in visit.desk.parts.control.snapshot.keys.values()}),
    )


async def _rows(visit: Visit, asked: dict[str, str]) -> tuple[list[Row], str | None]:
    """Every account on the way of such a call, and the run's state. Limits are those that admission would use."""
    run = await _run(visit, asked["run"]) if asked["run"] else None
    subject = _subject(visit, asked, run)
    (rows,) = await shared_rows(visit, [subject])
    if run is None:
        return rows, None
    is_enforced = not observes(visit, subject.workflow)
    steps = [of_step(step, is_enforced=is_enforced) for step in run.steps if step.step == asked["step"]]
    return [*steps, of_run(run), *rows], run.state


async def _run(visit: Visit, name: str) -> RunView | None:
    try:
        return await visit.ask(runs.get_run, path={"run": name})
    except BadRequest:
        return None  # a run that has not begun stands in nobody's way


def _subject(visit: Visit, asked: dict[str, str], run: RunView | None) -> Subject:
    """What is not said is taken from the run."""
    return Subject(
        visit.project,
        key=asked["key"] or None,
        workflow=asked["workflow"] or (run.workflow if run else "") or None,
        run=asked["run"] or None,
        step=asked["step"] or None,
        agent=asked["agent"] or (run.agent if run else "") or None,
    )


PAGES = (
    Page("GET", "/budgets", show_budgets, "viewer"),
    Page("POST", "/budgets", put_budget, "admin"),
    Page("POST", "/budgets/delete", delete_budget, "admin"),
)
