"""The admin pages as routes: authenticates a request, answers it, and shows errors on a page of their own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.admin.authentication import Authenticator, Identity, is_own_form
from gateway.admin.page_request import Page, PageRequest, read_form
from gateway.admin.pages import PAGES
from gateway.admin.rendering import SECURITY_HEADERS, Renderer
from gateway.admin.static_files import StaticFiles
from gateway.endpoints.api.application import as_gateway_error
from gateway.endpoints.api.route import ApiServices
from gateway.errors import GatewayError, PermissionDenied


class PageEndpoint:
    """One page, bound to the services that it uses."""

    def __init__(self, page: Page, services: ApiServices, authenticator: Authenticator, renderer: Renderer) -> None:
        self.page = page
        self._services = services
        self._authenticator = authenticator
        self._renderer = renderer

    async def serve(self, request: Request) -> Response:
        request_id = self._services.parts.ids.new()
        page_request = PageRequest(self._services, self._authenticator, self._renderer, request, request_id, None)
        try:
            response = await self._respond(page_request)
        except Exception as error:  # noqa: BLE001 - the last net: every error is a page, and bugs are logged by `as_gateway_error`
            response = self._error_page(page_request, as_gateway_error(error, request_id))
        response.headers.update({**SECURITY_HEADERS, "x-request-id": request_id})
        return response

    async def _respond(self, page_request: PageRequest) -> Response:
        request = page_request.http_request
        identity = await self._authenticator.authenticate(request) if self.page.required_role != "public" else None
        if identity is None and self.page.required_role != "public":
            return _redirect_to_login(request)
        self._authorize(request, identity)
        identified_request = replace(page_request, identity=identity, form=await read_form(request))
        try:
            return await self.page.handle(identified_request)
        except Exception as error:  # noqa: BLE001 - as above, on a page that knows who is there
            return self._error_page(identified_request, as_gateway_error(error, page_request.request_id))

    def _authorize(self, request: Request, identity: Identity | None) -> None:
        is_key = identity is not None and identity.authenticated_by == "key"
        if self.page.method != "GET" and not is_key and not is_own_form(request):
            raise PermissionDenied(
                "This did not come from a page of Farebox, so nothing was changed.", code="foreign_form"
            )
        if self.page.required_role == "admin" and identity is not None and identity.actor.role != "admin":
            raise PermissionDenied("You may only look (role viewer); changes need an admin.")

    def _error_page(self, page_request: PageRequest, error: GatewayError) -> Response:
        response = page_request.render("error", status=error.status, error=error)
        response.headers.update(error.headers)
        return response


def admin_routes(services: ApiServices) -> list[BaseRoute]:
    """Every route under /admin."""
    static = StaticFiles()
    renderer = Renderer(static)
    authenticator = Authenticator(services.access, services.store, clock_ms=services.now_ms, timer_s=time.monotonic)
    routes: list[BaseRoute] = [Route("/admin/static/{name}", static.serve, methods=["GET"])]
    routes += _routes(PAGES, services, authenticator, renderer)
    return routes


def _routes(
    pages: Sequence[Page], services: ApiServices, authenticator: Authenticator, renderer: Renderer
) -> list[BaseRoute]:
    return [
        Route(f"/admin{page.path}", PageEndpoint(page, services, authenticator, renderer).serve, methods=[page.method])
        for page in pages
    ]


def _redirect_to_login(request: Request) -> Response:
    """Redirect to the login, which then returns to this page, or to the page with the form if its session ended before it was sent."""
    is_form = request.method == "POST"
    referer = urlsplit(request.headers.get("referer", "") if is_form else str(request.url))
    page = quote(referer.path + (f"?{referer.query}" if referer.query else ""))
    return RedirectResponse(f"/admin/login?next={page}{'&over=1' if is_form else ''}", 303)
