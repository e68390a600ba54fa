"""Measures how long the event loop of this process kept tasks waiting, which must not be blamed on the ledger.

A process that has just started, or has too many calls, is late to read an answer that has long arrived. A task asks the loop
to wake it at a fixed pace, and its delays are added up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from gateway.tasks import cancel

_INTERVAL_S: Final = 0.01


class LoopLag:
    def __init__(self, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._due_s = 0.0
        self._lag_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="loop-lag")

    async def stop(self) -> None:
        await cancel(self._task)
        self._task = None

    @property
    def total_ms(self) -> float:
        """Since the start, including the current delay. The difference of two readings is the lag between them."""
        current_lag_s = 0.0 if self._task is None else max(0.0, self._monotonic_s() - self._due_s)
        return (self._lag_s + current_lag_s) * 1000

    async def _run(self) -> None:
        while True:
            self._due_s = self._monotonic_s() + _INTERVAL_S
            await asyncio.sleep(_INTERVAL_S)
            self._lag_s += max(0.0, self._monotonic_s() - self._due_s)
