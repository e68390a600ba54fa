"""Our server on a real socket, in this process, under an ASGI application that does what a test needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from gateway.observability.telemetry import Telemetry
from gateway.server.connections import ConnectionLimits, Connections


@contextlib.asynccontextmanager
async def bare_server(application: Any, **limits: Any) -> AsyncIterator[str]:
    """Yields its address. At the end every connection is cut."""
    chosen = {"connections_max": 100, "head_s": 5.0, "body_s": 5.0, "stall_s": 5.0, "bodies_bytes_max": 10**9, **limits}
    connections = Connections(ConnectionLimits(**chosen), Telemetry(), lambda: "an-id")
    config = uvicorn.Config(application, interface="asgi3", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: connections.protocol(config, state, {}), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in list(connections.open):
            connection.transport.abort()
        await server.wait_closed()
        await asyncio.gather(*state.tasks, return_exceptions=True)
    assert connections.bodies_bytes == 0
