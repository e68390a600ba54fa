"""Tracks the HTTP responses that LiteLLM opens for a call, so that abandoned ones are closed, and truncates large error bodies.

LiteLLM wraps a provider's stream in up to four objects, most of which do not pass on a close: an answer that is no longer read
would still be generated, and paid for, to its end. A context variable follows the call through LiteLLM's threads and tasks,
and collects every response that httpx opens there.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any, Final

_CLOSE_TIMEOUT_S: Final = 2.0
# LiteLLM searches error bodies for secrets, at 5 s of CPU per megabyte, and blocks the event loop meanwhile.
_ERROR_BYTES_MAX: Final = 32 * 1024
# Paths that may answer with any text. All others answer with JSON, events or media.
_TEXT_PATHS: Final = ("/transcriptions", "/translations")


class OpenResponses:
    """The provider's responses so far. `status` is that of the last one; 0 before there is any."""

    def __init__(self) -> None:
        self._responses: list[Any] = []
        self.status = 0

    @property
    def succeeded(self) -> bool:
        """Whether the last response had a 2xx status, so that it may have to be paid for."""
        return 200 <= self.status < 300

    def add(self, response: Any) -> None:
        self.status = response.status_code
        if not response.is_closed:
            self._responses.append(response)

    async def close(self) -> None:
        """Close every response that is still open."""
        while self._responses:
            response = self._responses.pop()
            # A response that fails to close is gone as well. What matters is that the others are closed too.
            with contextlib.suppress(Exception):
                await asyncio.wait_for(response.aclose(), _CLOSE_TIMEOUT_S)


_OPEN_RESPONSES: Final[ContextVar[OpenResponses | None]] = ContextVar("farebox_litellm_answers", default=None)


def collect_responses() -> OpenResponses:
    """Start collecting responses for the current task."""
    open_responses = OpenResponses()
    _OPEN_RESPONSES.set(open_responses)
    return open_responses


def patch_httpx() -> None:
    """Patch httpx's client to note its responses and truncate errors. Call once per process, after LiteLLM is imported."""
    httpx = importlib.import_module("httpx")
    client = httpx.AsyncClient
    if getattr(client.send, "is_watched", False):
        return
    send = client.send

    async def recording_send(self: Any, request: Any, *arguments: Any, **options: Any) -> Any:
        response = await send(self, request, *arguments, **options)
        open_responses = _OPEN_RESPONSES.get()
        if open_responses is not None:
            open_responses.add(response)
            if response.is_stream_consumed:
                if _is_error(response) and len(response.content) > _ERROR_BYTES_MAX:
                    response._content = response.content[:_ERROR_BYTES_MAX]
            elif response.status_code >= 400:
                response.stream = _TruncatedStream(response.stream)
        return response

    class _TruncatedStream(httpx.AsyncByteStream):  # type: ignore[name-defined, misc]  # httpx is imported late
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            remaining_bytes = _ERROR_BYTES_MAX
            async for piece in self._stream:
                yield piece[:remaining_bytes]
                remaining_bytes -= len(piece)
                if remaining_bytes <= 0:
                    return

        async def aclose(self) -> None:
            await self._stream.aclose()

    recording_send.is_watched = True  # type: ignore[attr-defined]
    client.send = recording_send


def _is_error(response: Any) -> bool:
    """An error status, or text where JSON should be."""
    if response.status_code >= 400:
        return True
    content_type = response.headers.get("content-type", "")
    is_text = content_type.startswith("text/") or "json" in content_type
    return (
        is_text and response.content.lstrip()[:1] not in b"{[" and not response.request.url.path.endswith(_TEXT_PATHS)
    )
