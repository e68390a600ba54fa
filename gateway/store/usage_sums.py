"""What a batch of usage rows adds to the sums by hour, day, run and step. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from gateway.store.tables import GROUPED, SUMS
from gateway.store.usage_event import Row, at_of, values_of

Values = list[tuple[Any, ...]]
Amounts = tuple[int, ...]  # the values of SUMS

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
# Refused calls are counted separately; late settlements and repairs correct calls that were counted before.
CALL_STATUSES: Final = ("ok", "error", "cancelled", "lost")
ERROR_STATUSES: Final = ("error", "lost")

# Columns of `token_usage` that are summed directly; calls, refused and errors are counted by status.
SUMMED: Final = SUMS[3:]

# The columns of the results, in the order of their tables.
HOURLY: Final = ("hour_at", *GROUPED, *SUMS)
DAILY: Final = ("day_at", *GROUPED, *SUMS)
_RUN_COLUMNS: Final = ("workflow", "agent", "user", "parent_run")
BY_RUN: Final = ("project", "run", *_RUN_COLUMNS, "state", "first_at", "last_at", "plan", "metrics", *SUMS)
_STEP_COLUMNS: Final = ("intent", "confidence", "intent_source", "model")
BY_STEP: Final = ("project", "run", "step", *_STEP_COLUMNS, "first_at", "last_at", *SUMS)

# The (calls, refused, errors) that a row of this status counts as.
_COUNTED: Final = {
    **{status: (1, 0, int(status in ERROR_STATUSES)) for status in CALL_STATUSES},
    "refused": (0, 1, 0),
    "late": (0, 0, 0),
    "repair": (0, 0, 0),
}
_KEYS_OF: Final = values_of("at", "status", "project", "run", "step")
_GROUP_OF: Final = values_of(*GROUPED)
_SUMMED_OF: Final = values_of(*SUMMED)
_TIMES_OF: Final = values_of("at", "duration_ms")
_NAMES_OF_RUN: Final = tuple(map(values_of, _RUN_COLUMNS))
_CODE_OF: Final = values_of("code")
_INTENT_OF: Final = values_of("intent", "intent_confidence", "intent_source")
_MODEL_OF: Final = values_of("model")


class BatchSums:
    """The sums of one batch. All lists are sorted by key, so that concurrent writers lock in the same order."""

    def __init__(self) -> None:
        self._hours: dict[tuple[Any, ...], list[Amounts]] = defaultdict(list)
        self._runs: dict[tuple[str, str], _OrderedRows] = defaultdict(_OrderedRows)
        self._steps: dict[tuple[str, str, str], _OrderedRows] = defaultdict(_OrderedRows)

    def add(self, rows: Iterable[Row]) -> None:
        """Call with rows in the order of time, over all calls: a run's names come from its first events, its state from the last."""
        for row in rows:
            at_ms, status, project, run, step = _KEYS_OF(row)
            amounts = (*_COUNTED[status], *_SUMMED_OF(row))
            self._hours[at_ms - at_ms % HOUR_MS, *_GROUP_OF(row)].append(amounts)
            if run:
                self._runs[project, run].add(row, amounts)
                if step:
                    self._steps[project, run, step].add(row, amounts)

    def hourly(self) -> Values:
        """One row of HOURLY per hour and combination of names."""
        return [(*key, *_summed(amounts)) for key, amounts in sorted(self._hours.items())]

    def daily(self) -> Values:
        """One row of DAILY per day in UTC and combination of names."""
        days: dict[tuple[Any, ...], list[Amounts]] = defaultdict(list)
        for (hour_at, *names), amounts in self._hours.items():
            days[hour_at - hour_at % DAY_MS, *names] += amounts
        return [(*key, *_summed(amounts)) for key, amounts in sorted(days.items())]

    def by_run(self) -> Values:
        """One row of BY_RUN per tagged run. Its state follows its latest event: exhausted, or active."""
        return [
            (*key, *_names(group.rows), _state(group.rows), *group.first_and_last(), "", "", *_summed(group.amounts))
            for key, group in sorted(self._runs.items())
        ]

    def by_step(self) -> Values:
        """One row of BY_STEP per step of a run."""
        return [
            (*key, *_intent(group.rows), _model(group.rows), *group.first_and_last(), *_summed(group.amounts))
            for key, group in sorted(self._steps.items())
        ]


class _OrderedRows:
    """The rows of a run or step in the order of time, and what each of them adds."""

    __slots__ = ("amounts", "rows")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.amounts: list[Amounts] = []

    def add(self, row: Row, amounts: Amounts) -> None:
        self.rows.append(row)
        self.amounts.append(amounts)

    def first_and_last(self) -> tuple[int, int]:
        """When the first call arrived, and when the last one ended, which is what the time of a row says."""
        return min(at_ms - max(0, took_ms or 0) for at_ms, took_ms in map(_TIMES_OF, self.rows)), at_of(self.rows[-1])


def _summed(amounts: Iterable[Amounts]) -> Iterable[int]:
    return map(sum, zip(*amounts, strict=True))


def _names(rows: Sequence[Row]) -> Iterable[str]:
    """The run's names: the first non-empty value of each."""
    return (next(filter(None, map(name_of, rows)), "") for name_of in _NAMES_OF_RUN)


def _state(rows: Sequence[Row]) -> str:
    return "exhausted" if _CODE_OF(rows[-1]) == "run_budget_exceeded" else "active"


def _intent(rows: Sequence[Row]) -> tuple[str, float | None, str]:
    """The last given one, with its confidence and source."""
    return next((intent for intent in map(_INTENT_OF, reversed(rows)) if intent[0]), ("", None, ""))


def _model(rows: Sequence[Row]) -> str:
    return next(filter(None, map(_MODEL_OF, reversed(rows))), "")
