"""Reports of a measurement: tables for a terminal, JSON for a program, a section of a document for readers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench import chunks, latency, peers
from bench.paths import PATHS
from bench.rounds import Line
from bench.servers import ROOT
from bench.targets import BASELINE, TARGETS

_PACKAGES: Final = ("uvicorn", "httptools", "uvloop", "starlette", "aiohttp", "litellm")
_COLUMNS: Final = (
    "",
    "calls/s",
    "CPU µs/call",
    "× passthrough",
    "quiet µs",
    "× quiet",
    "p50 ms",
    "p99 ms",
    "first byte ms",
    "MB",
)
_LATENCY_NOTE: Final = (
    "Percentiles minus those of the upstream called directly in the same round. The figure after ± is the machine's noise: half the\n"
    "difference between the best and the worst round of the upstream alone."
)
_CHUNK_NOTE: Final = (
    "CPU of a call divided by the number of its chunks; this includes a five-hundredth of the cost of the call itself."
)
_BEGIN: Final = "<!-- measured by python -m bench: begin -->"
_END: Final = "<!-- measured by python -m bench: end -->"
# Above this share of a core, the load generator may limit the result; CPU per call is still valid, calls/s are not.
_GENERATOR_BUSY: Final = 0.85


def print_tables(lines: Sequence[Line], console: Console) -> None:
    for (path, connections), group in _groups(lines):
        table = Table(title=f"{path}: {PATHS[path].title} · {connections} connections", title_justify="left")
        for column in _COLUMNS:
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        for line in group:
            table.add_row(*_cells(line), style="bold" if line.target == "tagged" else None)
        console.print(table)
    for title, _, columns, rows in _tables(lines):
        if rows:
            table = Table(title=title, title_justify="left")
            for column in columns:
                table.add_column(column, justify="right" if column else "left", no_wrap=True)
            for row in rows:
                table.add_row(*row)
            console.print(table)
    for remark in remarks(lines):
        console.print(remark, style="yellow", markup=False)


def _tables(lines: Sequence[Line]) -> Iterable[tuple[str, str, Sequence[str], list[list[str]]]]:
    """Tables over several lines: a title, a note, columns and rows."""
    latencies = [_latency_cells(added) for added in latency.added_latencies(lines)]
    yield "Latency added at one connection", _LATENCY_NOTE, latency.COLUMNS, latencies
    yield (
        "CPU of a relayed chunk",
        _CHUNK_NOTE,
        chunks.COLUMNS,
        [_chunk_cells(chunk_cost) for chunk_cost in chunks.chunk_costs(lines)],
    )


def _latency_cells(added: latency.AddedLatency) -> list[str]:
    return [
        f"{TARGETS[added.target].title}, {added.path}",
        f"{added.added_p50_ms:.2f} ± {added.noise_p50_ms:.2f}",
        f"{added.added_p99_ms:.2f} ± {added.noise_p99_ms:.2f}",
        f"{added.p50_ms:.2f}",
        f"{added.p99_ms:.2f}",
    ]


def _chunk_cells(cost: chunks.ChunkCost) -> list[str]:
    beyond = f"{cost.beyond_us:.1f}" if cost.target != BASELINE else "–"
    return [f"{TARGETS[cost.target].title}, {cost.path} × {cost.connections}", f"{cost.cpu_us:.1f}", beyond]


def remarks(lines: Iterable[Line]) -> list[str]:
    """What a reader has to know before trusting a number."""
    lines_of_remarks: list[str] = []
    for line in lines:
        where = f"{TARGETS[line.target].title}, {line.path} × {line.connections}"
        if line.failed:
            lines_of_remarks.append(f"{where}: {line.failed} calls failed: {'; '.join(line.errors)}")
        elif not line.calls_per_second:
            lines_of_remarks.append(f"{where}: no answer within the round")
        if line.generator_share > _GENERATOR_BUSY:
            lines_of_remarks.append(
                f"{where}: the load generator used {line.generator_share:.0%} of its core; calls/s are its limit"
            )
    return lines_of_remarks


def as_json(lines: Sequence[Line], facts: Mapping[str, Any], missing: Mapping[str, str]) -> str:
    return json.dumps({"facts": facts, "missing": missing, "lines": [asdict(line) for line in lines]}, indent=1)


def write_document(
    path: Path, lines: Sequence[Line], facts: Mapping[str, Any], missing: Mapping[str, str], command: str
) -> None:
    """Replaces the measured section of a document, or appends it. The rest of the document is left alone."""
    section = "\n".join([_BEGIN, "", *_section(lines, facts, missing, command), "", _END])
    text = path.read_text() if path.exists() else "# Benchmarks\n"
    pattern = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: section, text)
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    path.write_text(text)


def _section(
    lines: Sequence[Line], facts: Mapping[str, Any], missing: Mapping[str, str], command: str
) -> Iterable[str]:
    yield "Measured with"
    yield ""
    yield f"    {command}"
    yield ""
    yield f"on {facts['date']}, revision {facts['revision']}, {facts['cpu']}, {facts['cores']} cores, {facts['system']}."
    yield f"Versions: {', '.join(f'{name} {version}' for name, version in facts['versions'].items())}."
    yield f"Each figure is the median of {facts['rounds']} rounds of {facts['seconds']} s; prompts: {facts['prompts']}."
    for (path, connections), group in _groups(lines):
        yield ""
        yield f"### {path}: {PATHS[path].title}, {connections} connections"
        yield ""
        yield "| " + " | ".join(_COLUMNS) + " |"
        yield "|---" + "|---:" * (len(_COLUMNS) - 1) + "|"
        for line in group:
            yield "| " + " | ".join(_cells(line)) + " |"
    for title, note, columns, rows in _tables(lines):
        if rows:
            yield from ("", f"### {title}", "", note, "")
            yield "| " + " | ".join(columns) + " |"
            yield "|---" + "|---:" * (len(columns) - 1) + "|"
            yield from ("| " + " | ".join(row) + " |" for row in rows)
    notes = [*remarks(lines), *(f"Not measured: {name}, {reason.splitlines()[0]}" for name, reason in missing.items())]
    if notes:
        yield ""
        yield from (f"- {note}" for note in notes)


def _groups(lines: Sequence[Line]) -> Iterable[tuple[tuple[str, int], Iterable[Line]]]:
    return groupby(lines, key=lambda line: (line.path, line.connections))


def _cells(line: Line) -> list[str]:
    figures = [
        f"{line.calls_per_second:,.0f}" if line.calls_per_second >= 10 else f"{line.calls_per_second:.1f}",
        f"{line.cpu_us:,.0f}",
        _ratio(line, line.ratio),
        f"{line.quiet_cpu_us:,.0f}" if line.quiet_cpu_us else "–",
        _ratio(line, line.quiet_ratio),
        f"{line.p50_ms:,.2f}",
        f"{line.p99_ms:,.2f}",
        f"{line.first_byte_p50_ms:,.2f}" if PATHS[line.path].streams else "–",
        f"{line.memory_mb:,.0f}",
    ]
    answered = sum(result.calls for result in line.rounds)
    # A fast error is not a fast call: a target that mostly failed gets no figures.
    if line.failed > answered // 100 or not answered:
        figures = ["failed", *("–" for _ in figures[1:])]
    return [TARGETS[line.target].title, *figures]


def _ratio(line: Line, ratio: float) -> str:
    return f"{ratio:.2f}" if ratio and line.target != BASELINE else "–"


def facts_of(*, rounds: int, seconds: float, prompts: str, date: str) -> dict[str, Any]:
    """The machine, the versions and the settings that the figures belong to."""
    return {
        "date": date,
        "revision": _revision(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "rounds": rounds,
        "seconds": seconds,
        "prompts": prompts,
        "versions": {"Python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES}
        | peers.versions(),
    }


def _revision() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    done = subprocess.run([git, "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() or "unknown"


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()
