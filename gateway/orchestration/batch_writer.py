"""Background writes to the store, in batches, so that no call waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import structlog

from gateway.store.database import StoreError

_log = structlog.get_logger(__name__)
_INTERVAL_MS: Final = 250
_BATCH_MAX: Final = 500
# How much may wait for an unreachable store. Beyond it the oldest items are dropped, counted and logged; no sum depends on them.
WAITING_MAX: Final = 20_000

T = TypeVar("T")


class BatchWriter(Generic[T]):
    """`write` stores a batch. If it raises StoreError, it gets the same batch again later."""

    def __init__(self, name: str, write: Callable[[Sequence[T]], Awaitable[None]]) -> None:
        self._name = name
        self._write = write
        self._waiting: list[T] = []
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    def put(self, item: T) -> None:
        """Queue an item. Never waits and never fails."""
        if len(self._waiting) >= WAITING_MAX:
            del self._waiting[: WAITING_MAX // 10]
            self.dropped += WAITING_MAX // 10
            _log.warning("batch_dropped", batch=self._name, dropped=self.dropped)
        self._waiting.append(item)
        self._wake.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        if self._task is not None:
            async with self._turn:  # not during a write, whose batch would be lost
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.flush()

    async def flush(self) -> None:
        """Write everything that is queued, if the store can be reached."""
        async with self._turn:
            self._wake.clear()
            while self._waiting and await self._write_some():
                pass

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_INTERVAL_MS / 1000)
            await self.flush()
            if self._waiting:  # the store cannot be reached: try again later
                self._wake.set()
                await asyncio.sleep(1)

    async def _write_some(self) -> bool:
        batch, self._waiting = self._waiting[:_BATCH_MAX], self._waiting[_BATCH_MAX:]
        try:
            await self._write(batch)
        except StoreError as error:
            _log.info("batch_waits_for_store", batch=self._name, items=len(batch), error=str(error))
            self._waiting = batch + self._waiting
            return False
        except Exception:  # noqa: BLE001 - a batch that the store never accepts must not block those after it
            self.dropped += len(batch)
            _log.exception("batch_not_written", batch=self._name, items=len(batch))
        return True
