"""Writes usage events without a reservation (untagged calls, refusals) to the ledger's outbox, in batches."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Final

import structlog

from gateway.ledger.port import Ledger, OutboxEntry
from gateway.tasks import cancel

_log = structlog.get_logger(__name__)
_INTERVAL_MS: Final = 20
_PAUSE_MS: Final = 1000  # before a retry, if the ledger did not take them
# Beyond this many waiting events, memory matters more than completeness: later ones are dropped and counted. Budgets do not
# depend on these events.
_WAITING_MAX: Final = 200_000


class BatchRecorder:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[tuple[str, OutboxEntry]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        self._reasons: dict[str, str] = {}  # why the events of a project wait, as it was last logged

    def record(self, project: str, entry: OutboxEntry) -> None:
        if len(self._waiting) >= _WAITING_MAX:
            self.dropped += 1
            return
        self._waiting.append((project, entry))
        self._wake.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="recorder")

    async def stop(self) -> None:
        await cancel(self._task)
        await self.flush()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_INTERVAL_MS / 1000)
            if not await self.flush():
                await asyncio.sleep(_PAUSE_MS / 1000)

    async def flush(self) -> bool:
        """Returns whether everything was written. The rest stays queued, even if this is cancelled. An event that is written
        twice is stored once, thanks to its id."""
        self._wake.clear()
        batch, self._waiting = self._waiting, []
        by_project: dict[str, list[OutboxEntry]] = defaultdict(list)
        for project, entry in batch:
            by_project[project].append(entry)
        try:
            for project in list(by_project):
                await self._write(project, by_project)
        finally:
            unwritten = [(project, entry) for project, entries in by_project.items() for entry in entries]
            if unwritten:
                self._waiting = unwritten + self._waiting
                self._wake.set()
        return not unwritten

    async def _write(self, project: str, by_project: dict[str, list[OutboxEntry]]) -> None:
        entries = by_project[project]
        try:
            await self._ledger.record(project, entries)
        except Exception as error:  # noqa: BLE001 - a failure of one project must not affect the events of others
            if self._reasons.get(project) != str(error):  # an outage is logged once, and not at each of its attempts
                self._reasons[project] = str(error)
                _log.warning("events_wait_for_ledger", events=len(entries), error=str(error), kind=type(error).__name__)
        else:
            self._reasons.pop(project, None)
            del by_project[project]
