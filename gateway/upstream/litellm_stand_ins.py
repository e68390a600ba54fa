"""Stand-ins for parts of LiteLLM's own proxy that its library functions import on their way.

Responses and streamed messages import the proxy's MCP gateway and its pass-through logging, and with them FastAPI and
more, which a user of the library does not have. Both are things that must not happen here anyway: calls of tools that
nobody reserved for, and bookkeeping in a callback. Messages ask the proxy itself for its router, with each call anew, which
holds the event loop for ten milliseconds until FastAPI is missed. So these modules are put in their place before they are
asked for.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from types import ModuleType
from typing import Any, Final


class NoGateway:
    """Takes the place of `LiteLLM_Proxy_MCP_Handler`: no tool is ever run by the gateway."""

    @staticmethod
    def should_use_litellm_mcp_gateway(tools: Any = None) -> bool:
        return False


class NoLogging:
    """Takes the place of `PassThroughEndpointLogging`."""


class PlainStreaming:
    """Takes the place of `PassThroughStreamingHandler`: the provider's bytes, and no billing of them."""

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
    """Put the stand-ins where an import looks first. Raises RuntimeError if one of the real modules is in use already."""
    for name, contents in _STAND_INS.items():
        if name in sys.modules and not getattr(sys.modules[name], "is_stand_in", False):
            raise RuntimeError(f"{name} was imported before the gateway could replace it")
        module = ModuleType(name)
        module.__dict__.update({**contents, "is_stand_in": True})
        sys.modules[name] = module
