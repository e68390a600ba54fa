"""The calls of a run on a time axis: a lane for each step, and a bar for each call, from its arrival to its settlement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from gateway.admin.formatting import count, duration

# In percent of the axis, so that a call of a millisecond is visible even in a run of an hour.
_BAR_WIDTH_PERCENT_MIN: Final = 0.5
_GAP_PERCENT: Final = 0.15
_ROW_PX: Final = 17
_TICK_COUNT: Final = 5


@dataclass(frozen=True, slots=True)
class Lane:
    """Calls that overlap in time are in different rows of the lane."""

    step: str
    height_px: int
    bars: Markup


@dataclass(frozen=True, slots=True)
class Timeline:
    """`ticks` are the times since the run's first call at evenly spaced places."""

    lanes: tuple[Lane, ...]
    ticks: tuple[str, ...]


def timeline(calls: Sequence[Mapping[str, Any]]) -> Timeline | None:
    """The timeline of these calls, in any order; None without calls."""
    if not calls:
        return None
    ordered = sorted(calls, key=_start_ms)
    first = _start_ms(ordered[0])
    whole_ms = max(1, max(call["at"] for call in calls) - first)
    steps: dict[str, list[Mapping[str, Any]]] = {}
    for call in ordered:
        steps.setdefault(call["step"], []).append(call)
    ticks = tuple(duration(whole_ms * index / (_TICK_COUNT - 1)) if index else "0" for index in range(_TICK_COUNT))
    return Timeline(tuple(_lane(step, step_calls, first, whole_ms) for step, step_calls in steps.items()), ticks)


def _start_ms(call: Mapping[str, Any]) -> int:
    return int(call["at"] - (call["duration_ms"] or 0))


def _lane(step: str, calls: Sequence[Mapping[str, Any]], first: int, whole_ms: int) -> Lane:
    """Put each call into the first row that is free when it arrives."""
    ends: list[float] = []
    bars = []
    for call in calls:
        width = max(_BAR_WIDTH_PERCENT_MIN, (call["at"] - _start_ms(call)) / whole_ms * 100)
        left_percent = min((_start_ms(call) - first) / whole_ms * 100, 100 - width)
        row = next((row for row, end in enumerate(ends) if end <= left_percent + _GAP_PERCENT), len(ends))
        ends[row : row + 1] = [left_percent + width]
        bars.append(_bar(call, left_percent, width - min(_GAP_PERCENT, width / 4), row * _ROW_PX))
    return Lane(step, len(ends) * _ROW_PX, Markup("").join(bars))


def _bar(call: Mapping[str, Any], left_percent: float, width: float, top_px: int) -> Markup:
    outcome = f"{call['step']}: {call['code'] or call['status']}" if call["status"] != "ok" else call["step"]
    model = call["model"] or call["model_requested"]
    facts = f"{outcome}, {duration(call['duration_ms'] or 0)}, {count(call['total_tokens'])} tokens, {model}"
    return Markup(
        '<a href="#call-{}"><rect class="{}" x="{:.2f}" y="{}" width="{:.2f}" height="13" rx="0.3"><title>{}</title></rect></a>'
    ).format(call["id"], call["status"], left_percent, top_px + 2, width, facts)
