"""Logging in and out, the first password, and who may log in."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.responses import RedirectResponse, Response

from gateway.admin.door import COOKIE
from gateway.admin.visit import Page, Visit
from gateway.errors import AuthenticationFailed, BadRequest, Overloaded, PermissionDenied
from gateway.store import admin as people
from gateway.store import audit
from gateway.store.admin import ABSOLUTE_MS, PASSWORD_CHARACTERS_MIN, ROLES, AdminUser, WeakPassword
from gateway.store.audit import AuditEvent
from gateway.store.invitations import forget_invitations, is_invited
from gateway.tags import VALUE

_PASSWORD_CHARACTERS_MAX: Final = 1_000


async def show_login(visit: Visit) -> Response:
    if visit.door.is_open_to(visit.request):
        return RedirectResponse("/admin", 303)
    return visit.show("login", fault="", wanted=_own_path(visit.param("next")), is_over=bool(visit.param("over")))


async def log_in(visit: Visit) -> Response:
    wanted = _own_path(visit.form.get("next", ""))
    name, password = visit.form.get("name", ""), visit.form.get("password", "")[:_PASSWORD_CHARACTERS_MAX]
    try:
        token = await visit.door.log_in(visit.request, name, password)
    except (AuthenticationFailed, Overloaded) as error:
        response = visit.show("login", status=error.status, fault=error.message, wanted=wanted, is_over=False)
        response.headers.update(error.headers)
        return response
    await _note(visit, name, "admin.login", name)
    return _with_session(visit, RedirectResponse(wanted, 303), token)


async def log_out(visit: Visit) -> Response:
    await visit.door.log_out(visit.request)
    response = RedirectResponse("/admin/login", 303)
    response.delete_cookie(COOKIE, path="/admin", httponly=True, samesite="strict")
    response.headers["clear-site-data"] = '"cache"'
    return response


async def show_first(visit: Visit) -> Response:
    token = visit.param("token")
    if not await is_invited(visit.store, token, visit.now_ms):
        raise PermissionDenied(_NOT_INVITED)
    return visit.show("first", token=token, fault="", characters_min=PASSWORD_CHARACTERS_MIN)


async def set_first(visit: Visit) -> Response:
    token = visit.form.get("token", "")
    if not await is_invited(visit.store, token, visit.now_ms):
        raise PermissionDenied(_NOT_INVITED)
    try:
        user = await _put(visit, "admin")
    except BadRequest as error:
        return visit.show("first", status=400, token=token, fault=error.message, characters_min=PASSWORD_CHARACTERS_MIN)
    await forget_invitations(visit.store)
    await _note(visit, user.name, "admin.first_login_set", user.name)
    session = await visit.door.open_session(user)
    return _with_session(visit, RedirectResponse("/admin", 303), session)


_NOT_INVITED: Final = (
    "This link was used already, or is over. A new one is in the log after the next start, if nobody has a login yet; "
    "`farebox admin` sets a password at any time."
)


async def put_person(visit: Visit) -> Response:
    role = visit.form.get("role", "viewer")
    user = await _put(visit, role)
    await _note(visit, visit.actor.name, "admin.person_set", user.name, role=role)
    return visit.go("keys", done="person")


async def disable_person(visit: Visit) -> Response:
    name = visit.form.get("name", "")
    if name == visit.actor.name:
        raise BadRequest.field("name", "is you: somebody else must do that")
    if not await people.disable_user(visit.store, name, visit.now_ms):
        raise BadRequest(f"Nobody is named {name[:128]!r}.", status=404, code="not_found")
    await _note(visit, visit.actor.name, "admin.person_disabled", name)
    return visit.go("keys", done="disabled")


async def _put(visit: Visit, role: str) -> AdminUser:
    """Raises `BadRequest` for a name, password or role that will not do."""
    name, password = visit.form.get("name", "").strip(), visit.form.get("password", "")
    if not VALUE.match(name):
        raise BadRequest.field("name", "may have letters, digits and ._:@/- and at most 128 of them")
    if role not in ROLES:
        raise BadRequest.field("role", f"is none of {', '.join(ROLES)}")
    if len(password) > _PASSWORD_CHARACTERS_MAX:
        raise BadRequest.field("password", f"has more than {_PASSWORD_CHARACTERS_MAX} characters")
    if "again" in visit.form and visit.form["again"] != password:
        raise BadRequest.field("password", "is not the same twice")
    try:
        return await people.put_user(visit.store, name, password, role, visit.now_ms)
    except WeakPassword as error:
        raise BadRequest(str(error), param="password") from error


async def _note(visit: Visit, actor: str, action: str, target: str, **detail: str) -> None:
    event = AuditEvent(visit.now_ms, actor, action, target, request_id=visit.request_id, detail=detail)
    await audit.append(visit.store, [event])


def _with_session(visit: Visit, response: Response, token: str) -> Response:
    # Behind a proxy that ends TLS only this header knows; believing a false one merely keeps the cookie off plain HTTP.
    scheme = visit.request.headers.get("x-forwarded-proto", visit.request.url.scheme)
    response.set_cookie(
        COOKIE,
        token,
        max_age=ABSOLUTE_MS // 1000,
        path="/admin",
        httponly=True,
        samesite="strict",
        secure=scheme == "https",
    )
    return response


def _own_path(wanted: str) -> str:
    """A path of these pages; nobody is sent elsewhere by a link to the login."""
    parts = urlsplit(wanted)
    is_ours = wanted.startswith("/admin") and not parts.scheme and not parts.netloc and "\\" not in wanted
    return wanted if is_ours and parts.path != "/admin/login" else "/admin"


PAGES = (
    Page("GET", "/login", show_login, "public"),
    Page("POST", "/login", log_in, "public"),
    Page("POST", "/logout", log_out, "viewer"),
    Page("GET", "/setup", show_first, "public"),
    Page("POST", "/setup", set_first, "public"),
    Page("POST", "/people", put_person, "admin"),
    Page("POST", "/people/disable", disable_person, "admin"),
)
