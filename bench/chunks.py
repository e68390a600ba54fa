"""The cost of relaying one chunk of a stream: the CPU of a call divided by its chunks, and the part beyond the passthrough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench import measure
from bench.latency import DIRECT
from bench.paths import PATHS
from bench.rounds import Line
from bench.targets import BASELINE

COLUMNS: Final = ("", "µs per chunk", "beyond passthrough")
# In a short stream, the call itself is most of the cost.
_CHUNKS_MIN: Final = 100


@dataclass(frozen=True, slots=True)
class ChunkCost:
    """Medians over the rounds. They include a five-hundredth of the cost of the call itself (admission, settlement)."""

    path: str
    connections: int
    target: str
    cpu_us: float
    beyond_us: float


def chunk_costs(lines: Sequence[Line]) -> list[ChunkCost]:
    """For every target, on the long streams whose chunks arrive and leave one by one."""
    long = [
        line
        for line in lines
        if line.target != DIRECT and PATHS[line.path].pace_ms and PATHS[line.path].chunks >= _CHUNKS_MIN
    ]
    base = {(line.path, line.connections): line for line in long if line.target == BASELINE}
    return [_cost(line, base.get((line.path, line.connections))) for line in long]


def _cost(line: Line, base: Line | None) -> ChunkCost:
    chunks = PATHS[line.path].chunks
    pairs = zip(line.rounds, base.rounds if base is not None else (), strict=False)
    beyond_us = measure.median((own.cpu_us - base.cpu_us) / chunks for own, base in pairs)
    return ChunkCost(line.path, line.connections, line.target, line.cpu_us / chunks, beyond_us)
