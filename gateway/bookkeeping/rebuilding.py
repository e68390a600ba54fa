"""Restores the counters of a ledger that lost them, from the store's sums, after the rest of the outbox was moved there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import structlog
from sqlalchemy import select

from gateway.bookkeeping import reconcile
from gateway.control import Snapshot
from gateway.ledger.port import Ledger, Restore, UnsavedEntries
from gateway.store import usage, versions
from gateway.store.database import Database, StoreUnavailable
from gateway.store.tables import runs, usage_daily
from policies.budgets import Budget

_log = structlog.get_logger(__name__)
_EPOCH: Final = "ledger_epoch"


class Rebuilding:
    """A Redis ledger calls this before a project's enforced traffic continues; an embedded ledger is checked at the start."""

    def __init__(
        self,
        store: Database,
        *,
        budgets: Callable[[], Sequence[Budget]],
        snapshot: Callable[[], Snapshot],
        clock_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._budgets = budgets
        self._snapshot = snapshot
        self._clock_ms = clock_ms

    async def __call__(self, project: str, restore: Restore, unsaved: UnsavedEntries) -> None:
        """Raises `StoreUnavailable` if the sums are not known: then the project waits, rather than spend twice."""
        async for entries in unsaved:
            # They stay in the outbox, but are stored only once. The flusher cannot do this, because it waits for this project.
            await usage.insert_entries(self._store, entries, self._clock_ms())
        await self._rebuild(project, restore, self._clock_ms())

    async def of_embedded(self, ledger: Ledger) -> None:
        """Restore a ledger that is not the one the store saw before: its file was lost, or moved away because it was damaged."""
        epoch = await ledger.epoch()
        try:
            known_epoch = await versions.get_value(self._store, _EPOCH)
            if known_epoch == epoch:
                return
            if known_epoch is not None:
                for project in await self._projects():
                    await self._rebuild(project, partial(ledger.restore, project), await ledger.now_ms())
            await versions.put_value(self._store, _EPOCH, epoch)
        except StoreUnavailable as error:
            _log.warning("ledger_not_compared", error=str(error))

    async def _rebuild(self, project: str, restore: Restore, now_ms: int) -> None:
        keys = self._snapshot().keys.values()
        accounts = await reconcile.rebuild(restore, self._store, project, now_ms, self._budgets(), keys)
        if accounts:
            _log.warning("ledger_rebuilt", project=project, accounts=accounts)

    async def _projects(self) -> list[str]:
        async with self._store.read() as connection:
            rows = await connection.execute(select(runs.c.project).union(select(usage_daily.c.project)))
            return sorted(rows.scalars())
