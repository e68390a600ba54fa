"""The in-memory twin: the pure `Book` behind the ledger port. It loses everything when its process ends."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from gateway.ledger import checks
from gateway.ledger.clock import SteadyClock, wall_clock_ms
from gateway.ledger.port import ExpiredReservation, LedgerError, OutboxEntry, Progress, Reserve, Resolution
from policies.amounts import Amount, Limit
from policies.book import Book, DictStorage
from policies.reservation import Balance, Decision, Demand, Gate, Hold

P = ParamSpec("P")
R = TypeVar("R")


class MemoryLedger:
    """`clock_ms` gives the time in ms since the epoch; the ledger's own clock follows it and never goes back."""

    def __init__(self, *, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._clock = SteadyClock(clock_ms)
        self._book = Book(DictStorage())
        self._epoch = secrets.token_hex(8)

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to close: a twin may be opened again, and keeps its data."""

    async def now_ms(self) -> int:
        return self._clock.now_ms()

    async def reserve(self, project: str, request: Reserve) -> Decision:
        checks.check_reserve(request)
        return _call_book(self._book.reserve, project, request, self._clock.now_ms())

    async def extend(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand) -> Decision:
        checks.check_holds(holds)
        checks.check_extra(extra)
        return _call_book(self._book.extend, project, reservation_id, holds, extra, self._clock.now_ms())

    async def renew(self, project: str, progress: Sequence[Progress], ttl_ms: int) -> tuple[str, ...]:
        checks.check_progress(progress, ttl_ms)
        return self._book.renew(project, progress, ttl_ms, self._clock.now_ms())

    async def settle(self, project: str, reservation_id: str, used: Amount, detail: bytes) -> Resolution:
        checks.check_amount("used", used)
        return self._book.settle(project, reservation_id, used, detail, self._clock.now_ms())

    async def void(self, project: str, reservation_id: str) -> Resolution:
        return self._book.void(project, reservation_id, self._clock.now_ms())

    async def expire_due(self, limit: int = 1000) -> Sequence[ExpiredReservation]:
        return self._book.expire_due(limit, self._clock.now_ms())

    async def record(self, project: str, entries: Sequence[OutboxEntry]) -> None:
        checks.check_entries(entries)
        self._book.record(project, entries, self._clock.now_ms())

    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]:
        return self._book.balances(project, accounts, self._clock.now_ms())

    async def set_override(self, project: str, account: str, limit: Limit) -> Balance:
        checks.check_limit(limit)
        return self._book.set_override(project, account, limit, self._clock.now_ms())

    async def set_gate(self, project: str, account: str, gate: Gate) -> Balance:
        return self._book.set_gate(project, account, gate, self._clock.now_ms())

    async def current_run(self, project: str, workflow: str, candidate: str, silence_ms: int) -> str:
        checks.check_count("silence_ms", silence_ms)
        return self._book.current_run(project, workflow, candidate, silence_ms, self._clock.now_ms())

    async def pending(self, project: str, limit: int = 1000) -> Sequence[tuple[str, str, Amount, int]]:
        return self._book.pending(project, limit, self._clock.now_ms())

    async def outbox_read(self, consumer: str, limit: int = 1000) -> Sequence[OutboxEntry]:
        return self._book.outbox_read(consumer, limit, self._clock.now_ms())

    async def outbox_acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        self._book.outbox_acknowledge(entries, self._clock.now_ms())

    async def outbox_size(self) -> int:
        return self._book.outbox_size(self._clock.now_ms())

    async def restore(
        self,
        project: str,
        account: str,
        settled: Amount,
        keep_ms: int,
        gate: Gate | None = None,
        override: Limit | None = None,
    ) -> None:
        checks.check_amount("settled", settled)
        checks.check_count("keep_ms", keep_ms)
        if override is not None:
            checks.check_limit(override)
        self._book.restore(project, account, settled, keep_ms, gate, override, self._clock.now_ms())

    async def epoch(self) -> str:
        return self._epoch

    async def purge(self, limit: int = 1000) -> int:
        return self._book.purge(limit, self._clock.now_ms())


def _call_book(operation: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
    """Call the book, and turn its ValueErrors into errors of the port."""
    try:
        return operation(*arguments, **keywords)
    except ValueError as error:
        raise LedgerError(str(error)) from error
