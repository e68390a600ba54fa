"""Calendar windows: known boundaries, clock changes, and complete coverage of time in every zone."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.windows import WINDOWS, WindowError, window_bounds

HOUR_MS = 3_600_000


def ms(text: str, zone: str = "UTC", fold: int = 0) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return round(moment.astimezone(UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("window", "now", "zone", "start", "end"),
    [
        ("minute", "2026-11-22T10:20:30.500", "UTC", "2026-11-22T10:20", "2026-11-22T10:21"),
        ("hour", "2026-11-22T10:59:59.999", "UTC", "2026-11-22T10:00", "2026-11-22T11:00"),
        ("hour", "2026-11-22T11:00", "UTC", "2026-11-22T11:00", "2026-11-22T12:00"),
        ("day", "2026-11-22T00:00", "UTC", "2026-11-22", "2026-11-23"),
        ("day", "2024-02-29T12:00", "UTC", "2024-02-29", "2024-03-01"),
        ("month", "2024-02-29T23:59:59.999", "UTC", "2024-02-01", "2024-03-01"),
        ("month", "2023-02-28T23:59", "UTC", "2023-02-01", "2023-03-01"),
        ("month", "2100-02-28T12:00", "UTC", "2100-02-01", "2100-03-01"),
        ("month", "2026-12-31T23:59:59.999", "UTC", "2026-12-01", "2027-01-01"),
        ("month", "2026-01-31T00:00", "Asia/Tokyo", "2026-01-01", "2026-02-01"),
        ("hour", "2026-06-01T10:31", "Asia/Kolkata", "2026-06-01T10:00", "2026-06-01T11:00"),
        ("day", "2026-06-01T00:01", "Asia/Kathmandu", "2026-06-01", "2026-06-02"),
        ("day", "2026-03-29T12:00", "Europe/Berlin", "2026-03-29", "2026-03-30"),
        ("month", "2026-03-29T12:00", "Europe/Berlin", "2026-03-01", "2026-04-01"),
        ("day", "2026-11-01T12:00", "America/New_York", "2026-11-01", "2026-11-02"),
    ],
)
def test_bounds_are_wall_clock_times_of_the_time_zone(window: str, now: str, zone: str, start: str, end: str) -> None:
    assert window_bounds(window, ms(now, zone), zone) == (ms(start, zone), ms(end, zone))


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        ("2026-03-29", "Europe/Berlin", 23),
        ("2026-10-25", "Europe/Berlin", 25),
        ("2026-03-08", "America/New_York", 23),
        ("2026-11-01", "America/New_York", 25),
        ("2026-10-04", "Australia/Lord_Howe", 23.5),
        ("2026-04-05", "Australia/Lord_Howe", 24.5),
        ("2026-06-01", "Europe/Berlin", 24),
    ],
)
def test_day_with_a_clock_change_is_shorter_or_longer(day: str, zone: str, hours: float) -> None:
    start, end = window_bounds("day", ms(f"{day}T12:00", zone), zone)
    assert (end - start) / HOUR_MS == hours


def test_hour_repeated_when_clocks_go_back_is_two_windows() -> None:
    first = window_bounds("hour", ms("2026-11-01T01:30", "America/New_York"), "America/New_York")
    second = window_bounds("hour", ms("2026-11-01T01:30", "America/New_York", fold=1), "America/New_York")
    assert first[1] == second[0]
    assert [end - start for start, end in (first, second)] == [HOUR_MS, HOUR_MS]


def test_hour_before_clocks_go_forward_ends_at_the_change() -> None:
    start, end = window_bounds("hour", ms("2026-03-29T01:30", "Europe/Berlin"), "Europe/Berlin")
    assert (start, end) == (ms("2026-03-29T01:00", "Europe/Berlin"), ms("2026-03-29T03:00", "Europe/Berlin"))
    assert end - start == HOUR_MS


def test_day_without_midnight_begins_at_the_clock_change() -> None:
    # Santiago went from 2024-09-08T00:00 straight to 01:00.
    start, end = window_bounds("day", ms("2024-09-08T12:00", "America/Santiago"), "America/Santiago")
    assert start == ms("2024-09-08T01:00", "America/Santiago")
    assert (end - start) / HOUR_MS == 23
    assert window_bounds("day", start - 1, "America/Santiago")[1] == start


def test_clock_set_back_across_midnight_does_not_reopen_the_previous_day() -> None:
    # St John's went at 00:01 on 2010-11-07 back to 23:01 of the day before.
    zone = "America/St_Johns"
    midnight = ms("2010-11-07T00:00", zone)
    again = ms("2010-11-06T23:30", zone, fold=1)
    assert again > midnight
    assert window_bounds("day", again, zone)[0] == midnight
    assert window_bounds("day", midnight - 1, zone)[1] == midnight


def test_date_skipped_by_a_time_zone_has_no_window() -> None:
    # Samoa went from the end of 2011-12-29 to 2011-12-31.
    before = window_bounds("day", ms("2011-12-29T12:00", "Pacific/Apia"), "Pacific/Apia")
    after = window_bounds("day", ms("2011-12-31T12:00", "Pacific/Apia"), "Pacific/Apia")
    assert before[1] == after[0]
    assert [end - start for start, end in (before, after)] == [24 * HOUR_MS, 24 * HOUR_MS]


ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "America/Santiago",
    "America/Havana",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Africa/Cairo",
    "Asia/Beirut",
    "Pacific/Apia",
    "Africa/Casablanca",
    "Antarctica/Troll",
]


@settings(deadline=None)  # the machine may be busy
@given(
    window=st.sampled_from(WINDOWS),
    zone=st.sampled_from(ZONES),
    now_ms=st.integers(ms("1975-01-01"), ms("2037-12-31")),
)
@example(window="day", zone="America/St_Johns", now_ms=ms("2010-11-07T00:00:30", "America/St_Johns"))
def test_windows_of_every_zone_cover_time_without_gap_or_overlap(window: str, zone: str, now_ms: int) -> None:
    start, end = window_bounds(window, now_ms, zone)
    assert start <= now_ms < end
    assert window_bounds(window, start, zone) == (start, end)
    assert window_bounds(window, end - 1, zone) == (start, end)
    assert window_bounds(window, end, zone)[0] == end
    assert window_bounds(window, start - 1, zone)[1] == start


@pytest.mark.parametrize(
    ("window", "now_ms", "zone", "words"),
    [
        ("week", 0, "UTC", "'week' is not a window"),
        ("run", 0, "UTC", "minute, hour, day, month"),
        ("day", 0, "Mars/Olympus", "'Mars/Olympus' is not a time zone"),
        ("day", 0, "../../etc/passwd", "is not a time zone"),
        ("day", 0, "Europe", "'Europe' is not a time zone"),
        ("day", 0, "", "is not a time zone"),
        ("day", -1, "UTC", "outside of the years"),
        ("month", 10**18, "UTC", "outside of the years"),
    ],
)
def test_unknown_window_unknown_zone_or_time_out_of_range_is_refused(
    window: str, now_ms: int, zone: str, words: str
) -> None:
    with pytest.raises(WindowError, match=words):
        window_bounds(window, now_ms, zone)
