"""Counters for a ledger that lost them: summed up from the store, after what is left of the outbox was brought there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from gateway import reconcile
from gateway.control import Snapshot
from gateway.ledger.port import OutboxEntry
from gateway.store import usage
from gateway.store.database import Database
from policies.amounts import Amount, Limit
from policies.budgets import Budget
from policies.reservation import Balance, Gate

if TYPE_CHECKING:
    from gateway.ledger.redis_projects import Restore, Unsaved

_log = structlog.get_logger(__name__)


class Rebuilding:
    """Called by the ledger before it lets enforced traffic of a project go on."""

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

    async def __call__(self, project: str, restore: Restore, unsaved: Unsaved) -> None:
        """Raises `StoreUnavailable` when the sums cannot be known: the project waits then, rather than spend twice."""
        async for entries in unsaved:
            # They stay in the outbox, and land once all the same: the flusher cannot be asked, for it waits for this project.
            await usage.insert_entries(self._store, entries, self._clock_ms())
        key_names = {key.id: key.name for key in self._snapshot().keys.values()}
        books = _RestoringBooks(restore, self._clock_ms)
        accounts = await reconcile.rebuild(books, self._store, project, self._budgets(), key_names)
        if accounts:
            _log.warning("ledger_rebuilt", project=project, accounts=accounts)


class _RestoringBooks:
    """The ledger as `reconcile.rebuild` needs it while the ledger itself is not open for business yet."""

    def __init__(self, restore: Restore, clock_ms: Callable[[], int]) -> None:
        self._restore = restore
        self._clock_ms = clock_ms

    async def now_ms(self) -> int:
        return self._clock_ms()

    async def restore(
        self,
        project: str,
        account: str,
        settled: Amount,
        keep_ms: int,
        gate: Gate | None = None,
        override: Limit | None = None,
    ) -> None:
        await self._restore(account, settled, keep_ms, gate, override)

    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]:
        raise NotImplementedError("a ledger that is being restored has no balances to compare")

    async def record(self, project: str, entries: Sequence[OutboxEntry]) -> None:
        raise NotImplementedError("a ledger that is being restored takes no entries")

    async def outbox_size(self) -> int:
        return 0
