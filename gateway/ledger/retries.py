"""Retries of a ledger that does not answer in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.ledger.port import CountersMissing, LedgerUnavailable

T = TypeVar("T")


async def retry_while_unavailable(operation: Callable[[], Awaitable[T]], *, tries: int, pause_s: float = 0.0) -> T:
    """The first answer of up to `tries` (1 or more), `pause_s` apart. For operations that are read-only or idempotent.

    Raises the last try's `LedgerUnavailable`, and any other error at once; `CountersMissing` counts as an answer.
    """
    for _ in range(tries - 1):
        try:
            return await operation()
        except CountersMissing:
            raise
        except LedgerUnavailable:
            await asyncio.sleep(pause_s)
    return await operation()
