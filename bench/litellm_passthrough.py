"""A minimal gateway on LiteLLM: Starlette accepts the call, `litellm.acompletion` makes it, and the answer is written.

What Farebox's LiteLLM lane costs beyond this is Farebox's own share.

    .venv/bin/python -m bench.litellm_passthrough --port 9000 --upstream http://127.0.0.1:9100/v1
"""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from bench.passthrough import serve


def application(upstream: str) -> Starlette:
    # The same switches as in the gateway, so that LiteLLM behaves the same on both sides.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    import litellm

    litellm.suppress_debug_info = True
    litellm.num_retries = 0

    async def chat(request: Request) -> Response:
        body = orjson.loads(await request.body())
        model = f"openai/{body.pop('model')}"
        answer = await litellm.acompletion(model=model, api_base=upstream, api_key="upstream-key", **body)
        if body.get("stream"):
            return StreamingResponse(_events(answer), media_type="text/event-stream")
        return Response(answer.model_dump_json(), media_type="application/json")

    async def alive(request: Request) -> Response:
        return PlainTextResponse("ok")

    gc.collect()
    gc.freeze()
    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/livez", alive)])


async def _events(answer: Any) -> AsyncIterator[bytes]:
    async for chunk in answer:
        yield b"data: " + chunk.model_dump_json(exclude_none=True).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


if __name__ == "__main__":
    serve(__doc__, application)
