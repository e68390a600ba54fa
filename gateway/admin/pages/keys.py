"""/admin/keys: keys of programs and logins of people."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationError
from starlette.responses import Response

from gateway.admin.form_fault import FormFault, form_fault
from gateway.admin.form_numbers import decimal, whole
from gateway.admin.visit import Page, Visit
from gateway.endpoints.api import keys
from gateway.endpoints.api.keys import KeyBody, KeyChange, NewKeyView, RotateBody
from gateway.endpoints.api.route import conflict
from gateway.endpoints.api.schema import ListQuery
from gateway.errors import GatewayError
from gateway.store import admin as people
from gateway.store.admin import PASSWORD_CHARACTERS_MIN, ROLES
from gateway.store.invitations import invite

_TEXTS = ("name", "project", "workflow", "agent", "step", "user", "role")
_TERMS = ("allowed_models", "tokens", "usd", "requests", "window", "concurrency", "expires_in_days")
_TERMS_AND_TAGS = ("workflow", "agent", "step", "user", *_TERMS)
_EMPTY = dict.fromkeys((*_TEXTS, *_TERMS, "id", "no_limits"), "")


async def show_keys(visit: Visit) -> Response:
    return await _page(visit)


async def make_key(visit: Visit) -> Response:
    was_open = visit.desk.access.is_open()
    try:
        body = KeyBody.model_validate(_fields(visit))
        _check_is_new(visit, body)
        new = await visit.ask(keys.create_key, body=body)
    except (GatewayError, ValidationError) as error:
        return await _page(visit, faulty="make", fault=form_fault(error, visit.request_id, _EMPTY))
    # From the first key on these pages ask for a login, and whoever made the key must not be locked out by it.
    token = await invite(visit.store, visit.now_ms) if was_open else None
    return await _page(visit, new, f"/admin/setup?token={token}" if token else "")


def _check_is_new(visit: Visit, body: KeyBody) -> None:
    """The answer shows the secret and is no redirect: a browser that loads it anew sends the form again."""
    known = visit.desk.parts.control.snapshot.keys.values()
    project = body.project or visit.project
    if any((key.name, key.project) == (body.name, project) and key.revoked_at_ms is None for key in known):
        raise conflict(f"There is a key {body.name!r} already: give it a new secret below, or choose another name.")


async def change_key(visit: Visit) -> Response:
    """What is filled in is changed; limits that are filled in replace all that there were."""
    try:
        given = _fields(visit)
        if not given["allowed_models"]:
            del given["allowed_models"]
        if visit.form.get("no_limits"):
            given.setdefault("limits", None)
        body = KeyChange.model_validate(given)
        changed = await visit.ask(keys.change_key, path={"id": visit.form.get("id", "")}, body=body)
    except (GatewayError, ValidationError) as error:
        return await _page(visit, faulty="change", fault=form_fault(error, visit.request_id, _TERMS_AND_TAGS))
    return await _page(visit, warning=changed.warning) if changed.warning else visit.go("keys", done="saved")


async def rotate_key(visit: Visit) -> Response:
    body = RotateBody(grace_seconds=whole("grace_hours", visit.form.get("grace_hours") or "0") * 3600)
    new = await visit.ask(keys.rotate_key, path={"id": visit.form.get("id", "")}, body=body)
    return await _page(visit, new)


async def revoke_key(visit: Visit) -> Response:
    await visit.ask(keys.revoke_key, path={"id": visit.form.get("id", "")})
    return visit.go("keys", done="revoked")


async def _page(
    visit: Visit,
    new: NewKeyView | None = None,
    first_login: str = "",
    *,
    faulty: Literal["make", "change", ""] = "",
    fault: FormFault | None = None,
    warning: str = "",
) -> Response:
    """`faulty` is the form that was refused: what was typed into it stays there. `warning` is about a change that was made."""
    found = await visit.ask(keys.list_keys, query=ListQuery.model_validate({"limit": 500}))
    return visit.show(
        "keys",
        status=200 if fault is None else fault.status,
        keys=found.keys,
        new=new,
        first_login=first_login,
        faulty=faulty,
        warning=warning,
        fault=fault,
        made={**_EMPTY, **(visit.form if faulty == "make" else {})},
        changed={**_EMPTY, **(visit.form if faulty == "change" else {})},
        is_open=visit.desk.access.is_open(),
        people=await people.list_users(visit.store),
        roles=ROLES,
        characters_min=PASSWORD_CHARACTERS_MIN,
    )


def _fields(visit: Visit) -> dict[str, Any]:
    """Empty fields are not given, so that the API's own defaults count."""
    form = {name: text.strip() for name, text in visit.form.items()}
    given: dict[str, Any] = {name: form[name] for name in _TEXTS if form.get(name)}
    if given.get("role") == "admin":
        given["admin"] = True
    counts = ("tokens", "requests", "concurrency")
    limits: dict[str, Any] = {name: whole(name, form[name]) for name in counts if form.get(name)}
    if form.get("usd"):
        limits["usd"] = decimal("usd", form["usd"])
    if limits.keys() & {"tokens", "usd", "requests"}:
        limits["window"] = form.get("window") or "total"
    if limits:
        given["limits"] = limits
    if form.get("expires_in_days"):
        given["expires_in_days"] = whole("expires_in_days", form["expires_in_days"])
    models = [model.strip() for model in form.get("allowed_models", "").split(",") if model.strip()]
    return given | {"allowed_models": models}


PAGES = (
    Page("GET", "/keys", show_keys, "viewer"),
    Page("POST", "/keys", make_key, "admin"),
    Page("POST", "/keys/change", change_key, "admin"),
    Page("POST", "/keys/rotate", rotate_key, "admin"),
    Page("POST", "/keys/revoke", revoke_key, "admin"),
)
