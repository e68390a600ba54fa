"""Batched look-ups of runs in the store: all that are requested during one query are answered by the next.

The embedded store has one connection. With one query per run, the first calls of fifty runs that began together waited for half a second
(`python -m bench --targets orchestrated`).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Final

from gateway.store import runs as run_store
from gateway.store.database import Database, StoreUnavailable
from gateway.store.runs import Run

# A store that takes longer counts as unreachable, and calls are served without it. The query itself may run for 30 s.
_WAIT_S: Final = 2.0
_Key = tuple[str, str]  # project, run


class RunLookups:
    def __init__(self, store: Database) -> None:
        self._store = store
        self._waiting: dict[_Key, asyncio.Future[Run | None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._asked_at_s = 0.0

    async def get(self, project: str, run: str) -> Run | None:
        """Raises `StoreError` after two seconds at most, or at once while a query is overdue."""
        if self._reading is not None and time.monotonic() - self._asked_at_s > _WAIT_S:
            raise StoreUnavailable("The store does not answer.")
        key = (project, run)
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._reading is None:
            self._asked_at_s = time.monotonic()
            self._reading = asyncio.create_task(self._read(), name="run-lookups")
        try:
            async with asyncio.timeout(_WAIT_S):
                return await asyncio.shield(answer)  # others may be waiting for the same answer
        except TimeoutError:
            raise StoreUnavailable("The store does not answer.") from None

    async def _read(self) -> None:
        try:
            while self._waiting:
                lookups, self._waiting = self._waiting, {}
                by_project: dict[str, list[str]] = defaultdict(list)
                for project, run in lookups:
                    by_project[project].append(run)
                for project, names in by_project.items():
                    await self._answer(project, names, lookups)
        finally:
            self._reading = None

    async def _answer(self, project: str, names: list[str], lookups: dict[_Key, asyncio.Future[Run | None]]) -> None:
        self._asked_at_s = time.monotonic()
        try:
            runs = await run_store.get_many(self._store, project, names)
        except Exception as error:  # noqa: BLE001 - passed on to the callers
            for name in names:
                lookups[project, name].set_exception(error)
                lookups[project, name].exception()  # marks it as retrieved: its callers may be gone
            return
        for name in names:
            lookups[project, name].set_result(runs.get(name))
