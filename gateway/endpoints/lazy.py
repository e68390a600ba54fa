"""Lazily loaded applications: imported and built at their first request, since most processes never need them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.routing import BaseRoute, Match


class LazyApplication:
    """An ASGI application that `make` imports and builds once, at its first request and in a thread, because it takes 0.2 s.

    If `make` raises, the request fails, and the next one tries again.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._application: Any = None
        self._making = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._application is None:
            async with self._making:
                if self._application is None:
                    self._application = await asyncio.to_thread(self._make)
        await self._application(scope, receive, send)


class PrefixRoute(BaseRoute):
    """Routes everything at `prefix` and below to an application, without stripping the prefix from the path."""

    def __init__(self, prefix: str, application: Any) -> None:
        self._prefix = prefix
        self._application = application

    def matches(self, scope: Any) -> tuple[Match, dict[str, Any]]:
        path = scope["path"]
        is_mine = path == self._prefix or path.startswith(f"{self._prefix}/")
        return (Match.FULL if is_mine else Match.NONE), {}

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await self._application(scope, receive, send)
