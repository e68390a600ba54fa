"""Runs the rounds: for each path and number of connections, every target in turn, again and again, so that all of them meet the
same conditions of the machine."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from bench import measure
from bench.load import LoadResult, LoadSpec
from bench.paths import PATHS, Prompts
from bench.servers import ROOT
from bench.targets import BASELINE, TARGETS, Fleet, Target

_WARM_UP_SECONDS: Final = 0.3
_FIRST_CALLS: Final = 5
_STOP_MAX_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One path with a number of connections, and the targets that are measured on it."""

    path: str
    connections: int
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """The figures of one target in one cell: medians over the rounds, and all rounds."""

    path: str
    connections: int
    target: str
    calls_per_second: float
    cpu_us: float
    quiet_cpu_us: float
    ratio: float  # CPU relative to the passthrough in the same round; 0 if there was none
    quiet_ratio: float
    p50_ms: float
    p99_ms: float
    first_byte_p50_ms: float
    memory_mb: float
    generator_share: float
    failed: int
    errors: tuple[str, ...]
    rounds: tuple[LoadResult, ...]


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int
    seconds: float
    prompts: Prompts


class Generator:
    """The process of the load generator."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def run(self, spec: LoadSpec) -> LoadResult:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(asdict(spec)).encode() + b"\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with {self._process.wait(_STOP_MAX_S)}")
        return LoadResult(**json.loads(line))


@contextlib.contextmanager
def generator(core: int) -> Iterator[Generator]:
    command = [sys.executable, "-m", "bench.load"]
    with measure.pinned(core):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    with process:
        try:
            yield Generator(process)
        finally:
            process.kill()


class Measurement:
    def __init__(self, fleet: Fleet, generator: Generator, effort: Effort, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._generator = generator
        self._effort = effort
        self._say = say
        self._warm: set[tuple[str, str]] = set()

    def lines(self, cells: Iterable[Cell]) -> list[Line]:
        return [line for cell in cells for line in self._cell(cell)]

    def _cell(self, cell: Cell) -> list[Line]:
        targets = [TARGETS[name] for name in cell.targets if self._is_measurable(TARGETS[name], cell)]
        results: dict[str, list[LoadResult]] = {target.name: [] for target in targets}
        memory: dict[str, float] = {}
        for number in range(self._effort.rounds):
            # The target after a heavy one may find that one's data in the caches and its writes in the disk's queue.
            for target in targets if number % 2 == 0 else reversed(targets):
                self._say(f"{cell.path} × {cell.connections}: {target.title}, round {number + 1}")
                results[target.name].append(self._round(cell, target))
                server = self._fleet.servers[target.server]
                memory[target.name] = measure.memory_bytes(server.processes) / 2**20
        return [_line(cell, target.name, results, memory[target.name]) for target in targets]

    def _is_measurable(self, target: Target, cell: Cell) -> bool:
        return target.server in self._fleet.servers and cell.connections <= target.connections_max

    def _round(self, cell: Cell, target: Target) -> LoadResult:
        if (target.name, cell.path) not in self._warm:
            # The first calls load modules and build tables, which may take seconds.
            self._warm.add((target.name, cell.path))
            self._generator.run(self._load_spec(cell, target, connections=2, calls_each=_FIRST_CALLS))
        server = self._fleet.servers[target.server]
        server.processes = measure.tree(server.process.pid)
        return self._generator.run(
            self._load_spec(cell, target, connections=cell.connections, calls_each=PATHS[cell.path].calls_each)
        )

    def _load_spec(self, cell: Cell, target: Target, *, connections: int, calls_each: int) -> LoadSpec:
        server = self._fleet.servers[target.server]
        return LoadSpec(
            host="127.0.0.1",
            port=server.port,
            path=cell.path,
            model=f"bench-{cell.path}",
            connections=connections,
            seconds=self._effort.seconds,
            warm_up_seconds=_WARM_UP_SECONDS,
            headers=self._fleet.headers(target),
            is_tagged=target.is_tagged,
            prompts=self._effort.prompts,
            nonce=secrets.token_hex(4),
            processes=server.processes,
            calls_each=calls_each,
        )


def _line(cell: Cell, target: str, results: Mapping[str, Sequence[LoadResult]], memory_mb: float) -> Line:
    own = results[target]
    base = results.get(BASELINE, ())
    return Line(
        path=cell.path,
        connections=cell.connections,
        target=target,
        calls_per_second=measure.median(result.calls / result.seconds for result in own),
        cpu_us=measure.median(result.cpu_us for result in own),
        quiet_cpu_us=measure.median(result.quiet_cpu_us for result in own),
        ratio=_ratio([result.cpu_us for result in own], [result.cpu_us for result in base]),
        quiet_ratio=_ratio([result.quiet_cpu_us for result in own], [result.quiet_cpu_us for result in base]),
        p50_ms=measure.median(result.p50_ms for result in own),
        p99_ms=measure.median(result.p99_ms for result in own),
        first_byte_p50_ms=measure.median(result.first_byte_p50_ms for result in own),
        memory_mb=memory_mb,
        generator_share=max(result.own_cpu_share for result in own),
        failed=sum(result.failed for result in own),
        errors=tuple(dict.fromkeys(error for result in own for error in result.errors)),
        rounds=tuple(own),
    )


def _ratio(own: Sequence[float], base: Sequence[float]) -> float:
    """The median over the rounds: two rounds of the same number were seconds apart, so the machine's conditions were similar."""
    return measure.median(
        own_figure / base_figure
        for own_figure, base_figure in zip(own, base, strict=False)
        if own_figure and base_figure
    )
