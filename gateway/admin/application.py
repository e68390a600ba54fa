"""The admin pages as routes: lets a visitor in or not, answers, and tells errors on a page of their own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.admin.door import Door, Visitor, is_own_form
from gateway.admin.pages import PAGES
from gateway.admin.rendering import SECURITY_HEADERS, Renderer
from gateway.admin.static_files import StaticFiles
from gateway.admin.visit import Page, Visit, read_form
from gateway.endpoints.api.application import as_gateway_error
from gateway.endpoints.api.route import Desk
from gateway.errors import GatewayError, PermissionDenied


class PageEndpoint:
    """One page, bound to what it works with."""

    def __init__(self, page: Page, desk: Desk, door: Door, renderer: Renderer) -> None:
        self.page = page
        self._desk = desk
        self._door = door
        self._renderer = renderer

    async def serve(self, request: Request) -> Response:
        request_id = self._desk.parts.ids.new()
        visit = Visit(self._desk, self._door, self._renderer, request, request_id, None)
        try:
            response = await self._answer(visit)
        except Exception as error:  # noqa: BLE001 - the last net: every error is a page, and bugs are logged by `as_gateway_error`
            response = self._error_page(visit, as_gateway_error(error, request_id))
        response.headers.update({**SECURITY_HEADERS, "x-request-id": request_id})
        return response

    async def _answer(self, visit: Visit) -> Response:
        request = visit.request
        visitor = await self._door.visitor(request) if self.page.needs != "public" else None
        if visitor is None and self.page.needs != "public":
            return _to_login(request)
        self._check(request, visitor)
        form = await read_form(request)
        known = Visit(visit.desk, visit.door, visit.renderer, request, visit.request_id, visitor, form)
        try:
            return await self.page.handle(known)
        except Exception as error:  # noqa: BLE001 - as above, on a page that knows who is there
            return self._error_page(known, as_gateway_error(error, visit.request_id))

    def _check(self, request: Request, visitor: Visitor | None) -> None:
        is_key = visitor is not None and visitor.by == "key"
        if self.page.method != "GET" and not is_key and not is_own_form(request):
            raise PermissionDenied(
                "This did not come from a page of Farebox, so nothing was changed.", code="foreign_form"
            )
        if self.page.needs == "admin" and visitor is not None and visitor.actor.role != "admin":
            raise PermissionDenied("You may only look (role viewer); changes need an admin.")

    def _error_page(self, visit: Visit, error: GatewayError) -> Response:
        response = visit.show("error", status=error.status, error=error)
        response.headers.update(error.headers)
        return response


def admin_routes(desk: Desk) -> list[BaseRoute]:
    """Every route under /admin."""
    static = StaticFiles()
    renderer = Renderer(static)
    door = Door(desk.access, desk.store, clock_ms=desk.now_ms, timer_s=time.monotonic)
    routes: list[BaseRoute] = [Route("/admin/static/{name}", static.serve, methods=["GET"])]
    routes += _routes(PAGES, desk, door, renderer)
    return routes


def _routes(pages: Sequence[Page], desk: Desk, door: Door, renderer: Renderer) -> list[BaseRoute]:
    return [
        Route(f"/admin{page.path}", PageEndpoint(page, desk, door, renderer).serve, methods=[page.method])
        for page in pages
    ]


def _to_login(request: Request) -> Response:
    """To the login, which then leads back to this page, or to the page with the form if its session ended before it was sent."""
    is_form = request.method == "POST"
    wanted = urlsplit(request.headers.get("referer", "") if is_form else str(request.url))
    page = quote(wanted.path + (f"?{wanted.query}" if wanted.query else ""))
    return RedirectResponse(f"/admin/login?next={page}{'&over=1' if is_form else ''}", 303)
