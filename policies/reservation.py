"""The life cycle of a reservation, and the decision that every ledger engine makes.

    event     pending    settled    voided     expired
    -------   --------   --------   --------   --------
    settle    settled    =          =          late
    void      voided     =          =          late
    expire    expired    =          =          =
    extend    pending    refused    refused    refused
    renew     pending    =          =          =

`=`: nothing changes, and the caller gets the first outcome again (invariant I2: resolved exactly once). `late` is the only
way out of a resolved state: the owner was considered dead and its hold was booked or released, and then it reports what it
really used, or that it used nothing. The difference is booked once, as an adjustment, and the state is then final.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Final

from policies.amounts import AMOUNT_MAX, UNITS, UNLIMITED, ZERO, Amount, Limit, Unit
from policies.values import value_class


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
    (State.EXPIRED, Event.VOID): State.LATE,
}


def next_state(state: State, event: Event) -> State | None:
    """The state after `event`, or None if the reservation is already resolved and must not change."""
    return TRANSITIONS.get((state, event))


# Runs are of interest for days after their last call; holds that need longer (a monthly window) say so.
KEEP_MS: Final = 7 * 86_400_000
# How long a resolved reservation answers repeated requests. An expired one waits longer, for a settlement that may still
# come, from a gateway that was cut off from the ledger or from the disk of one that died. After that it would be booked a
# second time.
RESOLVED_KEEP_MS: Final = 3_600_000
EXPIRED_KEEP_MS: Final = KEEP_MS


class Gate(StrEnum):
    """Whether an account takes new reservations. Existing holds are resolved in any state of the gate."""

    OPEN = "open"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    LOOPING = "looping"  # paused by the loop breaker


class OnLost(StrEnum):
    """What happens to a hold whose owner died: it is booked whole, or released.

    What the provider did for a dead owner is unknown. Only the whole hold is certain to cover it, so that nothing is
    granted twice.
    """

    CHARGE = "charge"
    RELEASE = "release"


@value_class
class Hold:
    """One account of the chain that a call is reserved on.

    `limit` is what applies now (configuration, allocation). `tighten` is remembered by the account and can only lower the
    limit. An operator's override replaces `limit`. With `enforce` False the account counts and reports breaches, but never
    refuses. `keep_ms` is how long the account is remembered after its last use.
    """

    account: str
    limit: Limit = UNLIMITED
    tighten: Limit = UNLIMITED
    enforce: bool = True
    keep_ms: int = KEEP_MS


@value_class
class Demand:
    """The worst case of a call: its prompt, and `choices` answers of at most `output_tokens_max` tokens each.

    The ledger may grant fewer output tokens, down to `output_tokens_min` for each choice; below that it refuses. Equal values
    mean all or nothing.
    """

    prompt_tokens: int
    output_tokens_max: int
    output_tokens_min: int
    prompt_nano_usd: int = 0
    output_nano_usd_per_token: int = 0
    choices: int = 1
    requests: int = 1

    def amount(self, output_tokens: int) -> Amount:
        """The amount held if each choice may have `output_tokens`."""
        produced = self.choices * output_tokens
        return Amount(
            self.prompt_tokens + produced,
            self.prompt_nano_usd + produced * self.output_nano_usd_per_token,
            self.requests,
        )

    @property
    def prompt_amount(self) -> Amount:
        return self.amount(0)


@value_class
class Reserve:
    """A request for a reservation. The gateway chooses `id`: a repeated request with the same id gets the first answer."""

    id: str
    owner: str  # the gateway process; for display, never for decisions
    holds: tuple[Hold, ...]
    demand: Demand
    ttl_ms: int
    # The usage event as far as it is known now; completed when the reservation is resolved.
    draft: bytes
    on_lost: OnLost = OnLost.CHARGE


@value_class
class Progress:
    """A heartbeat. `amount` is what was used so far, prompt included. `on_lost` says what to do with the hold if this was the
    last one (None: as before). An owner that has sent nothing yet may say RELEASE; that counts only while no use was
    reported, so that a delayed message cannot take anything back."""

    id: str
    amount: Amount = ZERO
    on_lost: OnLost | None = None


@value_class
class Account:
    """The ledger's record of one scope in one window. It may be forgotten `keep_ms` after `used_ms`, its last use."""

    settled: Amount = ZERO
    reserved: Amount = ZERO
    override: Limit = UNLIMITED
    tightened: Limit = UNLIMITED
    gate: Gate = Gate.OPEN
    keep_ms: int = KEEP_MS
    used_ms: int = 0

    def effective_limit(self, limit: Limit, tighten: Limit = UNLIMITED) -> Limit:
        """The limit that applies: the operator's override before the given one, but at most what callers tightened it to."""
        # Most accounts have neither; testing identity first halves the cost of a reservation.
        if self.override is not UNLIMITED:
            limit = limit.replaced_by(self.override)
        if self.tightened is not UNLIMITED:
            limit = limit.tightened_by(self.tightened)
        return limit if tighten is UNLIMITED else limit.tightened_by(tighten)

    def balance(self, name: str, limit: Limit = UNLIMITED, tighten: Limit = UNLIMITED) -> Balance:
        return Balance(name, self.effective_limit(limit, tighten), self.settled, self.reserved, self.gate)


