"""Usage events without a reservation behind them (untagged calls, refusals), written to the ledger's outbox in batches."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Final

import structlog

from gateway.ledger.port import Ledger, OutboxEntry

_log = structlog.get_logger(__name__)
_INTERVAL_MS: Final = 20
_PAUSE_MS: Final = 1000  # before asking again a ledger that did not take them
# At this many waiting events memory matters more than completeness: what comes then is dropped, and counted. No budget is kept
# by these events.
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
            if not await self.flush():
                await asyncio.sleep(_PAUSE_MS / 1000)

    async def flush(self) -> bool:
        """Whether all that waited was written. What was not goes on waiting, also when this is cancelled: of an event that
        was written twice the store keeps one, by its id."""
        self._wake.clear()
        taken, self._waiting = self._waiting, []
        by_project: dict[str, list[OutboxEntry]] = defaultdict(list)
        for project, entry in taken:
            by_project[project].append(entry)
        try:
            for project in list(by_project):
                await self._write(project, by_project)
        finally:
            left = [(project, entry) for project, entries in by_project.items() for entry in entries]
            if left:
                self._waiting = left + self._waiting
                self._wake.set()
        return not left

    async def _write(self, project: str, by_project: dict[str, list[OutboxEntry]]) -> None:
        entries = by_project[project]
        try:
            await self._ledger.record(project, entries)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one project, the events of all others go on
            _log.warning("events_wait_for_ledger", events=len(entries), error=str(error), kind=type(error).__name__)
        else:
            del by_project[project]
