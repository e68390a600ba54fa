"""From an outbox entry to a row of `token_usage`. Pure, and exact where money is concerned.

The event is the entry's draft with the detail laid over it; unknown fields are ignored. Amounts come from the entry, which
the ledger booked, never from the event: so the sum over a run is what its accounts have settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.ledger.port import EntryKind, OutboxEntry
from policies.holdout import Arm

Row = dict[str, Any]

# Names are at most 128 characters at the door; four times that leaves room for what is put together from them.
TEXT_CHARACTERS_MAX: Final = 512
ACTIONS_CHARACTERS_MAX: Final = 4_096
DETAIL_BYTES_MAX: Final = 65_536
# 2000-01-01 to 2100-01-01: outside of it a clock is broken, and every such month would get a partition.
AT_MS_MIN: Final = 946_684_800_000
AT_MS_MAX: Final = 4_102_444_800_000
_INT64_MAX: Final = 2**63 - 1

_TEXTS: Final = (
    "key_id",
    "workflow",
    "run",
    "step",
    "agent",
    "user",
    "parent_run",
    "intent",
    "intent_source",
    "model_requested",
    "model",
    "provider",
    "protocol",
    "code",
    "usage_source",
    "request_id",
)
_COUNTS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "reserved_tokens",
    "reserved_nano_usd",
    "saved_tokens",
    "saved_nano_usd",
)
_MEASURES: Final = ("prompt_tokens_counted", "duration_ms", "first_byte_ms", "overhead_us")
_ARMS: Final = frozenset(Arm)
_STATUSES: Final = frozenset({"ok", "refused", "error", "cancelled"})
# How it ended is known from the kind of entry, whatever the draft hoped for.
_STATUS_OF_KIND: Final = {EntryKind.EXPIRED: "lost", EntryKind.LATE: "late", EntryKind.REPAIR: "repair"}


@dataclass(frozen=True, slots=True)
class Poison:
    """An event that cannot become a row, and why."""

    entry: OutboxEntry
    reason: str


class _Unfit(Exception):
    """Inside this module only: the reason why a field does not fit."""


def row_of(entry: OutboxEntry) -> Row | Poison:
    """The row, or why there can be none: no JSON object, NUL or broken unicode, too long, not a number, a broken clock."""
    try:
        return _row(entry, _event(entry))
    except _Unfit as unfit:
        return Poison(entry, str(unfit))


def _event(entry: OutboxEntry) -> Mapping[str, Any]:
    event: dict[str, Any] = {}
    for name, part in (("draft", entry.draft), ("detail", entry.detail)):
        if not part:
            continue
        try:
            parsed = orjson.loads(part)
        except orjson.JSONDecodeError as error:
            raise _Unfit(f"{name} is not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise _Unfit(f"{name} is not a JSON object")
        event |= parsed
    return event


def _row(entry: OutboxEntry, event: Mapping[str, Any]) -> Row:
    if not AT_MS_MIN <= entry.at_ms < AT_MS_MAX:
        raise _Unfit(f"at_ms {entry.at_ms} is not a time between 2000 and 2100")
    row: Row = {"id": _name("id", entry.id), "at": entry.at_ms, "project": _name("project", entry.project)}
    # This runs for every call there is: the common case is decided inline, and only the others cost a function.
    for name in _TEXTS:
        value = event.get(name)
        is_plain = type(value) is str and len(value) <= TEXT_CHARACTERS_MAX and "\x00" not in value
        row[name] = value if is_plain else "" if value is None else _text(name, value, TEXT_CHARACTERS_MAX)
    for name in _COUNTS:
        value = event.get(name)
        is_plain = type(value) is int and -_INT64_MAX <= value <= _INT64_MAX
        row[name] = value if is_plain else 0 if value is None else _count(name, value)
    for name in _MEASURES:
        value = event.get(name)
        row[name] = (
            None if value is None else value if type(value) is int and 0 <= value < 2**53 else _measure(name, value)
        )
    actions = _actions(event.get("actions"))
    row |= {
        "intent_confidence": _confidence(event.get("intent_confidence")),
        "stream": bool(event.get("stream")),
        "status": _status(entry.kind, event.get("status")),
        "total_tokens": entry.amount.tokens,
        "cost_nano_usd": entry.amount.nano_usd,
        "requests": entry.amount.requests,
        "overrun_tokens": entry.overrun.tokens,
        "overrun_nano_usd": entry.overrun.nano_usd,
        "actions": actions,
        "savings": _savings(actions, event.get("arm")),
        "detail": _detail(event.get("detail")),
    }
    return row


def _status(kind: EntryKind, given: object) -> str:
    known = _STATUS_OF_KIND.get(kind)
    if known is not None:
        return known
    return given if isinstance(given, str) and given in _STATUSES else "ok"


def _name(name: str, value: str) -> str:
    if not value:
        raise _Unfit(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Unfit(f"{name} is not valid unicode") from error
    return _text(name, value, TEXT_CHARACTERS_MAX)


def _text(name: str, value: object, characters_max: int) -> str:
    if not isinstance(value, str):
        raise _Unfit(f"{name} is not a text")
    if len(value) > characters_max:
        raise _Unfit(f"{name} is longer than {characters_max} characters")
    if "\x00" in value:  # which Postgres cannot hold in a text
        raise _Unfit(f"{name} contains NUL")
    return value


def _count(name: str, value: object) -> int:
    # bool is an int in Python, and a count of True is a mistake.
    if type(value) is int and -_INT64_MAX <= value <= _INT64_MAX:
        return value
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    raise _Unfit(f"{name} is not a whole number of 64 bits")


def _measure(name: str, value: object) -> int:
    return round(value) if type(value) is float and abs(value) < 2**53 else _count(name, value)


def _confidence(value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float):
        raise _Unfit("intent_confidence is not a number")
    return float(value)  # type: ignore[arg-type]


def _actions(value: object) -> str:
    if value is None:
        return ""
    joined = ", ".join(map(str, value)) if isinstance(value, list) else value
    return _text("actions", joined, ACTIONS_CHARACTERS_MAX)


def _savings(actions: str, arm: object) -> str:
    """The kinds of what was done, and which side of the holdout the call was on."""
    if not actions and arm is None:
        return ""
    kinds = {action.partition("=")[0].strip() for action in actions.split(",") if action.strip()}
    return "+".join(sorted(kinds | {arm} if isinstance(arm, str) and arm in _ARMS else kinds))


def _detail(value: object) -> str:
    """Free explanation of the call: the one field that is cut rather than parked, since no sum depends on it."""
    if value is None:
        return ""
    text = value.replace("\x00", "\ufffd") if isinstance(value, str) else orjson.dumps(value).decode()
    if len(text) > DETAIL_BYTES_MAX:
        return orjson.dumps({"cut_from_characters": len(text)}).decode()
    return text
