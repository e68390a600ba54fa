"""The HTTP answers that LiteLLM opens for one call, so that they can be closed when the call is left.

LiteLLM wraps a provider's stream in up to four objects, and most of those do not pass a close on: an answer that nobody
reads any more would be generated, and paid, to its end. The context of a call follows it through LiteLLM's threads
and tasks, and the list in it collects every answer that httpx opened there.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from contextvars import ContextVar
from typing import Any, Final

_CLOSE_TIMEOUT_S: Final = 2.0
_OPENED: Final[ContextVar[list[Any] | None]] = ContextVar("farebox_litellm_answers", default=None)


def collect() -> list[Any]:
    """Start collecting for what the current task does from here on; the list fills as answers are opened."""
    opened: list[Any] = []
    _OPENED.set(opened)
    return opened


async def close_all(opened: list[Any]) -> None:
    """Close every answer, whatever its state; those that ended are closed already."""
    while opened:
        answer = opened.pop()
        # An answer that fails to close is gone as well; what matters is that no other one stays open.
        with contextlib.suppress(Exception):
            await asyncio.wait_for(answer.aclose(), _CLOSE_TIMEOUT_S)


def watch() -> None:
    """Make httpx's client note its streamed answers. Once a process, after LiteLLM is imported."""
    client = importlib.import_module("httpx").AsyncClient
    if getattr(client.send, "is_watched", False):
        return
    send = client.send

    async def noting_send(self: Any, request: Any, *arguments: Any, **options: Any) -> Any:
        answer = await send(self, request, *arguments, **options)
        opened = _OPENED.get()
        if opened is not None and not answer.is_closed:
            opened.append(answer)
        return answer

    noting_send.is_watched = True  # type: ignore[attr-defined]
    client.send = noting_send
