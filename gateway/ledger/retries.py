"""Retries before a ledger that does not answer counts as lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from gateway.ledger.port import CountersMissing, LedgerUnavailable

T = TypeVar("T")

# A second or two in total, if connections are refused or the deadline is short.
_STARTUP_TRIES: Final = 10
_STARTUP_PAUSE_S: Final = 0.1


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


async def retry_at_startup(operation: Callable[[], Awaitable[T]]) -> T:
    """Retry at start-up: no call waits yet, and the first answers of a cold system are slow."""
    return await retry_while_unavailable(operation, tries=_STARTUP_TRIES, pause_s=_STARTUP_PAUSE_S)
