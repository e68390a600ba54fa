"""Waiting for what happens in the background. What is awaited comes at once or not at all: the time allows for a busy machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 20.0


def until(holds: Callable[[], object], timeout_s: float = PATIENCE_S, description: str = "it happens") -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {description}"
        time.sleep(0.02)


async def eventually(
    holds: Callable[[], object], timeout_s: float = PATIENCE_S, description: str = "it happens"
) -> None:
    """The same, for what happens on this event loop."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {description}"
        await asyncio.sleep(0.01)
