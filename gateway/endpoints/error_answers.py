"""Error answers of everything but model calls, among them those for unknown paths and methods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from gateway.errors import BadRequest, GatewayError
from gateway.wire.openai_errors import error_body

_API = "/api"


def error_response(error: GatewayError) -> Response:
    return Response(error_body(error), error.status, error.headers, "application/json")


def _allowed(request: Request) -> str:
    """Starlette itself names the methods of the first route that has the path, and each route here has one."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in matching for method in route.methods or ()}))


def not_found_handler(new_id: Callable[[], str]) -> Callable[[Request, Exception], Awaitable[Response]]:
    """A handler of Starlette's `HTTPException`. `new_id` makes the id of the request."""

    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
        path, request_id = request.url.path, new_id()
        if error.status_code == 405:
            refusal = BadRequest(f"{path} does not take {request.method}.", status=405, code="method_not_allowed")
            refusal.headers["allow"] = _allowed(request)
        else:
            hint = "/api/openapi.json lists what there is" if path.startswith(_API) else "model calls go to /v1/…"
            refusal = BadRequest(f"There is no {path[:200]}; {hint}.", status=error.status_code, code="not_found")
        refusal.metadata["request_id"] = refusal.headers["x-request-id"] = request_id
        return error_response(refusal)

    return answer
