"""Converts values of the ledger port to arguments of the Lua scripts, and their replies back to values.

Numbers are sent as JSON (cjson reads integers up to 2^53 exactly) and returned as RESP integers. Nothing above 2^53 − 1 is
ever sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from gateway.ledger.port import EntryKind, OutboxEntry, Reserve, Resolution
from policies.amounts import UNITS, ZERO, Amount, Limit, Unit, limit_of
from policies.reservation import Balance, Demand, Gate, Granted, Hold, Refusal, Refused, State
from policies.settlement import UNKNOWN_RESERVATION

_BALANCE_LENGTH: Final = 10  # limit, settled and reserved in three units, and the gate
_GATES: Final = {gate.value.encode(): gate for gate in Gate}
_STATES: Final = {state.value.encode(): state for state in State}
_REFUSALS: Final = {reason.value.encode(): reason for reason in Refusal}
_UNIT_OF: Final[tuple[Unit | None, ...]] = (None, *UNITS)  # 1-based, as in Lua; 0 for no unit


def demand_list(demand: Demand) -> list[int]:
    return [
        demand.prompt_tokens,
        demand.output_tokens_max,
        demand.output_tokens_min,
        demand.prompt_nano_usd,
        demand.output_nano_usd_per_token,
        demand.choices,
        demand.requests,
    ]


def restored_decisions(gate: Gate | None, override: Limit | None) -> tuple[bytes, bytes]:
    """As arguments of the script; empty leaves the value unchanged."""
    return (
        b"" if gate is None else gate.value.encode(),
        b"" if override is None else orjson.dumps(override.values()),
    )


def hold_lists(holds: Sequence[Hold]) -> list[list[int | None]]:
    return [[*hold.limit.values(), *hold.tighten.values(), hold.enforce, hold.keep_ms] for hold in holds]


def request_json(request: Reserve, held: Amount | None = None) -> bytes:
    """A reservation in the form for reserve.lua and settle.lua. `held` is for one that was granted without Redis."""
    fields: list[Any] = [
        request.owner,
        request.ttl_ms,
        request.on_lost.value,
        demand_list(request.demand),
        hold_lists(request.holds),
    ]
    if held is not None:
        fields.append(held.values())
    return orjson.dumps(fields)


def amount_at(reply: Sequence[Any], offset: int) -> Amount:
    return Amount(reply[offset], reply[offset + 1], reply[offset + 2])


def amount_of_text(text: bytes | None) -> Amount:
    """An amount in the form of the ledger's hashes and streams."""
    return Amount(*(int(word) for word in text.split())) if text else ZERO


def balances_at(reply: Sequence[Any], offset: int, accounts: Sequence[str]) -> tuple[Balance, ...]:
    """The balances from position `offset` of a reply, in the order of the accounts. Spelled out, because every call runs it."""
    balances = []
    for name in accounts:
        *limit, tokens, nano_usd, requests, held_tokens, held_nano_usd, held_requests, gate = reply[
            offset : offset + _BALANCE_LENGTH
        ]
        settled = Amount(tokens, nano_usd, requests)
        reserved = (
            Amount(held_tokens, held_nano_usd, held_requests) if held_tokens or held_nano_usd or held_requests else ZERO
        )
        balances.append(Balance(name, limit_of(*limit), settled, reserved, _GATES[gate]))
        offset += _BALANCE_LENGTH
    return tuple(balances)


def balance_at(reply: Sequence[Any], offset: int, account: str) -> Balance:
    return balances_at(reply, offset, (account,))[0]


def decision_of(reply: Sequence[Any], reservation_id: str, accounts: Sequence[str]) -> Granted | Refused:
    """The decision of reserve.lua or extend.lua. Grants and refusals differ in the type of the second item."""
    if isinstance(reply[1], bytes):
        _, reason, index, unit, needed, now_ms = reply[:6]
        name = accounts[index]
        balances = balances_at(reply, 6, accounts)
        return Refused(_REFUSALS[reason], name, _UNIT_OF[unit], needed, balances[index], now_ms, balances)
    return Granted(
        reservation_id,
        output_tokens=reply[1],
        held=amount_at(reply, 2),
        deadline_ms=reply[5],
        now_ms=reply[6],
        balances=balances_at(reply, 8, accounts),
        breaches=tuple(accounts[index] for index in reply[7]),
    )


def resolution_of(reply: Sequence[Any], accounts: Sequence[str]) -> Resolution:
    """The result of settle.lua or void.lua."""
    if not reply[1]:
        return UNKNOWN_RESERVATION
    return Resolution(
        _STATES[reply[1]], bool(reply[2]), amount_at(reply, 3), amount_at(reply, 6), balances_at(reply, 9, accounts)
    )


def entry_arguments(entries: Sequence[OutboxEntry]) -> list[bytes]:
    """Arguments of record.lua: one JSON array, then draft and detail of each entry."""
    heads = [
        [
            entry.id,
            entry.kind.value,
            *entry.amount.values(),
            *entry.overrun.values(),
            entry.at_ms,
        ]
        for entry in entries
    ]
    return [orjson.dumps(heads), *(part for entry in entries for part in (entry.draft, entry.detail))]


def entry_of(project: str, position: bytes, fields: Sequence[bytes]) -> OutboxEntry:
    """An entry of the outbox stream."""
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    return OutboxEntry(
        position=position.decode(),
        id=values[b"id"].decode(),
        kind=EntryKind(values[b"kind"].decode()),
        project=project,
        amount=amount_of_text(values[b"amount"]),
        at_ms=int(values[b"at_ms"]),
        draft=values[b"draft"],
        detail=values[b"detail"],
        overrun=amount_of_text(values[b"overrun"]),
    )
