"""The life of a reservation, and the one decision that every ledger engine makes.

    event     pending    settled    voided     expired
    -------   --------   --------   --------   --------
    settle    settled    =          =          late
    void      voided     =          =          =
    expire    expired    =          =          =
    extend    pending    refused    refused    refused
    renew     pending    =          =          =

`=`: nothing changes, and the caller is told the first outcome (invariant I2: resolved exactly once). `late` is the one way
out of a resolved state: the owner was taken for dead, its hold was booked or released, and then it reports what it really
used. The difference is booked once, as an adjustment, and the state is final after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from policies.amounts import UNITS, UNLIMITED, ZERO, Amount, Limit, Unit


class State(StrEnum):
    PENDING = "pending"
    SETTLED = "settled"
    VOIDED = "voided"
    EXPIRED = "expired"
    LATE = "late"


class Event(StrEnum):
    SETTLE = "settle"
    VOID = "void"
    EXPIRE = "expire"


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.PENDING, Event.SETTLE): State.SETTLED,
    (State.PENDING, Event.VOID): State.VOIDED,
    (State.PENDING, Event.EXPIRE): State.EXPIRED,
    (State.EXPIRED, Event.SETTLE): State.LATE,
}


def next_state(state: State, event: Event) -> State | None:
    """The state after `event`, or None when the reservation is resolved already and nothing may change."""
    return TRANSITIONS.get((state, event))


class Gate(StrEnum):
    """Whether an account takes new reservations. Holds that exist are resolved in any gate."""

    OPEN = "open"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    COMPLETED = "completed"


class OnLost(StrEnum):
    """What becomes of a hold whose owner died: booked at its last reported progress, or given back."""

    CHARGE = "charge"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Hold:
    """One account of the chain that a call is reserved on.

    `limit` is what applies now (configuration, allocation); `tighten` is remembered by the account and only ever lowers it;
    an override set by an operator replaces `limit`. With `enforce` False the account counts and reports a breach, and never refuses.
    `keep_ms` is how long the account is remembered after its last use.
    """

    account: str
    limit: Limit = UNLIMITED
    tighten: Limit = UNLIMITED
    enforce: bool = True
    keep_ms: int = 7 * 86_400_000


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call may cost at worst: its prompt, and `choices` answers of at most `output_tokens_max` tokens each.

    The ledger may grant fewer output tokens, down to `output_tokens_min` for each choice; below that it refuses.
    Equal values mean: all or nothing.
    """

    prompt_tokens: int
    output_tokens_max: int
    output_tokens_min: int
    prompt_nano_usd: int = 0
    output_nano_usd_per_token: int = 0
    choices: int = 1
    requests: int = 1

    def amount(self, output_tokens: int) -> Amount:
        """What is held when each choice may have `output_tokens`."""
        produced = self.choices * output_tokens
        return Amount(
            self.prompt_tokens + produced,
            self.prompt_nano_usd + produced * self.output_nano_usd_per_token,
            self.requests,
        )

    @property
    def prompt_amount(self) -> Amount:
        return self.amount(0)


@dataclass(frozen=True, slots=True)
class Account:
    """What the ledger knows of one scope in one window."""

    settled: Amount = ZERO
    reserved: Amount = ZERO
    override: Limit = UNLIMITED
    tightened: Limit = UNLIMITED
    gate: Gate = Gate.OPEN

    def effective_limit(self, limit: Limit, tighten: Limit = UNLIMITED) -> Limit:
        """The limit that counts: the operator's override over the given one, never above what callers tightened it to."""
        return limit.replaced_by(self.override).tightened_by(self.tightened).tightened_by(tighten)


@dataclass(frozen=True, slots=True)
class Balance:
    """An account as its owner sees it. remaining = limit − settled − reserved, and is negative after an overrun."""

    account: str
    limit: Limit
    settled: Amount
    reserved: Amount
    gate: Gate = Gate.OPEN

    def remaining(self, unit: Unit) -> int | None:
        limit = self.limit.of(unit)
        return None if limit is None else limit - self.settled.of(unit) - self.reserved.of(unit)


