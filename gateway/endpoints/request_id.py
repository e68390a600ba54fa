"""Adds a request id and a timing to every answer that is not a model call's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import Any

Send = Callable[[Any], Awaitable[None]]


def with_request_id(send: Send, new_id: Callable[[], str]) -> Send:
    """`send` with `x-request-id` and `server-timing` (`total`, in ms) for answers that have none of their own."""
    began_ns = perf_counter_ns()

    async def send_with_id(message: Any) -> None:
        if "headers" in message:
            message = {**message, "headers": [*message["headers"], *_missing(message["headers"])]}
        await send(message)

    def _missing(headers: Any) -> list[tuple[bytes, bytes]]:
        names = {name.lower() for name, _ in headers}
        missing = [] if b"x-request-id" in names else [(b"x-request-id", new_id().encode())]
        if b"server-timing" not in names:
            missing.append((b"server-timing", b"total;dur=%.1f" % ((perf_counter_ns() - began_ns) / 1e6)))
        return missing

    return send_with_id
