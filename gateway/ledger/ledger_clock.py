"""The ledger's time without asking the ledger: the offset to our monotonic clock is measured from time to time.

Windows of budgets must begin at the same moment in every process, whatever its own clock says.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from gateway.ledger.port import Ledger, LedgerError
from gateway.tasks import cancel

_log = structlog.get_logger(__name__)
_INTERVAL_S: Final = 30.0


class LedgerClock:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._offset_ms = int(time.time() * 1000) - time.monotonic_ns() // 1_000_000
        self._task: asyncio.Task[None] | None = None

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000 + self._offset_ms

    async def start(self) -> None:
        await self._adjust()
        self._task = asyncio.create_task(self._adjust_forever(), name="ledger-clock")

    async def stop(self) -> None:
        await cancel(self._task)

    async def _adjust_forever(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self._adjust()

    async def _adjust(self) -> None:
        try:
            self._offset_ms = await self._ledger.now_ms() - time.monotonic_ns() // 1_000_000
        except LedgerError:
            _log.warning("ledger_clock_not_read")
