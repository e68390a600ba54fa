"""The operations of every ledger. Engines: memory (the in-process twin), sqlite (embedded), redis (many processes).

Each method is one atomic operation: it validates everything and then writes, or it changes nothing. Amounts are integers up
to 2^53 − 1. Deadlines follow the ledger's own clock. The state of each project is independent of all other projects.

Errors: `LedgerUnavailable` if the engine cannot be reached in time (the outcome is then unknown; every method may be repeated
with the same ids and takes effect once), `LedgerError` for bugs and for a damaged ledger.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from policies.amounts import Amount, Limit
from policies.reservation import Balance, Decision, Demand, Gate, Hold, Progress, Reserve
from policies.settlement import EntryKind, ExpiredReservation, OutboxEntry, Resolution

__all__ = [
    "BackingLedger",
    "EntryKind",
    "ExpiredReservation",
    "Ledger",
    "LedgerError",
    "LedgerUnavailable",
    "LocalGrants",
    "OutboxEntry",
    "Progress",
    "Rebuild",
    "Reserve",
    "Resolution",
    "Restore",
    "UnsavedEntries",
]


Restore = Callable[[str, Amount, int, Gate | None, Limit | None], Awaitable[None]]
"""Sets what one account (name, settled, keep_ms) has settled, and the gate and override that people set."""
UnsavedEntries = AsyncIterator[Sequence[OutboxEntry]]
"""Batches of what remains in a project's outbox. The store may have some of the events, and gets all of them again later."""
Rebuild = Callable[[str, Restore, UnsavedEntries], Awaitable[None]]
"""Restores all accounts of a project from the store. Called before a project without data in Redis is used, because it is new
or Redis has lost it. It must first bring the unsaved events to the store, and raise if it cannot determine the sums."""


class LedgerError(Exception):
    """The ledger is damaged or was called wrongly."""


class LedgerInUse(LedgerError):
    """The ledger's file belongs to another process."""


class LedgerUnavailable(LedgerError):
    """The ledger did not answer in time. Try again; ids make retries safe."""


class CountersMissing(LedgerUnavailable):
    """The ledger answers, but does not know what this project has settled. It is being restored."""


class LocalGrants(Protocol):
    """Grants of a process while the ledger is away: at most its part of what was left when the ledger was last seen.

    For calls whose enforced budgets all say `on_outage: allow`, after the ledger has raised `LedgerUnavailable`. What is
    granted here is settled and voided through the ledger as usual. Both methods raise `LedgerUnavailable` once the part is
    used up.
    """

    async def reserve_locally(self, project: str, request: Reserve) -> Decision: ...

    async def extend_locally(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand) -> Decision:
        """For a reservation of this process, made with or without the ledger."""


class Ledger(Protocol):
    async def open(self) -> None:
        """Connect, check that the engine is fit to keep money (errors say what to do), and create what is missing."""

    async def close(self) -> None: ...

    async def now_ms(self) -> int:
        """The ledger's clock, in ms since the epoch."""

    async def reserve(self, project: str, request: Reserve) -> Decision:
        """Set the demand aside on every account of the chain, or on none. A refusal changes nothing but tightened limits, which stay.

        While the id is known, even if it is resolved, a repeated request returns the first grant again (no breaches, current
        balances). Raises `LedgerError` if the id belongs to a reservation on other accounts.
        """

    async def extend(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand) -> Decision:
        """Enlarge a pending hold by `extra` (without requests). `Granted.held` and `output_tokens` are the new totals.

        `holds` are the reservation's accounts with the limits that apply now. Gates do not stop an extension, and it does not
        move the deadline. A retry after a lost reply may hold more than was asked for, but never more than fits.
        """

    async def renew(self, project: str, progress: Sequence[Progress], ttl_ms: int) -> tuple[str, ...]:
        """Move the deadlines to now + `ttl_ms`; progress never goes back. Returns the ids that are not pending any more.

        A deadline alone ends nothing: until the sweeper has come, the reservation is pending and can be renewed.
        """

    async def settle(self, project: str, reservation_id: str, used: Amount, detail: bytes) -> Resolution:
        """Book `used` in full on every account, free the rest of the hold, and write the outbox entry, all atomically."""

    async def void(self, project: str, reservation_id: str) -> Resolution:
        """Release the whole hold: nothing was spent. Writes no outbox entry, unless it takes back what an expiry has booked."""

    async def expire_due(self, limit: int = 1000) -> Sequence[ExpiredReservation]:
        """Resolve up to `limit` reservations of all projects whose deadline has been reached, by their `on_lost`."""

    async def record(self, project: str, entries: Sequence[OutboxEntry]) -> None:
        """Append events without a reservation. The store ignores an id that was recorded before.

        Does not touch any account. `at_ms` 0 becomes the ledger's time.
        """

    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]:
        """The current balances; an unknown account is all zeros. `limit` is what the ledger itself knows (override, tightened)."""

    async def set_override(self, project: str, account: str, limit: Limit) -> Balance:
        """Replace the account's limit, and forget what callers tightened it to. `UNLIMITED` removes the override."""

    async def set_gate(self, project: str, account: str, gate: Gate) -> Balance: ...

    async def current_run(self, project: str, workflow: str, candidate: str, silence_ms: int) -> str:
        """The implicit run of a workflow: the one seen less than its `silence_ms` ago, else `candidate`. This call counts as
        seeing it."""

    async def pending(self, project: str, limit: int = 1000) -> Sequence[tuple[str, str, Amount, int]]:
        """(id, owner, held, deadline_ms) of pending reservations, oldest deadline first, then by id."""

    async def outbox_read(self, consumer: str, limit: int = 1000) -> Sequence[OutboxEntry]:
        """The oldest unacknowledged entries of all projects. Reading removes nothing: the same consumer gets them again at
        once, another one if they are not acknowledged within 30 s of the last read."""

    async def outbox_acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        """Remove entries that the store has committed. Unknown positions are ignored."""

    async def outbox_size(self) -> int: ...

    async def restore(
        self,
        project: str,
        account: str,
        settled: Amount,
        keep_ms: int,
        gate: Gate | None = None,
        override: Limit | None = None,
    ) -> None:
        """Set what an account has settled, after the ledger's data was lost, and what people decided about it (None:
        unchanged). Reserved amounts are not changed."""

    async def epoch(self) -> str:
        """An id that changes when the ledger's data was lost (flushed, replaced). Created by the first `open`."""

    async def purge(self, limit: int = 1000) -> int:
        """Forget accounts and reservations whose keep time is over (resolved: 1 h, expired: 7 days). Returns how many."""


class BackingLedger(Ledger, Protocol):
    """A ledger that may be unreachable for a while, and can be told afterwards what happened meanwhile."""

    @property
    def warnings(self) -> tuple[str, ...]: ...

    async def book(self, project: str, request: Reserve, held: Amount, used: Amount, detail: bytes) -> Resolution:
        """Settle a reservation that the ledger may never have seen."""

    async def ready(self, project: str) -> None:
        """Return when the project's counters are known. Raises `CountersMissing` if they are not after a while."""

    async def processes(self) -> int:
        """Announce this process, and count those that are alive. Writes, so that it fails if writing fails."""
