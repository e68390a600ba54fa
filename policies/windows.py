"""Calendar windows of budgets: when a minute, an hour, a day or a month begins and ends in a time zone.

Windows of one kind follow each other without gap or overlap, so every instant is in exactly one:

- a day lasts from the first instant of a local date to the first instant of the next: 23 or 25 hours when clocks change,
  never "24 hours from now"; likewise a month is never 30 days;
- an hour and a minute last as long as the local clock shows them, and a clock change begins a new one. An hour that is
  repeated when clocks go back is therefore two windows of one hour each;
- if a zone skips midnight, the date begins at the clock change; if it has two midnights, at the first.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

WINDOWS = ("minute", "hour", "day", "month")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS
_DAY_MS = 24 * _HOUR_MS
# Python's calendar ends at the years 1 and 9999, and the edges of a window must be inside.
_NOW_MAX_MS = 253_370_764_800_000  # 9999-01-01T00:00Z


class WindowError(ValueError):
    """An unknown window or time zone, or an instant out of range; the message names it."""


def zone_of(timezone: str) -> tzinfo:
    """The time zone of an IANA name. UTC needs no time zone database. Raises WindowError for an unknown name."""
    if timezone.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name is a directory of the database
        raise WindowError(f"'{timezone[:60]}' is not a time zone that this machine knows.") from None


def window_bounds(window: str, now_ms: int, timezone: str = "UTC") -> tuple[int, int]:
    """Start (inclusive) and end (exclusive) of the window that holds `now_ms`, in ms since 1970 UTC.

    `window` is minute, hour, day or month; `now_ms` from 1970 to 9998. Raises WindowError otherwise.
    """
    if not 0 <= now_ms < _NOW_MAX_MS:
        raise WindowError(f"{now_ms} ms is outside of the years 1970 to 9998.")
    zone = zone_of(timezone)
    if window in ("minute", "hour"):
        return _clock_window(now_ms, _MINUTE_MS if window == "minute" else _HOUR_MS, zone)
    if window in ("day", "month"):
        return _date_window(now_ms, window, zone)
    raise WindowError(f"'{window[:60]}' is not a window; there are {', '.join(WINDOWS)}.")


def _local(instant_ms: int, zone: tzinfo) -> datetime:
    return (_EPOCH + instant_ms * _MILLISECOND).astimezone(zone)


def _offset_ms(instant_ms: int, zone: tzinfo) -> int:
    return (_local(instant_ms, zone).utcoffset() or timedelta()) // _MILLISECOND


def _clock_window(now_ms: int, length_ms: int, zone: tzinfo) -> tuple[int, int]:
    offset = _offset_ms(now_ms, zone)
    start = (now_ms + offset) // length_ms * length_ms - offset
    end = start + length_ms
    if _offset_ms(start, zone) != offset:
        start = _clock_change_ms(start, now_ms, zone)
    if _offset_ms(end - 1, zone) != offset:
        end = _clock_change_ms(now_ms, end - 1, zone)
    return start, end


def _date_window(now_ms: int, window: str, zone: tzinfo) -> tuple[int, int]:
    first = _local(now_ms, zone).date()
    first = first.replace(day=1) if window == "month" else first
    start, next_first = _date_start_ms(first, zone), _next_start(first, window)
    end = _date_start_ms(next_first, zone)
    # When clocks go back across midnight, they show the old date a second time after the new one has begun.
    return (start, end) if now_ms < end else (end, _date_start_ms(_next_start(next_first, window), zone))


def _next_start(first: date, window: str) -> date:
    if window == "day":
        return first + timedelta(days=1)
    return (first.replace(day=28) + timedelta(days=4)).replace(day=1)


def _date_start_ms(day: date, zone: tzinfo) -> int:
    """The first instant at which the zone's clocks show this date, or would have shown it."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)  # fold=0: the first of two midnights
    instant = (midnight.astimezone(UTC) - _EPOCH) // _MILLISECOND
    if _local(instant, zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return instant
    return _clock_change_ms(instant - _DAY_MS, instant, zone)  # midnight was skipped: the date begins at the change


def _clock_change_ms(before_ms: int, after_ms: int, zone: tzinfo) -> int:
    """The instant of the clock change between two instants: the first ms with the later offset, found by bisection."""
    later = _offset_ms(after_ms, zone)
    while after_ms - before_ms > 1:
        middle = (before_ms + after_ms) // 2
        if _offset_ms(middle, zone) == later:
            after_ms = middle
        else:
            before_ms = middle
    return after_ms
