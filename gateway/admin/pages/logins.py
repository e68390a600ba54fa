"""Logging in and out, the first password, and who may log in."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.responses import RedirectResponse, Response

from gateway.admin.authentication import SESSION_COOKIE
from gateway.admin.page_request import Page, PageRequest
from gateway.errors import AuthenticationFailed, BadRequest, Overloaded, PermissionDenied
from gateway.store import admin_users, audit
from gateway.store.admin_users import ABSOLUTE_MS, PASSWORD_CHARACTERS_MIN, ROLES, AdminUser, WeakPassword
from gateway.store.audit import AuditEvent
from gateway.store.invitations import forget_invitations, is_invited
from gateway.tags import VALUE

_PASSWORD_CHARACTERS_MAX: Final = 1_000


async def show_login(page_request: PageRequest) -> Response:
    if page_request.authenticator.is_open_to(page_request.http_request):
        return RedirectResponse("/admin", 303)
    return page_request.render(
        "login", fault="", next_path=_safe_path(page_request.param("next")), is_over=bool(page_request.param("over"))
    )


async def log_in(page_request: PageRequest) -> Response:
    next_path = _safe_path(page_request.form.get("next", ""))
    name, password = page_request.form.get("name", ""), page_request.form.get("password", "")[:_PASSWORD_CHARACTERS_MAX]
    try:
        token = await page_request.authenticator.log_in(page_request.http_request, name, password)
    except (AuthenticationFailed, Overloaded) as error:
        response = page_request.render(
            "login", status=error.status, fault=error.message, next_path=next_path, is_over=False
        )
        response.headers.update(error.headers)
        return response
    await _record_event(page_request, name, "admin.login", name)
    return _with_session_cookie(page_request, RedirectResponse(next_path, 303), token)


async def log_out(page_request: PageRequest) -> Response:
    await page_request.authenticator.log_out(page_request.http_request)
    response = RedirectResponse("/admin/login", 303)
    response.delete_cookie(SESSION_COOKIE, path="/admin", httponly=True, samesite="strict")
    response.headers["clear-site-data"] = '"cache"'
    return response


async def show_setup(page_request: PageRequest) -> Response:
    token = page_request.param("token")
    if not await is_invited(page_request.store, token, page_request.now_ms):
        raise PermissionDenied(_INVITATION_INVALID)
    return page_request.render("setup", token=token, fault="", characters_min=PASSWORD_CHARACTERS_MIN)


async def set_first_password(page_request: PageRequest) -> Response:
    token = page_request.form.get("token", "")
    if not await is_invited(page_request.store, token, page_request.now_ms):
        raise PermissionDenied(_INVITATION_INVALID)
    try:
        user = await _put_user(page_request, "admin")
    except BadRequest as error:
        return page_request.render(
            "setup", status=400, token=token, fault=error.message, characters_min=PASSWORD_CHARACTERS_MIN
        )
    await forget_invitations(page_request.store)
    await _record_event(page_request, user.name, "admin.first_login_set", user.name)
    session = await page_request.authenticator.open_session(user)
    return _with_session_cookie(page_request, RedirectResponse("/admin", 303), session)


_INVITATION_INVALID: Final = (
    "This link was used already, or is over. A new one is in the log after the next start, if nobody has a login yet; "
    "`farebox admin` sets a password at any time."
)


async def put_user(page_request: PageRequest) -> Response:
    role = page_request.form.get("role", "viewer")
    user = await _put_user(page_request, role)
    await _record_event(page_request, page_request.actor.name, "admin.person_set", user.name, role=role)
    return page_request.redirect("keys", done="person")


async def disable_user(page_request: PageRequest) -> Response:
    name = page_request.form.get("name", "")
    if name == page_request.actor.name:
        raise BadRequest.field("name", "is you: somebody else must do that")
    if not await admin_users.disable_user(page_request.store, name, page_request.now_ms):
        raise BadRequest(f"Nobody is named {name[:128]!r}.", status=404, code="not_found")
    await _record_event(page_request, page_request.actor.name, "admin.person_disabled", name)
    return page_request.redirect("keys", done="disabled")


async def _put_user(page_request: PageRequest, role: str) -> AdminUser:
    """Raises `BadRequest` for an invalid name, password or role."""
    name, password = page_request.form.get("name", "").strip(), page_request.form.get("password", "")
    if not VALUE.match(name):
        raise BadRequest.field("name", "may have letters, digits and ._:@/- and at most 128 of them")
    if role not in ROLES:
        raise BadRequest.field("role", f"is none of {', '.join(ROLES)}")
    if len(password) > _PASSWORD_CHARACTERS_MAX:
        raise BadRequest.field("password", f"has more than {_PASSWORD_CHARACTERS_MAX} characters")
    if "again" in page_request.form and page_request.form["again"] != password:
        raise BadRequest.field("password", "is not the same twice")
    try:
        return await admin_users.put_user(page_request.store, name, password, role, page_request.now_ms)
    except WeakPassword as error:
        raise BadRequest(str(error), param="password") from error


async def _record_event(page_request: PageRequest, actor: str, action: str, target: str, **detail: str) -> None:
    event = AuditEvent(page_request.now_ms, actor, action, target, request_id=page_request.request_id, detail=detail)
    await audit.append(page_request.store, [event])


def _with_session_cookie(page_request: PageRequest, response: Response, token: str) -> Response:
    # Behind a proxy that ends TLS only this header knows; believing a false one merely keeps the cookie off plain HTTP.
    scheme = page_request.http_request.headers.get("x-forwarded-proto", page_request.http_request.url.scheme)
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=ABSOLUTE_MS // 1000,
        path="/admin",
        httponly=True,
        samesite="strict",
        secure=scheme == "https",
    )
    return response


def _safe_path(next_path: str) -> str:
    """A path of the admin pages, so that a link to the login cannot redirect to another site."""
    parts = urlsplit(next_path)
    is_ours = next_path.startswith("/admin") and not parts.scheme and not parts.netloc and "\\" not in next_path
    return next_path if is_ours and parts.path != "/admin/login" else "/admin"


PAGES = (
    Page("GET", "/login", show_login, "public"),
    Page("POST", "/login", log_in, "public"),
    Page("POST", "/logout", log_out, "viewer"),
    Page("GET", "/setup", show_setup, "public"),
    Page("POST", "/setup", set_first_password, "public"),
    Page("POST", "/people", put_user, "admin"),
    Page("POST", "/people/disable", disable_user, "admin"),
)
