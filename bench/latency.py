"""The latency that a gateway adds at one connection: its percentiles minus those of the upstream called directly in the same round.

The machine's own noise is shown with it: how far apart the upstream's own percentiles are between rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bench import measure
from bench.load import LoadResult
from bench.paths import PATHS
from bench.rounds import Line

DIRECT: Final = "mock"
COLUMNS: Final = ("", "added p50 ms", "added p99 ms", "p50 ms", "p99 ms")


@dataclass(frozen=True, slots=True)
class AddedLatency:
    """For one target; medians over the rounds. The noise is half the difference between the upstream's best and worst round."""

    path: str
    target: str
    p50_ms: float
    p99_ms: float
    added_p50_ms: float
    added_p99_ms: float
    noise_p50_ms: float
    noise_p99_ms: float


def added_latencies(lines: Sequence[Line]) -> list[AddedLatency]:
    """For every target with one connection, on paths where the upstream was also measured directly and sets no pace."""
    alone = [line for line in lines if line.connections == 1 and PATHS[line.path].pace_ms is None]
    direct = {line.path: line for line in alone if line.target == DIRECT}
    return [_added_latency(line, direct[line.path]) for line in alone if line.target != DIRECT and line.path in direct]


def _added_latency(line: Line, direct: Line) -> AddedLatency:
    return AddedLatency(
        path=line.path,
        target=line.target,
        p50_ms=line.p50_ms,
        p99_ms=line.p99_ms,
        added_p50_ms=_median_difference((own.p50_ms, base.p50_ms) for own, base in _pairs(line, direct)),
        added_p99_ms=_median_difference((own.p99_ms, base.p99_ms) for own, base in _pairs(line, direct)),
        noise_p50_ms=_half_range([base.p50_ms for base in direct.rounds]),
        noise_p99_ms=_half_range([base.p99_ms for base in direct.rounds]),
    )


def _pairs(line: Line, direct: Line) -> Iterable[tuple[LoadResult, LoadResult]]:
    return zip(line.rounds, direct.rounds, strict=False)


def _median_difference(pairs: Iterable[tuple[float, float]]) -> float:
    return measure.median(own - base for own, base in pairs)


def _half_range(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / 2
