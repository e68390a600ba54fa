"""Converts an outbox entry to a row of `token_usage`. Pure, and exact where money is concerned.

The event is the entry's draft, overridden by its detail; unknown fields are ignored. Amounts come from the entry, which the
ledger booked, never from the event, so that the sum over a run equals what its accounts have settled.

This runs for every call. Therefore all texts and all counts are checked at once, and only in the rare case that one is
unusual are they checked one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import orjson

from gateway.ledger.port import EntryKind, OutboxEntry
from gateway.store.tables import token_usage
from policies.holdout import Arm

Row = tuple[Any, ...]  # the values of COLUMNS
COLUMNS: Final = tuple(token_usage.columns.keys())

# Names are limited to 128 characters on entry; four times that leaves room for names made from several.
TEXT_CHARACTERS_MAX: Final = 512
ACTIONS_CHARACTERS_MAX: Final = 4_096
DETAIL_BYTES_MAX: Final = 65_536
# 2000-01-01 to 2100-01-01: outside of it a clock is wrong, and every such month would get a partition.
AT_MS_MIN: Final = 946_684_800_000
AT_MS_MAX: Final = 4_102_444_800_000
_INT64_MAX: Final = 2**63 - 1
_MEASURE_MAX: Final = 2**53  # every whole float below it is exactly an integer

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
# Fields that an event may omit, with their empty values. All columns are included, so that no event's dictionary has to grow.
_UNSAID: Final[dict[str, Any]] = {
    **dict.fromkeys(COLUMNS),
    **dict.fromkeys((*_TEXTS, "actions", "savings", "detail"), ""),
    **dict.fromkeys(_COUNTS, 0),
    "arm": None,
}
_TEXTS_OF: Final = itemgetter("id", "project", *_TEXTS, "actions")
_COUNTS_OF: Final = itemgetter(*_COUNTS)
_ROW_OF: Final = itemgetter(*COLUMNS)
_ONLY_INT: Final = {int}
_ARMS: Final = frozenset(Arm)
_STATUSES: Final = frozenset({"ok", "refused", "error", "cancelled"})
# The kind of entry determines how the call ended, whatever the draft says.
_STATUS_OF_KIND: Final = {EntryKind.EXPIRED: "lost", EntryKind.LATE: "late", EntryKind.REPAIR: "repair"}


def values_of(*names: str) -> itemgetter[Any]:
    """Reads the value of one column from a row, or a tuple of several."""
    return itemgetter(*map(COLUMNS.index, names))


id_of: Final = values_of("id")
at_of: Final = values_of("at")


@dataclass(frozen=True, slots=True)
class RejectedEntry:
    """An event that cannot become a row, and why."""

    entry: OutboxEntry
    reason: str


class _InvalidField(Exception):
    """Internal: the reason why a field does not fit."""


def row_of(entry: OutboxEntry) -> Row | RejectedEntry:
    """The row, or the reason for none: not a JSON object, NUL or broken Unicode, too long, not a number, a wrong clock."""
    try:
        return _row(entry, _event(entry))
    except _InvalidField as unfit:
        return RejectedEntry(entry, str(unfit))


def _event(entry: OutboxEntry) -> dict[str, Any]:
    event = _UNSAID.copy()
    for name, part in (("draft", entry.draft), ("detail", entry.detail)):
        if not part:
            continue
        try:
            parsed = orjson.loads(part)
        except orjson.JSONDecodeError as error:
            raise _InvalidField(f"{name} is not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise _InvalidField(f"{name} is not a JSON object")
        event |= parsed
    return event


def _row(entry: OutboxEntry, event: dict[str, Any]) -> Row:
    """Make the event fit into a row, and return the values of the columns."""
    if not AT_MS_MIN <= entry.at_ms < AT_MS_MAX:
        raise _InvalidField(f"at_ms {entry.at_ms} is not a time between 2000 and 2100")
    amount, overrun = entry.amount, entry.overrun
    event["id"], event["at"], event["project"] = entry.id, entry.at_ms, entry.project
    event["total_tokens"], event["cost_nano_usd"], event["requests"] = amount.tokens, amount.nano_usd, amount.requests
    event["overrun_tokens"], event["overrun_nano_usd"] = overrun.tokens, overrun.nano_usd
    if not (entry.id and entry.project and _are_plain_texts(_TEXTS_OF(event))):
        _truncate_texts(event)
    if not _are_plain_counts(_COUNTS_OF(event)):
        event |= {name: _count(name, event[name]) for name in _COUNTS}
    for name in _MEASURES:
        value = event[name]
        if value is not None and not (type(value) is int and 0 <= value < _MEASURE_MAX):
            event[name] = _measure(name, value)
    event["intent_confidence"] = _confidence(event["intent_confidence"])
    event["stream"] = bool(event["stream"])
    event["status"] = _status(entry.kind, event["status"])
    event["savings"] = _savings(event["actions"], event["arm"])
    event["detail"] = _detail(event["detail"])
    row: Row = _ROW_OF(event)
    return row


def _are_plain_texts(values: tuple[Any, ...]) -> bool:
    """Whether all are valid Unicode texts without NUL that together are no longer than one may be."""
    try:
        joined = "".join(values)
        return (
            len(joined) <= TEXT_CHARACTERS_MAX and "\x00" not in joined and (joined.isascii() or bool(joined.encode()))
        )
    except (TypeError, UnicodeEncodeError):
        return False


def _are_plain_counts(values: tuple[Any, ...]) -> bool:
    """Whether all are 64-bit integers. bool is an int in Python, but a count of True is a mistake."""
    return set(map(type, values)) == _ONLY_INT and min(values) >= -_INT64_MAX and max(values) <= _INT64_MAX


def _truncate_texts(event: dict[str, Any]) -> None:
    for name in ("id", "project"):
        _check_name(name, event[name])
    event |= {name: _text(name, event[name], TEXT_CHARACTERS_MAX) for name in _TEXTS}
    event["actions"] = _actions(event["actions"])


def _status(kind: EntryKind, status: object) -> str:
    status_of_kind = _STATUS_OF_KIND.get(kind)
    if status_of_kind is not None:
        return status_of_kind
    return status if isinstance(status, str) and status in _STATUSES else "ok"


def _check_name(name: str, value: str) -> None:
    if not value:
        raise _InvalidField(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _InvalidField(f"{name} is not valid unicode") from error
    _text(name, value, TEXT_CHARACTERS_MAX)


def _text(name: str, value: object, characters_max: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _InvalidField(f"{name} is not a text")
    if len(value) > characters_max:
        raise _InvalidField(f"{name} is longer than {characters_max} characters")
    if "\x00" in value:  # Postgres texts cannot contain it
        raise _InvalidField(f"{name} contains NUL")
    return value


def _count(name: str, value: object) -> int:
    if value is None:
        return 0
    if type(value) is int and -_INT64_MAX <= value <= _INT64_MAX:
        return value
    if type(value) is float and value.is_integer() and abs(value) < _MEASURE_MAX:
        return int(value)
    raise _InvalidField(f"{name} is not a whole number of 64 bits")


def _measure(name: str, value: object) -> int:
    return round(value) if type(value) is float and abs(value) < _MEASURE_MAX else _count(name, value)


def _confidence(value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float):
        raise _InvalidField("intent_confidence is not a number")
    return float(value)  # type: ignore[arg-type]


def _actions(value: object) -> str:
    joined = ", ".join(map(str, value)) if isinstance(value, list) else value
    return _text("actions", joined, ACTIONS_CHARACTERS_MAX)


def _savings(actions: str, arm: object) -> str:
    """The kinds of actions taken, and the call's side of the holdout."""
    if not actions and arm is None:
        return ""
    kinds = {action.partition("=")[0].strip() for action in actions.split(",") if action.strip()}
    return "+".join(sorted(kinds | {arm} if isinstance(arm, str) and arm in _ARMS else kinds))


def _detail(value: object) -> str:
    """The free-form explanation of the call: the only field that is truncated instead of parked, since no sum depends on it."""
    if value is None or value == "":
        return ""
    text = value.replace("\x00", "\ufffd") if isinstance(value, str) else orjson.dumps(value).decode()
    if len(text) > DETAIL_BYTES_MAX:
        return orjson.dumps({"cut_from_characters": len(text)}).decode()
    return text