@value_class
class Reservation:
    """The ledger's record of a reservation: while it is pending, and for a while after it was resolved.

    `limits` are those of the chain at the last grant; balances after the settlement are reported against them.
    """

    id: str
    owner: str
    accounts: tuple[str, ...]
    limits: tuple[Limit, ...]
    held: Amount
    output_tokens: int  # for each choice
    deadline_ms: int
    on_lost: OnLost
    draft: bytes  # empty once it cannot be needed any more
    state: State = State.PENDING
    progress: Amount = ZERO
    booked: Amount = ZERO
    overrun: Amount = ZERO
    resolved_ms: int = 0


@value_class
class Balance:
    """An account as its owner sees it. remaining = limit − settled − reserved, which is negative after an overrun."""

    account: str
    limit: Limit
    settled: Amount
    reserved: Amount
    gate: Gate = Gate.OPEN

    def remaining(self, unit: Unit) -> int | None:
        limit = self.limit.of(unit)
        return None if limit is None else limit - self.settled.of(unit) - self.reserved.of(unit)


@value_class
class Granted:
    reservation_id: str
    output_tokens: int  # for each choice
    held: Amount
    deadline_ms: int
    now_ms: int  # the ledger's clock
    balances: tuple[Balance, ...]  # in the order of the holds, this reservation included
    breaches: tuple[str, ...] = ()  # observed accounts that would have refused

    @property
    def limits_money(self) -> bool:
        """Whether any account limits money, as the ledger knows it: an operator's override is in no chain."""
        return any(balance.limit.nano_usd is not None for balance in self.balances)


class Refusal(StrEnum):
    EXCEEDED = "exceeded"  # it does not fit into what is left
    BUSY = "busy"  # it would fit without other holds: worth waiting
    TOO_LARGE = "too_large"  # it would not even fit into the whole, empty budget
    GATE = "gate"  # the account is paused, cancelled or completed
    RESOLVED = "resolved"  # extend only: the reservation is not pending any more


@value_class
class Refused:
    """The reason for a refusal: the first account of the chain that refuses for good (or, if none does, for now)."""

    reason: Refusal
    account: str
    unit: Unit | None
    needed: int
    balance: Balance
    now_ms: int
    balances: tuple[Balance, ...] = ()  # of all accounts of the request, in the order of the holds


Decision = Granted | Refused


@value_class
class Fit:
    """The result of `fit`: output tokens for each choice, or the index of the account that refuses."""

    output_tokens: int
    refused: tuple[int, Refusal, Unit | None] | None = None
    breaches: tuple[int, ...] = ()


_SEVERITY: Final = (Refusal.GATE, Refusal.TOO_LARGE, Refusal.EXCEEDED, Refusal.BUSY)


def fit(
    demand: Demand, holds: Sequence[Hold], accounts: Sequence[Account], *, extending: bool = False, held: Amount = ZERO
) -> Fit:
    """Whether `demand` fits into every account at once, and with how many output tokens. Changes nothing.

    A gate refuses new reservations, but not the growth of one that was granted (`extending`). `held` is what the growing
    reservation already holds: waiting does not free that, so only the holds of others make it BUSY.
    """
    needed = demand.amount(demand.output_tokens_min)
    refusals: list[tuple[int, Refusal, Unit | None]] = []
    breaches: list[int] = []
    output_tokens = demand.output_tokens_max
    for index, (hold, account) in enumerate(zip(holds, accounts, strict=True)):
        limit = account.effective_limit(hold.limit, hold.tighten)
        refusal = _refusal_reason(account, limit, needed, extending, held)
        if refusal is None:
            if hold.enforce:
                output_tokens = min(output_tokens, _output_room(demand, account, limit))
        elif hold.enforce or refusal[0] is Refusal.GATE:
            refusals.append((index, *refusal))
        else:
            breaches.append(index)
    if refusals:
        return Fit(0, min(refusals, key=lambda refusal: (_SEVERITY.index(refusal[1]), refusal[0])), tuple(breaches))
    return Fit(output_tokens, None, tuple(breaches))


