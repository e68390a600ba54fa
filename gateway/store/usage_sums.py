"""What a batch of usage rows adds to the sums by hour, day, run and step. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import add, itemgetter
from typing import Any, Final

from gateway.store.tables import GROUPED, SUMS

Row = Mapping[str, Any]
Columns = dict[str, list[Any]]  # of as many rows as each list is long

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
# Refused calls are counted apart, and a late settlement or a repair corrects a call that was counted before.
CALL_STATUSES: Final = ("ok", "error", "cancelled", "lost")
ERROR_STATUSES: Final = ("error", "lost")

# Columns of `token_usage` that are summed as they are; calls, refused and errors are counted from the status.
SUMMED: Final = SUMS[3:]

_GROUP_OF: Final = itemgetter(*GROUPED)
_SUMMED_OF: Final = itemgetter(*SUMMED)
# (calls, refused, errors) that a row of this status counts as.
_COUNTED: Final = {
    **{status: (1, 0, int(status in ERROR_STATUSES)) for status in CALL_STATUSES},
    "refused": (0, 1, 0),
    "late": (0, 0, 0),
    "repair": (0, 0, 0),
}
_ZEROS: Final = (0,) * len(SUMS)
# What the events of a run and of a step call it.
_OF_RUN: Final[dict[str, Any]] = {"state": "", "workflow": "", "agent": "", "user": "", "parent_run": ""}
_OF_STEP: Final[dict[str, Any]] = {"intent": "", "confidence": None, "intent_source": "", "model": ""}


class BatchSums:
    """The sums of one batch. Every list is in the order of its keys, so that all writers lock in the same order."""

    def __init__(self) -> None:
        self._hours: dict[tuple[Any, ...], list[int]] = {}
        self._runs: dict[tuple[str, str], _Seen] = {}
        self._steps: dict[tuple[str, str, str], _Seen] = {}

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._add(row)

    def hourly(self) -> Columns:
        """One row for each hour and combination of names."""
        return _grouped("hour_at", self._hours)

    def daily(self) -> Columns:
        """One row for each day in UTC and combination of names."""
        days: dict[tuple[Any, ...], list[int]] = {}
        for (hour_at, *names), amounts in self._hours.items():
            day = (hour_at - hour_at % DAY_MS, *names)
            days[day] = list(map(add, days.get(day, _ZEROS), amounts))
        return _grouped("day_at", days)

    def by_run(self) -> Columns:
        """One row for each run that was tagged. Its state is what its latest event says: exhausted, or active."""
        rows = [
            (*key, "", "", *seen.names.values(), seen.first_at, seen.last_at, *seen.sums)
            for key, seen in sorted(self._runs.items())
        ]
        return _columns(("project", "run", "plan", "metrics", *_OF_RUN, "first_at", "last_at", *SUMS), rows)

    def by_step(self) -> Columns:
        """One row for each step of a run."""
        rows = [
            (*key, *seen.names.values(), seen.first_at, seen.last_at, *seen.sums)
            for key, seen in sorted(self._steps.items())
        ]
        return _columns(("project", "run", "step", *_OF_STEP, "first_at", "last_at", *SUMS), rows)

    def _add(self, row: Row) -> None:
        # Computed once for the three places that it is added to.
        amounts = (*_COUNTED[row["status"]], *_SUMMED_OF(row))
        at = row["at"]
        hour = (at - at % HOUR_MS, *_GROUP_OF(row))
        self._hours[hour] = list(map(add, self._hours.get(hour, _ZEROS), amounts))
        if not row["run"]:
            return
        key = (row["project"], row["run"])
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Seen(at, dict(_OF_RUN))
        if run.add(at, amounts):
            run.names["state"] = "exhausted" if row["code"] == "run_budget_exceeded" else "active"
        for name in ("workflow", "agent", "user", "parent_run"):
            if not run.names[name]:
                run.names[name] = row[name]
        if row["step"]:
            self._add_step(row, amounts)

    def _add_step(self, row: Row, amounts: tuple[int, ...]) -> None:
        key = (row["project"], row["run"], row["step"])
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = _Seen(row["at"], dict(_OF_STEP))
        is_latest = step.add(row["at"], amounts)
        if row["intent"] and (is_latest or not step.names["intent"]):
            step.names["intent"] = row["intent"]
            step.names["confidence"] = row["intent_confidence"]
            step.names["intent_source"] = row["intent_source"]
        if row["model"] and (is_latest or not step.names["model"]):
            step.names["model"] = row["model"]


class _Seen:
    """Sums of a run or step, when it was seen first and last, and what its events call it."""

    __slots__ = ("first_at", "last_at", "names", "sums")

    def __init__(self, at: int, names: dict[str, Any]) -> None:
        self.first_at = self.last_at = at
        self.names = names
        self.sums: Iterable[int] = _ZEROS

    def add(self, at: int, amounts: tuple[int, ...]) -> bool:
        """Whether this is the latest event so far."""
        self.sums = list(map(add, self.sums, amounts))
        self.first_at = min(self.first_at, at)
        if at < self.last_at:
            return False
        self.last_at = at
        return True


def _grouped(start: str, found: Mapping[tuple[Any, ...], list[int]]) -> Columns:
    return _columns((start, *GROUPED, *SUMS), [(*key, *sums) for key, sums in sorted(found.items())])


def _columns(names: Iterable[str], rows: Sequence[tuple[Any, ...]]) -> Columns:
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
