"""Brings the store up to date before it is read, so that a call made just now is in the next response."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from gateway.bookkeeping.flusher import Flusher

# A reader waits no longer than this; the flusher moves the rest a moment later anyway.
TIMEOUT_MS: Final = 1_000

_log = structlog.get_logger(__name__)


class CatchUp:
    """`flush_waiting` writes what this process holds in memory: events without a reservation, allocations of steps."""

    def __init__(self, flush_waiting: Callable[[], Awaitable[object]], flusher: Flusher) -> None:
        self._flush_waiting = flush_waiting
        self._flusher = flusher
        self._moving: asyncio.Task[None] | None = None

    async def __call__(self, timeout_ms: int = TIMEOUT_MS) -> None:
        """Wait until all earlier events are in the store, or the time is up. Never raises for errors of the ledger or the store."""
        if self._moving is not None:
            # The move in progress may have read the outbox before our caller's events, so it does not count.
            await asyncio.wait({self._moving}, timeout=timeout_ms / 1000)
        if self._moving is None:
            self._moving = asyncio.create_task(self._move(), name="catch-up")
            self._moving.add_done_callback(self._done)
        # Not cancelled when the time is up: it is better to finish a batch than to start it again.
        await asyncio.wait({self._moving}, timeout=timeout_ms / 1000)

    def _done(self, _: asyncio.Task[None]) -> None:
        self._moving = None

    async def _move(self) -> None:
        try:
            await self._flush_waiting()
            while await self._flusher.flush_once() >= self._flusher.batch:
                pass
        except Exception as error:  # noqa: BLE001 - the flusher meets the same error, and reports it
            _log.info("catch_up_failed", error=str(error))