def _refusal_reason(
    account: Account, limit: Limit, needed: Amount, extending: bool, held: Amount
) -> tuple[Refusal, Unit | None] | None:
    if account.gate is not Gate.OPEN and not extending:
        return Refusal.GATE, None
    if _has_room(limit, account.settled, account.reserved, needed):
        return None
    busy: tuple[Refusal, Unit | None] | None = None
    for unit in UNITS:
        unit_limit = limit.of(unit)
        unit_needed = needed.of(unit)
        if (
            unit_limit is None
            or unit_needed <= unit_limit - account.settled.of(unit) - account.reserved.of(unit)
            or unit_needed == 0
        ):
            continue
        if held.of(unit) + unit_needed > unit_limit:
            return Refusal.TOO_LARGE, unit
        if held.of(unit) + unit_needed > unit_limit - account.settled.of(unit):
            return Refusal.EXCEEDED, unit
        busy = busy or (Refusal.BUSY, unit)
    return busy


def _has_room(limit: Limit, settled: Amount, reserved: Amount, needed: Amount) -> bool:
    """Whether everything fits: the common case, spelled out because it runs for each account of each call."""
    return (
        (limit.tokens is None or needed.tokens <= limit.tokens - settled.tokens - reserved.tokens)
        and (limit.nano_usd is None or needed.nano_usd <= limit.nano_usd - settled.nano_usd - reserved.nano_usd)
        and (limit.requests is None or needed.requests <= limit.requests - settled.requests - reserved.requests)
    )


