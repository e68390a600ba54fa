"""Parts of the application that are created at their first request."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from starlette.routing import Match

from gateway.endpoints.lazy import LazyApplication, PrefixRoute


async def _call(application: Any, path: str = "/api") -> None:
    await application({"type": "http", "path": path}, None, None)


async def test_concurrent_first_requests_create_it_once_in_a_thread() -> None:
    made_in: list[int] = []
    asked: list[str] = []

    def make() -> Any:
        made_in.append(threading.get_ident())

        async def application(scope: Any, receive: Any, send: Any) -> None:
            asked.append(scope["path"])

        return application

    late = LazyApplication(make)
    assert made_in == []
    await asyncio.gather(*(_call(late) for _ in range(5)))
    assert len(made_in) == 1
    assert made_in[0] != threading.get_ident()
    assert len(asked) == 5


async def test_failed_creation_is_retried_at_the_next_request() -> None:
    tries = 0

    def make() -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError("too many open files")

        async def application(scope: Any, receive: Any, send: Any) -> None: ...

        return application

    late = LazyApplication(make)
    with pytest.raises(OSError, match="too many"):
        await _call(late)
    await _call(late)
    assert tries == 2


@pytest.mark.parametrize(
    ("path", "is_below"),
    [("/api", True), ("/api/runs", True), ("/api/", True), ("/apis", False), ("/", False), ("/x/api", False)],
)
def test_prefix_route_matches_the_prefix_and_paths_below_it(path: str, is_below: bool) -> None:
    match, _ = PrefixRoute("/api", None).matches({"type": "http", "path": path})
    assert match is (Match.FULL if is_below else Match.NONE)
