"""What every ledger can do. Engines: memory (the twin, in this process), sqlite (embedded), redis (many processes).

Each method is one atomic operation: it validates everything, then writes, or changes nothing. Amounts are integers up to
2^53 − 1. Deadlines are kept by the ledger's own clock. All state of one project is independent of every other project's.

Errors: `LedgerUnavailable` when the engine cannot be reached in time (nothing is known about the outcome; every method may
be repeated with the same ids and takes effect once), `LedgerError` for what is a bug or a damaged ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from policies.amounts import ZERO, Amount, Limit
from policies.reservation import Balance, Decision, Demand, Gate, Hold, OnLost, State


class LedgerError(Exception):
    """The ledger is damaged or was called wrongly."""


class LedgerUnavailable(LedgerError):
    """The ledger did not answer in time. Try again; ids make repetition safe."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """A reservation asked for. `id` is chosen by the gateway: asking again with the same id gives the first answer."""

    id: str
    owner: str  # the gateway process; for people who look, never for decisions
    holds: tuple[Hold, ...]
    demand: Demand
    ttl_ms: int
    draft: bytes  # the usage event as far as it is known now; completed by whoever resolves the reservation
    on_lost: OnLost = OnLost.CHARGE


@dataclass(frozen=True, slots=True)
class Progress:
    """A sign of life. `amount` is what was used so far, prompt included, and `ZERO` until the request was sent upstream:
    a hold lost before that is released whatever `on_lost` says."""

    id: str
    amount: Amount = ZERO


class EntryKind(StrEnum):
    SETTLED = "settled"
    EXPIRED = "expired"  # booked (or released: a zero amount) by the sweeper
    LATE = "late"  # the difference that a late settlement made; its id is `<reservation>:late`
    RECORDED = "recorded"  # no reservation: untagged calls and refusals
    REPAIR = "repair"  # an explicit correction by `farebox reconcile`


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A usage event on its way to the store, where `id` makes it land once."""

    position: str  # the engine's own handle for `acknowledge`; empty before it is written
    id: str
    kind: EntryKind
    project: str
    amount: Amount
    at_ms: int  # the ledger's clock
    draft: bytes  # JSON object from `Reserve.draft`
    detail: bytes = b""  # JSON object from `settle`; its fields beat the draft's
    overrun: Amount = ZERO  # how far `amount` went beyond what was held


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a reservation ended. `first` is False when it had been resolved before: nothing was changed then.

    `state` is None for an id that the ledger does not know (forgotten after its keep time, or never made).
    """

    state: State | None
    first: bool
    booked: Amount
    overrun: Amount
    balances: tuple[Balance, ...]  # in the order of the holds; empty when unknown


@dataclass(frozen=True, slots=True)
class Lost:
    """A reservation that the sweeper resolved because its deadline had passed."""

    id: str
    project: str
    owner: str
    booked: Amount
    released: Amount


class Ledger(Protocol):
    async def open(self) -> None:
        """Connect, check that the engine is fit to keep money (errors say what to do), and create what is missing."""

    async def close(self) -> None: ...

    async def now_ms(self) -> int:
        """The ledger's clock, in ms since the epoch."""

    async def reserve(self, project: str, request: Reserve) -> Decision:
        """Set aside the demand on every account of the chain, or on none."""

    async def extend(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand) -> Decision:
        """Enlarge a pending hold by `extra` (its prompt parts 0, requests 0). `Granted.held` is the new total.

        `holds` are the accounts of the reservation, with the limits that apply now. Gates do not stop an extension.
        """

    async def renew(self, project: str, progress: Sequence[Progress], ttl_ms: int) -> tuple[str, ...]:
        """Move the deadlines to now + `ttl_ms`; progress never goes back. Returns the ids that are not pending any more."""

    async def settle(self, project: str, reservation_id: str, used: Amount, detail: bytes) -> Resolution:
        """Book `used` in full on every account, free the rest, and write the outbox entry, all at once."""

    async def void(self, project: str, reservation_id: str) -> Resolution:
        """Give the whole hold back: nothing was spent. Writes no outbox entry."""

    async def expire_due(self, limit: int = 1000) -> Sequence[Lost]:
        """Resolve up to `limit` reservations of all projects whose deadline has passed, by their `on_lost`."""

    async def record(self, project: str, entries: Sequence[OutboxEntry]) -> None:
        """Append events that no reservation stands behind. An id that was recorded before is left alone by the store."""

    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]:
        """What the accounts stand at; an unknown account is all zeros. `limit` is what the ledger itself knows (override, tightened)."""

    async def set_override(self, project: str, account: str, limit: Limit) -> Balance:
        """Replace the account's limit, and forget what callers had tightened it to. `UNLIMITED` takes the override back."""

    async def set_gate(self, project: str, account: str, gate: Gate) -> Balance: ...

    async def current_run(self, project: str, workflow: str, candidate: str, silence_ms: int) -> str:
        """The implicit run of a workflow: the one seen within `silence_ms`, else `candidate` becomes it. Seeing it keeps it."""

    async def pending(self, project: str, limit: int = 1000) -> Sequence[tuple[str, str, Amount, int]]:
        """(id, owner, held, deadline_ms) of reservations that are not resolved, oldest deadline first."""

    async def outbox_read(self, consumer: str, limit: int = 1000) -> Sequence[OutboxEntry]:
        """The oldest entries that nobody acknowledged, of all projects. Reading takes nothing away; entries that
        another consumer read and did not acknowledge within 30 s are delivered again."""

    async def outbox_acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        """Forget entries that the store has committed. Unknown positions are ignored."""

    async def outbox_size(self) -> int: ...

    async def restore(self, project: str, account: str, settled: Amount, keep_ms: int) -> None:
        """Set what an account has settled, after the ledger was lost. Reserved amounts are left as they are."""

    async def epoch(self) -> str:
        """An id that changes when the ledger's data was lost (flushed, replaced). Made at first `open`."""

    async def purge(self, limit: int = 1000) -> int:
        """Forget accounts and resolved reservations whose keep time is over (resolved reservations: 1 h). Returns how many."""
