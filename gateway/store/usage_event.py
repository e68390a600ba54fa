"""From an outbox entry to a row of `token_usage`. Pure, and exact where money is concerned.

The event is the entry's draft with the detail laid over it; unknown fields are ignored. Amounts come from the entry, which
the ledger booked, never from the event: so the sum over a run is what its accounts have settled.

This runs for every call there is. All texts, and all counts, are therefore judged at once; only where one of them is not as
plain as they nearly always are is each looked at by itself.
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

# Names are at most 128 characters at the door; four times that leaves room for what is put together from them.
TEXT_CHARACTERS_MAX: Final = 512
ACTIONS_CHARACTERS_MAX: Final = 4_096
DETAIL_BYTES_MAX: Final = 65_536
# 2000-01-01 to 2100-01-01: outside of it a clock is broken, and every such month would get a partition.
AT_MS_MIN: Final = 946_684_800_000
AT_MS_MAX: Final = 4_102_444_800_000
_INT64_MAX: Final = 2**63 - 1
_MEASURE_MAX: Final = 2**53  # below it every whole float is one integer

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
# What an event need not say, with the value that says nothing. All columns are there, so that no event's dictionary grows.
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
# How it ended is known from the kind of entry, whatever the draft hoped for.
_STATUS_OF_KIND: Final = {EntryKind.EXPIRED: "lost", EntryKind.LATE: "late", EntryKind.REPAIR: "repair"}


def values_of(*names: str) -> itemgetter[Any]:
    """Reads from a row the value of one column, or a tuple of several."""
    return itemgetter(*map(COLUMNS.index, names))


id_of: Final = values_of("id")
at_of: Final = values_of("at")


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


def _event(entry: OutboxEntry) -> dict[str, Any]:
    event = _UNSAID.copy()
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


def _row(entry: OutboxEntry, event: dict[str, Any]) -> Row:
    """Makes the event fit to be a row, and takes from it what the columns hold."""
    if not AT_MS_MIN <= entry.at_ms < AT_MS_MAX:
        raise _Unfit(f"at_ms {entry.at_ms} is not a time between 2000 and 2100")
    amount, overrun = entry.amount, entry.overrun
    event["id"], event["at"], event["project"] = entry.id, entry.at_ms, entry.project
    event["total_tokens"], event["cost_nano_usd"], event["requests"] = amount.tokens, amount.nano_usd, amount.requests
    event["overrun_tokens"], event["overrun_nano_usd"] = overrun.tokens, overrun.nano_usd
    if not (entry.id and entry.project and _are_plain_texts(_TEXTS_OF(event))):
        _make_texts_fit(event)
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
    """All are texts of valid unicode without NUL, and together no longer than one of them may be."""
    try:
        joined = "".join(values)
        return (
            len(joined) <= TEXT_CHARACTERS_MAX and "\x00" not in joined and (joined.isascii() or bool(joined.encode()))
        )
    except (TypeError, UnicodeEncodeError):
        return False


def _are_plain_counts(values: tuple[Any, ...]) -> bool:
    """All are whole numbers of 64 bits. bool is an int in Python, and a count of True is a mistake."""
    return set(map(type, values)) == _ONLY_INT and min(values) >= -_INT64_MAX and max(values) <= _INT64_MAX


def _make_texts_fit(event: dict[str, Any]) -> None:
    for name in ("id", "project"):
        _check_name(name, event[name])
    event |= {name: _text(name, event[name], TEXT_CHARACTERS_MAX) for name in _TEXTS}
    event["actions"] = _actions(event["actions"])


def _status(kind: EntryKind, given: object) -> str:
    known = _STATUS_OF_KIND.get(kind)
    if known is not None:
        return known
    return given if isinstance(given, str) and given in _STATUSES else "ok"


def _check_name(name: str, value: str) -> None:
    if not value:
        raise _Unfit(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Unfit(f"{name} is not valid unicode") from error
    _text(name, value, TEXT_CHARACTERS_MAX)


def _text(name: str, value: object, characters_max: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Unfit(f"{name} is not a text")
    if len(value) > characters_max:
        raise _Unfit(f"{name} is longer than {characters_max} characters")
    if "\x00" in value:  # which Postgres cannot hold in a text
        raise _Unfit(f"{name} contains NUL")
    return value


def _count(name: str, value: object) -> int:
    if value is None:
        return 0
    if type(value) is int and -_INT64_MAX <= value <= _INT64_MAX:
        return value
    if type(value) is float and value.is_integer() and abs(value) < _MEASURE_MAX:
        return int(value)
    raise _Unfit(f"{name} is not a whole number of 64 bits")


def _measure(name: str, value: object) -> int:
    return round(value) if type(value) is float and abs(value) < _MEASURE_MAX else _count(name, value)


def _confidence(value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float):
        raise _Unfit("intent_confidence is not a number")
    return float(value)  # type: ignore[arg-type]


def _actions(value: object) -> str:
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
    if value is None or value == "":
        return ""
    text = value.replace("\x00", "\ufffd") if isinstance(value, str) else orjson.dumps(value).decode()
    if len(text) > DETAIL_BYTES_MAX:
        return orjson.dumps({"cut_from_characters": len(text)}).decode()
    return text
