"""CPU time and memory of other processes, from the kernel's own books, and the figures that are made of them."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROCESSES: Final = Path("/proc")
_CLOCK_OF_PROCESS: Final = 2  # CPUCLOCK_SCHED, in the lowest three bits of a clock's id (clock_getcpuclockid(3))


def cpu_ns(process: int) -> int:
    """CPU time that a process and its threads have used, also those threads that ended. 0 for one that is gone.

    Unlike `/proc/PID/stat`, which counts in hundredths of a second, this is exact to the nanosecond.
    """
    try:
        return time.clock_gettime_ns((~process << 3) | _CLOCK_OF_PROCESS)
    except OSError:
        return 0


def cpu_ns_of(processes: Iterable[int]) -> int:
    return sum(cpu_ns(process) for process in processes)


def tree(process: int) -> list[int]:
    """A process and all that descend from it, now."""
    children: dict[int, list[int]] = {}
    for folder in _PROCESSES.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The name is in parentheses and may contain anything, even parentheses.
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    processes = [process]
    for parent in processes:
        processes.extend(children.get(parent, []))
    return processes


def memory_bytes(processes: Iterable[int]) -> int:
    """Resident memory. Pages that processes share are counted in each of them."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            pages = int((_PROCESSES / str(process) / "statm").read_text().split()[1])
            total += pages * os.sysconf("SC_PAGE_SIZE")
    return total


@dataclass(frozen=True, slots=True)
class Cores:
    """Where processes run: what is measured has a core for itself, where there are two."""

    gateway: int
    rest: int

    @staticmethod
    def chosen() -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        return Cores(cores[0], cores[-1])

    @property
    def are_two(self) -> bool:
        return self.gateway != self.rest


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes that are started in here inherit the core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of values in rising order; 0 of none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: Iterable[float]) -> float:
    """0 of none."""
    known = list(values)
    return statistics.median(known) if known else 0.0