def _output_room(demand: Demand, account: Account, limit: Limit) -> int:
    """The output tokens for each choice that fit besides the prompt. `_refusal_reason` has ensured at least `output_tokens_min`."""
    room = demand.output_tokens_max
    if limit.tokens is not None:
        free = limit.tokens - account.settled.tokens - account.reserved.tokens - demand.prompt_tokens
        room = min(room, free // demand.choices)
    if limit.nano_usd is not None and demand.output_nano_usd_per_token > 0:
        free = limit.nano_usd - account.settled.nano_usd - account.reserved.nano_usd - demand.prompt_nano_usd
        room = min(room, free // (demand.output_nano_usd_per_token * demand.choices))
    return max(room, demand.output_tokens_min)


@value_class
class Placement:
    """The answer to `reserve` or `extend`, and what to write: the reservation and the new values of its accounts, in their order.

    Without a reservation nothing is held; `tightened` then has the accounts, by name, that a refused request has tightened.
    """

    decision: Decision
    reservation: Reservation | None = None
    accounts: tuple[Account, ...] = ()
    tightened: tuple[tuple[str, Account], ...] = ()


def place(request: Reserve, accounts: Sequence[Account], now_ms: int) -> Placement:
    """Set the demand aside on every account of the chain, or on none. An account that does not exist yet is `Account()`.

    Limits that the caller tightens stay tightened even if the call does not fit, because they apply to the run, not to one
    call. Raises ValueError if an account would hold more than 2^53 − 1.
    """
    outcome = fit(request.demand, request.holds, accounts)
    if outcome.refused is not None:
        decision = _refused(outcome.refused, request.demand, request.holds, accounts, now_ms)
        return Placement(decision, tightened=_tightened_accounts(request.holds, accounts, now_ms))
    held = request.demand.amount(outcome.output_tokens)
    names, limits = tuple([hold.account for hold in request.holds]), tuple([hold.limit for hold in request.holds])
    reservation = Reservation(
        request.id, request.owner, names, limits, held, outcome.output_tokens,
        now_ms + request.ttl_ms, request.on_lost, request.draft,
    )  # fmt: skip
    accounts_after = tuple([_with_hold(*pair, held, now_ms) for pair in zip(request.holds, accounts, strict=True)])
    return Placement(
        _granted(reservation, request.holds, accounts_after, now_ms, outcome.breaches), reservation, accounts_after
    )


def repeat_placement(request: Reserve, reservation: Reservation, accounts: Sequence[Account], now_ms: int) -> Placement:
    """The answer to a repeated request: the first grant, whatever became of it, with current balances.

    Raises ValueError if the id belongs to a reservation on other accounts.
    """
    _check_same_accounts(reservation, request.holds)
    return Placement(_granted(reservation, request.holds, accounts, now_ms))


def extend(
    current: Reservation, holds: Sequence[Hold], extra: Demand, accounts: Sequence[Account], now_ms: int
) -> Placement:
    """Add `extra` to a pending hold. The decision has the new totals. Raises ValueError if `holds` are not the reservation's."""
    _check_same_accounts(current, holds)
    if current.state is not State.PENDING:
        return Placement(resolved_refusal(holds, accounts, now_ms))
    outcome = fit(extra, holds, accounts, extending=True, held=current.held)
    if outcome.refused is not None:
        return Placement(_refused(outcome.refused, extra, holds, accounts, now_ms))
    extra_amount = extra.amount(outcome.output_tokens)
    reservation = replace(
        current,
        limits=tuple(hold.limit for hold in holds),
        held=current.held + extra_amount,
        output_tokens=current.output_tokens + outcome.output_tokens,
    )
    accounts_after = tuple(_with_hold(*pair, extra_amount, now_ms) for pair in zip(holds, accounts, strict=True))
    return Placement(
        _granted(reservation, holds, accounts_after, now_ms, outcome.breaches), reservation, accounts_after
    )


def renewed_reservation(reservation: Reservation, heartbeat: Progress, deadline_ms: int) -> Reservation:
    """A pending reservation after a heartbeat. Progress never goes back."""
    progress = reservation.progress.unitwise_max(heartbeat.amount)
    may_change = heartbeat.on_lost is OnLost.CHARGE or (heartbeat.on_lost is OnLost.RELEASE and progress == ZERO)
    on_lost = heartbeat.on_lost if may_change and heartbeat.on_lost is not None else reservation.on_lost
    return replace(reservation, deadline_ms=deadline_ms, progress=progress, on_lost=on_lost)


def resolved_refusal(holds: Sequence[Hold], accounts: Sequence[Account], now_ms: int) -> Refused:
    """The answer to `extend` if the reservation is not pending, or unknown."""
    balances = _balances(holds, accounts)
    return Refused(Refusal.RESOLVED, holds[0].account, None, 0, balances[0], now_ms, balances)


def _check_same_accounts(reservation: Reservation, holds: Sequence[Hold]) -> None:
    if reservation.accounts != tuple(hold.account for hold in holds):
        raise ValueError(f"reservation {reservation.id!r} holds on {reservation.accounts}, not on the accounts given")


def _with_hold(hold: Hold, account: Account, extra_amount: Amount, now_ms: int) -> Account:
    settled, reserved = account.settled, account.reserved + extra_amount
    if (
        settled.tokens + reserved.tokens > AMOUNT_MAX
        or settled.nano_usd + reserved.nano_usd > AMOUNT_MAX
        or settled.requests + reserved.requests > AMOUNT_MAX
    ):
        raise ValueError(f"account {hold.account!r} would hold more than 2^53 - 1")
    tightened = account.tightened
    if hold.tighten is not UNLIMITED:
        tightened = tightened.tightened_by(hold.tighten)
    return Account(settled, reserved, account.override, tightened, account.gate, hold.keep_ms, now_ms)


def _tightened_accounts(
    holds: Sequence[Hold], accounts: Sequence[Account], now_ms: int
) -> tuple[tuple[str, Account], ...]:
    """Only the accounts that this call tightens further, so that a repeated request changes nothing."""
    changed = []
    for hold, account in zip(holds, accounts, strict=True):
        tightened = account.tightened.tightened_by(hold.tighten)
        if tightened != account.tightened:
            updated = replace(account, tightened=tightened, keep_ms=hold.keep_ms, used_ms=now_ms)
            changed.append((hold.account, updated))
    return tuple(changed)


def _balances(holds: Sequence[Hold], accounts: Sequence[Account]) -> tuple[Balance, ...]:
    return tuple(
        [account.balance(hold.account, hold.limit, hold.tighten) for hold, account in zip(holds, accounts, strict=True)]
    )


def _granted(
    reservation: Reservation,
    holds: Sequence[Hold],
    accounts_after: Sequence[Account],
    now_ms: int,
    breaches: tuple[int, ...] = (),
) -> Granted:
    balances = _balances(holds, accounts_after)
    observed = tuple(holds[index].account for index in breaches)
    return Granted(
        reservation.id, reservation.output_tokens, reservation.held, reservation.deadline_ms, now_ms, balances, observed
    )


def _refused(
    refused: tuple[int, Refusal, Unit | None],
    demand: Demand,
    holds: Sequence[Hold],
    accounts: Sequence[Account],
    now_ms: int,
) -> Refused:
    index, reason, unit = refused
    needed = 0 if unit is None else demand.amount(demand.output_tokens_min).of(unit)
    balances = _balances(holds, accounts)
    return Refused(reason, holds[index].account, unit, needed, balances[index], now_ms, balances)