@dataclass(frozen=True, slots=True)
class Granted:
    reservation_id: str
    output_tokens: int  # for each choice
    held: Amount
    deadline_ms: int
    now_ms: int  # the ledger's clock
    balances: tuple[Balance, ...]  # in the order of the holds, this reservation included
    breaches: tuple[str, ...] = ()  # observed accounts that would have refused


class Refusal(StrEnum):
    EXCEEDED = "exceeded"  # it does not fit into what is left
    BUSY = "busy"  # it would fit were it not for other holds: worth waiting
    TOO_LARGE = "too_large"  # it would not fit into the whole, empty budget
    GATE = "gate"  # the account is paused, cancelled or completed
    RESOLVED = "resolved"  # extend only: the reservation is not pending any more


@dataclass(frozen=True, slots=True)
class Refused:
    """Why not, by the first account of the chain that stands in the way for good (or, if none does, for now)."""

    reason: Refusal
    account: str
    unit: Unit | None
    needed: int
    balance: Balance
    now_ms: int


Decision = Granted | Refused


@dataclass(frozen=True, slots=True)
class Fit:
    """The outcome of `fit`: output tokens for each choice, or the index of the account that refuses."""

    output_tokens: int
    refused: tuple[int, Refusal, Unit | None] | None = None
    breaches: tuple[int, ...] = ()


_SEVERITY: Final = (Refusal.GATE, Refusal.TOO_LARGE, Refusal.EXCEEDED, Refusal.BUSY)


def fit(demand: Demand, holds: Sequence[Hold], accounts: Sequence[Account], *, extending: bool = False) -> Fit:
    """Does `demand` fit into every account at once, and with how many output tokens? Changes nothing.

    A gate refuses new reservations, not the growth of one that was let in (`extending`).
    """
    needed = demand.amount(demand.output_tokens_min)
    refusals: list[tuple[int, Refusal, Unit | None]] = []
    breaches: list[int] = []
    output_tokens = demand.output_tokens_max
    for index, (hold, account) in enumerate(zip(holds, accounts, strict=True)):
        verdict = _verdict(hold, account, needed, extending)
        if verdict is None:
            if hold.enforce:
                output_tokens = min(output_tokens, _output_room(demand, hold, account))
        elif hold.enforce or verdict[0] is Refusal.GATE:
            refusals.append((index, *verdict))
        else:
            breaches.append(index)
    if refusals:
        return Fit(0, min(refusals, key=lambda one: (_SEVERITY.index(one[1]), one[0])), tuple(breaches))
    return Fit(output_tokens, None, tuple(breaches))


def _verdict(hold: Hold, account: Account, needed: Amount, extending: bool) -> tuple[Refusal, Unit | None] | None:
    if account.gate is not Gate.OPEN and not extending:
        return Refusal.GATE, None
    limit = account.effective_limit(hold.limit, hold.tighten)
    found: tuple[Refusal, Unit | None] | None = None
    for unit in UNITS:
        most = limit.of(unit)
        wanted = needed.of(unit)
        if most is None or wanted <= most - account.settled.of(unit) - account.reserved.of(unit) or wanted == 0:
            continue
        if wanted > most:
            return Refusal.TOO_LARGE, unit
        if wanted > most - account.settled.of(unit):
            return Refusal.EXCEEDED, unit
        found = found or (Refusal.BUSY, unit)
    return found


def _output_room(demand: Demand, hold: Hold, account: Account) -> int:
    """Output tokens for each choice that the account has room for beside the prompt. At least `output_tokens_min`: `_verdict` saw to it."""
    limit = account.effective_limit(hold.limit, hold.tighten)
    room = demand.output_tokens_max
    if limit.tokens is not None:
        free = limit.tokens - account.settled.tokens - account.reserved.tokens - demand.prompt_tokens
        room = min(room, free // demand.choices)
    if limit.nano_usd is not None and demand.output_nano_usd_per_token > 0:
        free = limit.nano_usd - account.settled.nano_usd - account.reserved.nano_usd - demand.prompt_nano_usd
        room = min(room, free // (demand.output_nano_usd_per_token * demand.choices))
    return max(room, demand.output_tokens_min)
