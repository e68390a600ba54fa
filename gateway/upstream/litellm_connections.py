"""The HTTP answers that LiteLLM opens for one call: closed when the call is left, and never more of an error than can be read.

LiteLLM wraps a provider's stream in up to four objects, and most of those do not pass a close on: an answer that nobody
reads any more would be generated, and paid, to its end. The context of a call follows it through LiteLLM's threads
and tasks, and the list in it collects every answer that httpx opened there.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any, Final

_CLOSE_TIMEOUT_S: Final = 2.0
# LiteLLM searches what a provider said for secrets, at 5 s of CPU a megabyte, and holds the event loop meanwhile.
_FAULT_BYTES_MAX: Final = 32 * 1024
# What these give may be any text; all others answer with JSON, with events or with a medium.
_TEXTS: Final = ("/transcriptions", "/translations")


class Opened:
    """What the provider has answered so far. `succeeded`: its last answer had a good status, so that it may have to be paid."""

    def __init__(self) -> None:
        self._answers: list[Any] = []
        self.succeeded = False

    def note(self, answer: Any) -> None:
        self.succeeded = 200 <= answer.status_code < 300
        if not answer.is_closed:
            self._answers.append(answer)

    async def close(self) -> None:
        """Close every answer, whatever its state; those that ended are closed already."""
        while self._answers:
            answer = self._answers.pop()
            # An answer that fails to close is gone as well; what matters is that no other one stays open.
            with contextlib.suppress(Exception):
                await asyncio.wait_for(answer.aclose(), _CLOSE_TIMEOUT_S)


_OPENED: Final[ContextVar[Opened | None]] = ContextVar("farebox_litellm_answers", default=None)


def collect() -> Opened:
    """Start collecting for what the current task does from here on."""
    opened = Opened()
    _OPENED.set(opened)
    return opened


def watch() -> None:
    """Make httpx's client note its answers, and cut those short that say what is wrong. Once a process, after LiteLLM is imported."""
    httpx = importlib.import_module("httpx")
    client = httpx.AsyncClient
    if getattr(client.send, "is_watched", False):
        return
    send = client.send

    async def noting_send(self: Any, request: Any, *arguments: Any, **options: Any) -> Any:
        answer = await send(self, request, *arguments, **options)
        opened = _OPENED.get()
        if opened is not None:
            opened.note(answer)
            if answer.is_stream_consumed:
                if _is_fault(answer) and len(answer.content) > _FAULT_BYTES_MAX:
                    answer._content = answer.content[:_FAULT_BYTES_MAX]
            elif answer.status_code >= 400:
                answer.stream = _Shortened(answer.stream)
        return answer

    class _Shortened(httpx.AsyncByteStream):  # type: ignore[name-defined, misc]  # httpx is imported late
        def __init__(self, whole: Any) -> None:
            self._whole = whole

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = _FAULT_BYTES_MAX
            async for piece in self._whole:
                yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    return

        async def aclose(self) -> None:
            await self._whole.aclose()

    noting_send.is_watched = True  # type: ignore[attr-defined]
    client.send = noting_send


def _is_fault(answer: Any) -> bool:
    """A refusal, or something else where JSON should be."""
    if answer.status_code >= 400:
        return True
    content_type = answer.headers.get("content-type", "")
    is_text = content_type.startswith("text/") or "json" in content_type
    return is_text and answer.content.lstrip()[:1] not in b"{[" and not answer.request.url.path.endswith(_TEXTS)
