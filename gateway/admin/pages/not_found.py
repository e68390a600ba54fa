"""All other paths under /admin: a page that says that there is nothing."""

from __future__ import annotations

from starlette.responses import Response

from gateway.admin.page_request import Page, PageRequest
from gateway.errors import BadRequest


async def not_found(page_request: PageRequest) -> Response:
    raise BadRequest(f"There is no page {page_request.http_request.url.path[:200]}.", status=404, code="not_found")


PAGES = (Page("GET", "/{rest:path}", not_found, "viewer"),)
