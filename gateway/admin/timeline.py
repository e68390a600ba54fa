"""The calls of a run along its time: a lane for each step, a bar for each call from when it came to when it was settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from gateway.admin.figures import count, span

# In hundredths of the line: a call of a millisecond in a run of an hour is seen, too.
_WIDTH_MIN: Final = 0.5
_TICKS: Final = 5


@dataclass(frozen=True, slots=True)
class Lane:
    step: str
    bars: Markup


@dataclass(frozen=True, slots=True)
class Timeline:
    """`ticks` are the times since the run's first call at evenly spaced places."""

    lanes: tuple[Lane, ...]
    ticks: tuple[str, ...]


def timeline(calls: Sequence[Mapping[str, Any]]) -> Timeline | None:
    """Of these calls, whatever their order; None for none."""
    if not calls:
        return None
    begins = [call["at"] - (call["duration_ms"] or 0) for call in calls]
    first = min(begins)
    whole = max(1, max(call["at"] for call in calls) - first)
    lanes: dict[str, list[Markup]] = {}
    for call, begin in sorted(zip(calls, begins, strict=True), key=lambda pair: pair[1]):
        lanes.setdefault(call["step"], []).append(_bar(call, (begin - first) / whole, call["at"] - begin, whole))
    ticks = tuple(span(whole * at / (_TICKS - 1)) if at else "0" for at in range(_TICKS))
    return Timeline(tuple(Lane(step, Markup("").join(bars)) for step, bars in lanes.items()), ticks)


def _bar(call: Mapping[str, Any], begin: float, took_ms: int, whole_ms: int) -> Markup:
    width = max(_WIDTH_MIN, took_ms / whole_ms * 100)
    said = f"{call['step']}: {call['code'] or call['status']}" if call["status"] != "ok" else call["step"]
    facts = f"{said}, {span(took_ms)}, {count(call['total_tokens'])} tokens, {call['model'] or call['model_requested']}"
    return Markup(
        '<a href="#call-{}"><rect class="{}" x="{:.2f}" y="3" width="{:.2f}" height="14"><title>{}</title></rect></a>'
    ).format(call["id"], call["status"], min(begin * 100, 100 - width), width, facts)
