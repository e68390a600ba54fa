"""Truncation: drops the middle of a long text first, and keeps its beginning and end.

A document starts with its subject, and a log ends with what went wrong; Liu et al. (2023, "Lost in the Middle") found that
models make the least use of the middle of a long context.
"""

from collections.abc import Sequence

_HEAD_SHARE = 0.55  # of the kept text, a little more is from the beginning than from the end


def truncation_priorities(units: Sequence[str]) -> list[float]:
    """A priority for each unit: the closer to either end, the higher."""
    total = sum(map(len, units)) or 1
    priorities = []
    position = 0
    for unit in units:
        from_start = position / total
        position += len(unit)
        priorities.append(-min(from_start / _HEAD_SHARE, (total - position) / total / (1 - _HEAD_SHARE)))
    return priorities
