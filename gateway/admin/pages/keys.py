"""/admin/keys: keys of programs and logins of people."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationError
from starlette.responses import Response

from gateway.admin.forms import FormFault, form_fault, parse_decimal, parse_integer
from gateway.admin.page_request import Page, PageRequest
from gateway.endpoints.api import keys
from gateway.endpoints.api.keys import KeyBody, KeyChange, NewKeyView, RotateBody
from gateway.endpoints.api.route import conflict
from gateway.endpoints.api.schema import ListQuery
from gateway.errors import GatewayError
from gateway.store import admin_users
from gateway.store.admin_users import PASSWORD_CHARACTERS_MIN, ROLES
from gateway.store.invitations import invite

_TEXT_FIELDS = ("name", "project", "workflow", "agent", "step", "user", "role")
_LIMIT_FIELDS = ("allowed_models", "tokens", "usd", "requests", "window", "concurrency", "expires_in_days")
_CHANGE_FIELDS = ("workflow", "agent", "step", "user", *_LIMIT_FIELDS)
_KEYS_SHOWN = 500
_EMPTY_FORM = dict.fromkeys((*_TEXT_FIELDS, *_LIMIT_FIELDS, "id", "no_limits"), "")


async def show_keys(page_request: PageRequest) -> Response:
    return await _keys_page(page_request)


async def create_key(page_request: PageRequest) -> Response:
    was_open = page_request.services.access.is_open()
    try:
        body = KeyBody.model_validate(_parse_form(page_request))
        _refuse_taken_name(page_request, body)
        new = await page_request.call_api(keys.create_key, body=body)
    except (GatewayError, ValidationError) as error:
        return await _keys_page(
            page_request, refused_form="create", fault=form_fault(error, page_request.request_id, _EMPTY_FORM)
        )
    # From the first key on these pages ask for a login, and whoever made the key must not be locked out by it.
    token = await invite(page_request.store, page_request.now_ms) if was_open else None
    return await _keys_page(page_request, new, f"/admin/setup?token={token}" if token else "")


def _refuse_taken_name(page_request: PageRequest, body: KeyBody) -> None:
    """The answer shows the secret, and is therefore no redirect: reloading it sends the form again."""
    api_keys = page_request.services.parts.control.snapshot.keys.values()
    project = body.project or page_request.project
    if any((key.name, key.project) == (body.name, project) and key.revoked_at_ms is None for key in api_keys):
        raise conflict(f"There is a key {body.name!r} already: give it a new secret below, or choose another name.")


async def change_key(page_request: PageRequest) -> Response:
    """Change the fields that are filled in. If any limit is, all limits of the key are replaced."""
    try:
        fields = _parse_form(page_request)
        if not fields["allowed_models"]:
            del fields["allowed_models"]
        if page_request.form.get("no_limits"):
            fields.setdefault("limits", None)
        body = KeyChange.model_validate(fields)
        change_form = await page_request.call_api(
            keys.change_key, path={"id": page_request.form.get("id", "")}, body=body
        )
    except (GatewayError, ValidationError) as error:
        return await _keys_page(
            page_request, refused_form="change", fault=form_fault(error, page_request.request_id, _CHANGE_FIELDS)
        )
    return (
        await _keys_page(page_request, warning=change_form.warning)
        if change_form.warning
        else page_request.redirect("keys", done="saved")
    )


async def rotate_key(page_request: PageRequest) -> Response:
    body = RotateBody(grace_seconds=parse_integer("grace_hours", page_request.form.get("grace_hours") or "0") * 3600)
    new = await page_request.call_api(keys.rotate_key, path={"id": page_request.form.get("id", "")}, body=body)
    return await _keys_page(page_request, new)


async def revoke_key(page_request: PageRequest) -> Response:
    await page_request.call_api(keys.revoke_key, path={"id": page_request.form.get("id", "")})
    return page_request.redirect("keys", done="revoked")


async def _keys_page(
    page_request: PageRequest,
    new: NewKeyView | None = None,
    first_login: str = "",
    *,
    refused_form: Literal["create", "change", ""] = "",
    fault: FormFault | None = None,
    warning: str = "",
) -> Response:
    """`refused_form` is a form that was refused, which is shown again with its values. `warning` is about a change that was made."""
    # Of all projects, unlike `page_request.query`.
    query = ListQuery.model_validate({"limit": _KEYS_SHOWN, "cursor": page_request.param("cursor") or None})
    key_list = await page_request.call_api(keys.list_keys, query=query)
    return page_request.render(
        "keys",
        status=200 if fault is None else fault.status,
        keys=key_list.keys,
        next_cursor=key_list.next,
        new=new,
        first_login=first_login,
        refused_form=refused_form,
        warning=warning,
        fault=fault,
        create_form={**_EMPTY_FORM, **(page_request.form if refused_form == "create" else {})},
        change_form={**_EMPTY_FORM, **(page_request.form if refused_form == "change" else {})},
        is_open=page_request.services.access.is_open(),
        admin_users=await admin_users.list_users(page_request.store),
        roles=ROLES,
        characters_min=PASSWORD_CHARACTERS_MIN,
    )


def _parse_form(page_request: PageRequest) -> dict[str, Any]:
    """The filled-in fields. Empty ones are left out, so that the API's defaults apply."""
    form = {name: text.strip() for name, text in page_request.form.items()}
    fields: dict[str, Any] = {name: form[name] for name in _TEXT_FIELDS if form.get(name)}
    if fields.get("role") == "admin":
        fields["admin"] = True
    counts = ("tokens", "requests", "concurrency")
    limits: dict[str, Any] = {name: parse_integer(name, form[name]) for name in counts if form.get(name)}
    if form.get("usd"):
        limits["usd"] = parse_decimal("usd", form["usd"])
    if limits.keys() & {"tokens", "usd", "requests"}:
        limits["window"] = form.get("window") or "total"
    if limits:
        fields["limits"] = limits
    if form.get("expires_in_days"):
        fields["expires_in_days"] = parse_integer("expires_in_days", form["expires_in_days"])
    models = [model.strip() for model in form.get("allowed_models", "").split(",") if model.strip()]
    return fields | {"allowed_models": models}


PAGES = (
    Page("GET", "/keys", show_keys, "viewer"),
    Page("POST", "/keys", create_key, "admin"),
    Page("POST", "/keys/change", change_key, "admin"),
    Page("POST", "/keys/rotate", rotate_key, "admin"),
    Page("POST", "/keys/revoke", revoke_key, "admin"),
)
