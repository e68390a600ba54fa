"""Asking again before a ledger that gave no answer is taken for lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from gateway.ledger.port import CountersMissing, LedgerUnavailable

T = TypeVar("T")

# A second or two, where the network refuses or the deadline is short.
_START_TRIES: Final = 10
_START_PAUSE_S: Final = 0.1


async def patiently(ask: Callable[[], Awaitable[T]], *, tries: int, pause_s: float = 0.0) -> T:
    """The first answer of up to `tries` (1 or more), `pause_s` apart. For questions that change nothing, or may come twice.

    Raises `LedgerUnavailable` of the last try, and whatever else a try raises at once: `CountersMissing` is an answer.
    """
    for _ in range(tries - 1):
        try:
            return await ask()
        except CountersMissing:
            raise
        except LedgerUnavailable:
            await asyncio.sleep(pause_s)
    return await ask()


async def at_start(ask: Callable[[], Awaitable[T]]) -> T:
    """No call waits yet, and what a new process asks first is answered slowly where all begins at once."""
    return await patiently(ask, tries=_START_TRIES, pause_s=_START_PAUSE_S)
