"""Stores runs whose first call takes long, so that they can be seen and stopped before it ends.

Other runs appear with their first flushed usage event, which is soon enough for calls of less than a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from cachetools import LRUCache

from gateway.ledger.clock import wall_clock_ms
from gateway.pipeline.call import Call
from gateway.store import runs
from gateway.store.database import Database, StoreUnavailable, first_line
from gateway.store.runs import Run, RunStep
from gateway.tasks import cancel

_EVERY_S: Final = 0.5
_KNOWN_MAX: Final = 50_000
_log = structlog.get_logger(__name__)


class RunsInProgress:
    """`calls` returns those that are at a provider now."""

    def __init__(self, calls: Callable[[], Iterable[Call]], store: Database) -> None:
        self._calls = calls
        self._store = store
        self._seen_before: set[str] = set()
        self._known: LRUCache[tuple[str, str, str], bool] = LRUCache(_KNOWN_MAX)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._store_forever(), name="runs-under-way")

    async def stop(self) -> None:
        await cancel(self._task)

    async def _store_forever(self) -> None:
        reason = ""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.store_new_runs()
            except Exception as error:  # noqa: BLE001 - the next check tries again, whatever is wrong with the store
                # The flusher reports an unreachable store, and anything else is logged once, and not at each check.
                if not isinstance(error, StoreUnavailable) and str(error) != reason:
                    reason = str(error)
                    _log.warning("runs_in_progress_not_stored", error=first_line(error), kind=type(error).__name__)

    async def store_new_runs(self) -> None:
        """Store the runs and steps of calls that were already in flight at the last check. Raises `StoreUnavailable`."""
        calls = [call for call in self._calls() if call.run is not None]
        long = [call for call in calls if call.id in self._seen_before]
        self._seen_before = {call.id for call in calls}
        new = {key: call for call in long if (key := _key(call)) not in self._known}
        if new:
            await runs.begin(self._store, [_run(call) for call in new.values()])
            self._known.update(dict.fromkeys(new, True))


def _key(call: Call) -> tuple[str, str, str]:
    return call.principal.project, call.run or "", call.tags.step


def _run(call: Call) -> Run:
    project, run, step = _key(call)
    tags, now_ms = call.tags, wall_clock_ms()
    came_ms = now_ms - call.timings.elapsed_ms
    return Run(
        project,
        run,
        tags.workflow or "",
        tags.agent or "",
        tags.user or "",
        call.parent_run or "",
        first_at_ms=came_ms,
        last_at_ms=now_ms,
        steps=(RunStep(run, step, model=call.model, first_at_ms=came_ms, last_at_ms=now_ms),),
    )
