"""Liveness, readiness, metrics. No probe ever calls a model, and none names a tenant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# What people and other gateways' manifests type.
_LIVE = ("/livez", "/health/liveliness", "/health/liveness")
_READY = ("/readyz", "/health", "/health/readiness")

Readiness = Callable[[], Awaitable[Mapping[str, Any]]]


def health_routes(readiness: Readiness, exposition: Callable[[], bytes]) -> list[Route]:
    """`readiness` tells {"ready": bool, …}; `exposition` is what a scrape gets."""

    async def live(_: Request) -> Response:
        return Response(b'{"status":"alive"}', media_type="application/json")

    async def ready(request: Request) -> Response:
        found = dict(await readiness())
        is_ready = bool(found["ready"])
        shown = (
            found
            if "verbose" in request.query_params or not is_ready
            else {"ready": True, "version": found["version"], "warnings": found["ledger"]["warnings"]}
        )
        return Response(orjson.dumps(shown), status_code=200 if is_ready else 503, media_type="application/json")

    async def metrics(_: Request) -> Response:
        return Response(exposition(), media_type=CONTENT_TYPE_LATEST)

    return [
        *(Route(path, live, methods=["GET"]) for path in _LIVE),
        *(Route(path, ready, methods=["GET"]) for path in _READY),
        Route("/metrics", metrics, methods=["GET"]),
    ]
