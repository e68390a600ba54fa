"""Liveness, readiness and metrics. No probe calls a model, and none names a tenant to callers without a key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.endpoints.error_answers import error_response
from gateway.errors import GatewayError

# The paths, including those that LiteLLM's manifests use.
_LIVE = ("/livez", "/health/liveliness", "/health/liveness")
_READY = ("/readyz", "/health", "/health/readiness")

Readiness = Callable[[], Awaitable[Mapping[str, Any]]]


def health_routes(
    readiness: Readiness, exposition: Callable[[], Awaitable[bytes]], check_scraper: Callable[[Request], object] | None
) -> list[Route]:
    """The routes. `readiness` returns {"ready": bool, …}, `exposition` the metrics; `check_scraper` raises GatewayError to deny them."""

    async def live(_: Request) -> Response:
        return Response(b'{"status":"alive"}', media_type="application/json")

    async def ready(request: Request) -> Response:
        readiness_report = dict(await readiness())
        is_ready = bool(readiness_report["ready"])
        details = (
            readiness_report
            if "verbose" in request.query_params or not is_ready
            else {
                "ready": True,
                "version": readiness_report["version"],
                "warnings": readiness_report["ledger"]["warnings"],
            }
        )
        return Response(orjson.dumps(details), status_code=200 if is_ready else 503, media_type="application/json")

    async def metrics(request: Request) -> Response:
        try:
            if check_scraper is not None:
                check_scraper(request)
        except GatewayError as error:
            return error_response(error)
        return Response(await exposition(), media_type=CONTENT_TYPE_LATEST)

    return [
        *(Route(path, live, methods=["GET"]) for path in _LIVE),
        *(Route(path, ready, methods=["GET"]) for path in _READY),
        Route("/metrics", metrics, methods=["GET"]),
    ]
