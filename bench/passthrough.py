"""A minimal Python gateway: Starlette accepts the call, aiohttp forwards it, and the answer is returned unchanged.

It has no keys, counts, budgets or records. Farebox's cost is given as a multiple of this.

    .venv/bin/python -m bench.passthrough --port 9000 --upstream http://127.0.0.1:9100/v1
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from yarl import URL

_CONNECTIONS_MAX = 1_000


def application(upstream: str) -> Starlette:
    url = URL(f"{upstream}/chat/completions")

    async def chat(request: Request) -> Response:
        session: aiohttp.ClientSession = request.app.state.session
        headers = {"content-type": "application/json", "authorization": request.headers.get("authorization", "")}
        answer = await session.post(url, data=await request.body(), headers=headers)
        content_type = answer.headers["content-type"]
        if content_type.startswith("text/event-stream"):
            return StreamingResponse(_pieces(answer), answer.status, {"content-type": content_type})
        return Response(await answer.read(), answer.status, {"content-type": content_type})

    async def alive(request: Request) -> Response:
        return PlainTextResponse("ok")

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/livez", alive)]
    return Starlette(routes=routes, lifespan=_session())


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.content.iter_any():
            yield piece
    finally:
        answer.release()


def _session() -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def opened(app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS_MAX)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
            app.state.session = session
            gc.collect()
            gc.freeze()
            yield

    return opened


def serve(description: str | None, make: Callable[[str], Starlette]) -> None:
    """Serves the application that `make` returns for the upstream's address, on the same server as the gateway."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    arguments = parser.parse_args()
    uvicorn.run(
        make(arguments.upstream),
        host="127.0.0.1",
        port=arguments.port,
        http="httptools",
        loop="uvloop",
        ws="none",
        access_log=False,
        log_level="warning",
        backlog=2_048,
        server_header=False,
        date_header=False,
    )


if __name__ == "__main__":
    serve(__doc__, application)
