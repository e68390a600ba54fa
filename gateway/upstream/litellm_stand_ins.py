"""Stand-ins for parts of LiteLLM's proxy that its library functions import.

Responses and streamed messages import the proxy's MCP gateway and its pass-through logging, and with them FastAPI and
more, which is not installed with the library. Neither may run here anyway: they make tool calls without a reservation, and
do bookkeeping in callbacks. Messages also try to import the proxy's router on every call, which blocks the event loop for ten
milliseconds until the import of FastAPI fails. So these stand-ins are installed before the real modules are imported.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from types import ModuleType
from typing import Any, Final


class NoGateway:
    """Replaces `LiteLLM_Proxy_MCP_Handler`: the gateway never runs tools."""

    @staticmethod
    def should_use_litellm_mcp_gateway(tools: Any = None) -> bool:
        return False


class NoLogging:
    """Replaces `PassThroughEndpointLogging`."""


class PlainStreaming:
    """Replaces `PassThroughStreamingHandler`: passes on the provider's bytes without billing them."""

    @staticmethod
    async def chunk_processor(response: Any, **_context: Any) -> AsyncIterator[bytes]:
        try:
            async for piece in response.aiter_bytes():
                yield piece
        finally:
            await response.aclose()

    @staticmethod
    async def route_streaming_logging_to_handler(**_context: Any) -> None:
        return None

    @staticmethod
    async def schedule_stream_failure_logging(**_context: Any) -> None:
        return None


_STAND_INS: Final[Mapping[str, Mapping[str, type | None]]] = {
    "litellm.proxy.proxy_server": {"llm_router": None},
    "litellm.responses.mcp.litellm_proxy_mcp_handler": {"LiteLLM_Proxy_MCP_Handler": NoGateway},
    "litellm.proxy.pass_through_endpoints.success_handler": {"PassThroughEndpointLogging": NoLogging},
    "litellm.proxy.pass_through_endpoints.streaming_handler": {"PassThroughStreamingHandler": PlainStreaming},
}


def install() -> None:
    """Put the stand-ins into `sys.modules`. Raises RuntimeError if one of the real modules has already been imported."""
    for name, contents in _STAND_INS.items():
        if name in sys.modules and not getattr(sys.modules[name], "is_stand_in", False):
            raise RuntimeError(f"{name} was imported before the gateway could replace it")
        module = ModuleType(name)
        module.__dict__.update({**contents, "is_stand_in": True})
        sys.modules[name] = module
