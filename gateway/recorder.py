"""Usage events without a reservation behind them (untagged calls, refusals), written to the ledger's outbox in batches."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Final

import structlog

from gateway.ledger.port import Ledger, LedgerUnavailable, OutboxEntry

_log = structlog.get_logger(__name__)
_INTERVAL_MS: Final = 20
# At this many waiting events memory matters more than completeness of what cost nothing: refusals go first, loudly.
_WAITING_MAX: Final = 200_000


class BatchRecorder:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[tuple[str, OutboxEntry]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    def record(self, project: str, entry: OutboxEntry) -> None:
        if len(self._waiting) >= _WAITING_MAX:
            self.dropped += 1
            return
        self._waiting.append((project, entry))
        self._wake.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="recorder")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.flush()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_INTERVAL_MS / 1000)
            await self.flush()

    async def flush(self) -> None:
        self._wake.clear()
        taken, self._waiting = self._waiting, []
        by_project: dict[str, list[OutboxEntry]] = defaultdict(list)
        for project, entry in taken:
            by_project[project].append(entry)
        for project, entries in by_project.items():
            try:
                await self._ledger.record(project, entries)
            except LedgerUnavailable as error:
                _log.warning("events_wait_for_ledger", events=len(entries), error=str(error))
                self._waiting = [(project, entry) for entry in entries] + self._waiting
