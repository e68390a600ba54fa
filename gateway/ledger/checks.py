"""Checks of arguments that all engines share, made before anything is queued or sent. Each raises `LedgerError`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Final

from gateway.ledger.port import LedgerError, OutboxEntry, Progress, Reserve
from policies.amounts import AMOUNT_MAX, UNITS, UNLIMITED, Amount, Limit
from policies.reservation import Demand, Hold


def check_reserve(request: Reserve) -> None:
    if not request.id:
        raise LedgerError("a reservation needs an id")
    check_count("ttl_ms", request.ttl_ms)
    check_holds(request.holds)
    check_demand(request.demand)


def check_holds(holds: Sequence[Hold]) -> None:
    """At least one account, and none twice, because it would be charged twice."""
    if not holds:
        raise LedgerError("a reservation needs at least one account")
    if len({hold.account for hold in holds}) < len(holds):
        raise LedgerError(f"an account is named twice in {[hold.account for hold in holds]}")
    for hold in holds:
        if hold.limit is not UNLIMITED:
            check_limit(hold.limit)
        if hold.tighten is not UNLIMITED:
            check_limit(hold.tighten)
        check_count("keep_ms", hold.keep_ms)


_DEMAND_FIELDS: Final = tuple(field.name for field in fields(Demand))


def check_demand(demand: Demand) -> None:
    for name in _DEMAND_FIELDS:
        value = getattr(demand, name)
        if type(value) is not int or not 0 <= value <= AMOUNT_MAX:
            check_count(name, value)
    if demand.output_tokens_min > demand.output_tokens_max:
        raise LedgerError("output_tokens_min is above output_tokens_max")
    if demand.choices == 0:
        raise LedgerError("a call has at least one choice")
    check_amount("the demand", demand.amount(demand.output_tokens_max))


def check_extra(extra: Demand) -> None:
    """The request was held at the start; only more tokens or money can be needed, for example by another model."""
    check_demand(extra)
    if extra.requests:
        raise LedgerError("an extension holds no request again")


def check_progress(progress: Sequence[Progress], ttl_ms: int) -> None:
    check_count("ttl_ms", ttl_ms)
    for sign in progress:
        check_amount("progress", sign.amount)


def check_entries(entries: Sequence[OutboxEntry]) -> None:
    for entry in entries:
        if not entry.id:
            raise LedgerError("a usage event needs an id")


def check_limit(limit: Limit) -> None:
    for unit, value in zip(UNITS, (limit.tokens, limit.nano_usd, limit.requests), strict=True):
        if value is not None and (type(value) is not int or not 0 <= value <= AMOUNT_MAX):
            check_count(f"the limit in {unit}", value)


def check_amount(name: str, amount: Amount) -> None:
    for unit, value in zip(UNITS, (amount.tokens, amount.nano_usd, amount.requests), strict=True):
        if type(value) is not int or not 0 <= value <= AMOUNT_MAX:
            check_count(f"{name} in {unit}", value)


def check_count(name: str, value: int) -> None:
    """An integer (not a bool) from 0 to 2^53 − 1, which every engine stores exactly."""
    if type(value) is not int or not 0 <= value <= AMOUNT_MAX:
        raise LedgerError(f"{name} must be an integer from 0 to 2^53 - 1, not {value!r}")
