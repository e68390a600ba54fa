"""What every ledger can do. Engines: memory (the twin, in this process), sqlite (embedded), redis (many processes).

Each method is one atomic operation: it validates everything, then writes, or changes nothing. Amounts are integers up to
2^53 − 1. Deadlines are kept by the ledger's own clock. All state of one project is independent of every other project's.

Errors: `LedgerUnavailable` when the engine cannot be reached in time (nothing is known about the outcome; every method may
be repeated with the same ids and takes effect once), `LedgerError` for what is a bug or a damaged ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from policies.amounts import Amount, Limit
from policies.reservation import Balance, Decision, Demand, Gate, Hold, Progress, Reserve
from policies.settlement import EntryKind, Lost, OutboxEntry, Resolution

__all__ = [
    "EntryKind",
    "Ledger",
    "LedgerError",
    "LedgerUnavailable",
    "LocalGrants",
    "Lost",
    "OutboxEntry",
    "Progress",
    "Reserve",
    "Resolution",
]


class LedgerError(Exception):
    """The ledger is damaged or was called wrongly."""


class LedgerInUse(LedgerError):
    """Its file belongs to another process."""


class LedgerUnavailable(LedgerError):
    """The ledger did not answer in time. Try again; ids make repetition safe."""


class CountersMissing(LedgerUnavailable):
    """The ledger answers, and does not know what this project has settled. It is being restored."""


class LocalGrants(Protocol):
    """What a process may still grant while the ledger is away: at most its part of what was left when it was last seen.

    For calls whose every enforced budget says `on_outage: allow`, after the ledger has raised `LedgerUnavailable`. What is
    granted here is settled and voided through the ledger as ever. Both raise `LedgerUnavailable` when the part is used up.
    """

    async def reserve_locally(self, project: str, request: Reserve) -> Decision: ...

    async def extend_locally(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand) -> Decision:
        """For a reservation that this process made, with the ledger or without it."""


class Ledger(Protocol):
    async def open(self) -> None:
        """Connect, check that the engine is fit to keep money (errors say what to do), and create what is missing."""

    async def close(self) -> None: ...

    async def now_ms(self) -> int:
        """The ledger's clock, in ms since the epoch."""

    async def reserve(self, project: str, request: Reserve) -> Decision:
        """Set aside the demand on every account of the chain, or on none. A refusal leaves no trace.

        While the id is known, whatever became of it, asking again is answered with what was granted the first time
        (no breaches, balances as they are now). `LedgerError`: the id stands for a reservation on other accounts.
        """

    async def extend(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand) -> Decision:
        """Enlarge a pending hold by `extra` (its requests 0). `Granted.held` and `output_tokens` are the new totals.

        `holds` are the accounts of the reservation, with the limits that apply now. Gates do not stop an extension, and
        it does not move the deadline. Repeated after a lost answer it holds more than was asked for, never more than fits.
        """

    async def renew(self, project: str, progress: Sequence[Progress], ttl_ms: int) -> tuple[str, ...]:
        """Move the deadlines to now + `ttl_ms`; progress never goes back. Returns the ids that are not pending any more.

        A deadline that has passed is no end: until the sweeper has come, a reservation is pending and can be renewed.
        """

    async def settle(self, project: str, reservation_id: str, used: Amount, detail: bytes) -> Resolution:
        """Book `used` in full on every account, free the rest, and write the outbox entry, all at once."""

    async def void(self, project: str, reservation_id: str) -> Resolution:
        """Give the whole hold back: nothing was spent. Writes no outbox entry, unless it takes back what an expiry has booked."""

    async def expire_due(self, limit: int = 1000) -> Sequence[Lost]:
        """Resolve up to `limit` reservations of all projects whose deadline is now or earlier, by their `on_lost`."""

    async def record(self, project: str, entries: Sequence[OutboxEntry]) -> None:
        """Append events that no reservation stands behind. An id that was recorded before is left alone by the store.

        No account is touched. `at_ms` 0 becomes the ledger's time.
        """

    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]:
        """What the accounts stand at; an unknown account is all zeros. `limit` is what the ledger itself knows (override, tightened)."""

    async def set_override(self, project: str, account: str, limit: Limit) -> Balance:
        """Replace the account's limit, and forget what callers had tightened it to. `UNLIMITED` takes the override back."""

    async def set_gate(self, project: str, account: str, gate: Gate) -> Balance: ...

    async def current_run(self, project: str, workflow: str, candidate: str, silence_ms: int) -> str:
        """The implicit run of a workflow: the one seen less than its `silence_ms` ago, else `candidate` becomes it. Seeing it keeps it."""

    async def pending(self, project: str, limit: int = 1000) -> Sequence[tuple[str, str, Amount, int]]:
        """(id, owner, held, deadline_ms) of reservations that are not resolved, oldest deadline first, then by id."""

    async def outbox_read(self, consumer: str, limit: int = 1000) -> Sequence[OutboxEntry]:
        """The oldest entries that nobody acknowledged, of all projects. Reading takes nothing away: the same consumer gets
        them again, another one when they were not acknowledged within 30 s of the last reading."""

    async def outbox_acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        """Forget entries that the store has committed. Unknown positions are ignored."""

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
        """Set what an account has settled, after the ledger was lost, and what people decided about it (None: as it is). Reserved
        amounts are left as they are."""

    async def epoch(self) -> str:
        """An id that changes when the ledger's data was lost (flushed, replaced). Made at first `open`."""

    async def purge(self, limit: int = 1000) -> int:
        """Forget accounts and reservations whose keep time is over (resolved ones: 1 h, expired ones: 7 days). Returns how many."""
