"""Changes of the embedded ledger that are not in its tables yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import NamedTuple, TypeVar

from gateway.ledger.sqlite_journal import Key
from gateway.ledger.sqlite_rows import Row

K = TypeVar("K")
V = TypeVar("V")
Run = tuple[str, int]


class ValuesToWrite(NamedTuple):
    """Values to be written. For accounts and reservations only the keys, because their current values are in memory."""

    accounts: list[Key]
    reservations: list[Key]
    runs: list[tuple[Key, Run]]
    entries: list[Row]


class UncommittedChanges:
    """What was changed since the last commit."""

    __slots__ = ("accounts", "entries", "reservations", "runs")

    def __init__(self) -> None:
        self.accounts: set[Key] = set()
        self.reservations: set[Key] = set()
        self.runs: dict[Key, Run] = {}
        self.entries: list[Row] = []

    def __bool__(self) -> bool:
        return bool(self.accounts or self.reservations or self.runs or self.entries)

    def clear(self) -> None:
        self.accounts.clear()
        self.reservations.clear()
        self.runs.clear()
        self.entries.clear()


class JournaledChanges:
    """What was committed to the journal but not written to the tables. Each value has the number of the first commit that changed it.

    A value that is changed again keeps its place, so values of the oldest commits come first. Once these are written, the
    beginning of the journal is no longer needed: later commits contain the later changes.
    """

    def __init__(self) -> None:
        self.accounts: dict[Key, int] = {}
        self.reservations: dict[Key, int] = {}
        self.runs: dict[Key, tuple[int, Run]] = {}
        self.entries: dict[int, tuple[int, Row]] = {}  # by position, without acknowledged ones
        self.size = 0  # the number of values first changed by the commits, at least one per commit
        self._commits: deque[tuple[int, int, int]] = deque()  # number, its part of the size, time (ms)

    def __bool__(self) -> bool:
        return bool(self._commits)

    def add(self, number: int, changed: UncommittedChanges, now_ms: int) -> None:
        count_before = len(self.accounts) + len(self.reservations)
        for key in changed.accounts:
            self.accounts.setdefault(key, number)
        for key in changed.reservations:
            self.reservations.setdefault(key, number)
        for key, run in changed.runs.items():
            self.runs[key] = (self.runs[key][0] if key in self.runs else number, run)
        for row in changed.entries:
            self.entries[row[0]] = (number, row)
        new_values = len(self.accounts) + len(self.reservations) - count_before + len(changed.entries)
        self._commits.append((number, max(1, new_values), now_ms))
        self.size += max(1, new_values)

    def commit_reaching_size(self, size: int) -> int:
        """The number of the commit up to which the commits have at least this size together."""
        for number, part, _ in self._commits:
            size -= part
            if size <= 0:
                return number
        return self._commits[-1][0] if self._commits else 0

    def last_commit_before(self, time_ms: int) -> int:
        """The number of the last commit before this time; 0 if there is none."""
        number = 0
        for commit, _, at_ms in self._commits:
            if at_ms >= time_ms:
                break
            number = commit
        return number

    def take_through(self, number: int) -> ValuesToWrite:
        """Remove and return the values to be written for the commits up to this one."""
        while self._commits and self._commits[0][0] <= number:
            self.size -= self._commits.popleft()[1]
        return ValuesToWrite(
            [key for key, _ in _pop_leading(self.accounts, lambda first: first <= number)],
            [key for key, _ in _pop_leading(self.reservations, lambda first: first <= number)],
            [(key, run) for key, (_, run) in _pop_leading(self.runs, lambda value: value[0] <= number)],
            [row for _, (_, row) in _pop_leading(self.entries, lambda value: value[0] <= number)],
        )

    def clear(self) -> None:
        self.accounts.clear()
        self.reservations.clear()
        self.runs.clear()
        self.entries.clear()
        self._commits.clear()
        self.size = 0


def _pop_leading(items_by_key: dict[K, V], matches: Callable[[V], bool]) -> list[tuple[K, V]]:
    """Remove and return the leading items that match."""
    items = list(takewhile(lambda item: matches(item[1]), items_by_key.items()))
    for key, _ in items:
        del items_by_key[key]
    return items
