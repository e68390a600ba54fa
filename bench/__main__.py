"""The cost of a call: CPU, calls/s and latency of Farebox, compared with a bare passthrough and other gateways.

    .venv/bin/python -m bench                                   the usual cells, in about five minutes
    .venv/bin/python -m bench --peers                           with other gateways, installed on demand
    .venv/bin/python -m bench --paths 1k --connections 64       one cell
    .venv/bin/python -m bench --all                             every path with 1, 64 and 512 connections
    .venv/bin/python -m bench --quick                           one short round of each, to see that everything works
    .venv/bin/python -m bench --document docs/benchmarks.md     write the measured section of the document

The gateway has one core for itself; mock upstream, load generator and Redis share the other. CPU per call is the CPU time of the gateway's
processes, whatever else the machine did meanwhile; "quiet" is the lower quartile of windows of 50 ms, which excludes bursts
(the flusher, the garbage collector). On a shared machine, only the ratios are meaningful: all targets take turns in each cell.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from bench import report
from bench.measure import Cores
from bench.paths import PATHS
from bench.rounds import Cell, Effort, Line, Measurement, generator
from bench.servers import servers, start_mock
from bench.targets import TARGETS, Fleet

_USUAL: Final = ("passthrough", "untagged", "tagged")
_LEDGERS: Final = (*_USUAL, "redis")
_LANES: Final = (*_LEDGERS, "orchestrated", "litellm-lane", "litellm-bare")
_USUAL_CELLS: Final = (
    Cell("1k", 1, ("mock", *_LANES)),
    Cell("1k", 64, _LANES),
    Cell("1k", 512, _LEDGERS),
    Cell("32k", 64, (*_LEDGERS, "orchestrated")),
    Cell("burst-20", 64, _LANES),
    Cell("stream-20", 64, _USUAL),
    Cell("stream-500", 16, _USUAL),
    Cell("conversation", 8, (*_LEDGERS, "orchestrated")),
)
_CONNECTIONS: Final = (1, 64, 512)
_PEERS: Final = tuple(name for name, target in TARGETS.items() if target.is_peer)
_OWN: Final = tuple(name for name, target in TARGETS.items() if not target.is_peer)
_WRITING: Final = ("--json", "--document")
_WIDTH: Final = 140  # if there is no terminal
_FILES: Final = 16_384  # 512 connections on both sides of a gateway, and those of a database


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--paths", nargs="+", choices=PATHS, metavar="PATH", help=", ".join(PATHS))
    parser.add_argument("--connections", nargs="+", type=int, metavar="N")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--peers", action="store_true", help="also measure other gateways")
    parser.add_argument("--all", action="store_true", help="every path, target and number of connections; takes long")
    parser.add_argument("--quick", action="store_true", help="one round of 0.3 s for each cell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="length of a round, unless the path sets its number of calls"
    )
    parser.add_argument(
        "--prompts",
        choices=("fresh", "repeated", "unseen"),
        default="fresh",
        help="fresh: the last message is new in every call; repeated: nothing is; unseen: all of it is",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured; - for the output")
    parser.add_argument("--document", type=Path, metavar="FILE", help="write the tables into this Markdown file")
    return parser.parse_args(arguments)


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """The requested cells, with the requested targets."""
    if arguments.all or arguments.paths or arguments.connections:
        paths = arguments.paths or list(PATHS)
        chosen = [Cell(path, number, _OWN) for path in paths for number in _numbers(path, arguments)]
    else:
        chosen = list(_USUAL_CELLS)
    peers = _PEERS if arguments.peers else ()
    return [
        Cell(cell.path, cell.connections, tuple(arguments.targets or (*cell.targets, *peers)))
        for cell in dict.fromkeys(chosen)
    ]


def _numbers(path: str, arguments: argparse.Namespace) -> Iterable[int]:
    """No more connections than the path allows: a conversation on each of 512 would take an hour."""
    for number in arguments.connections or _CONNECTIONS:
        yield min(number, PATHS[path].connections_max)


def main() -> int:
    arguments = parse_arguments()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 0.3
    allow_many_files()
    console = Console(stderr=str(arguments.json) == "-", width=None if sys.stdout.isatty() else _WIDTH)
    chosen = cells(arguments)
    cores = Cores.chosen()
    if not cores.are_two:
        console.print("One core for everything: calls/s and latencies are those of all processes together.")
    began_s = time.monotonic()
    effort = Effort(arguments.rounds, arguments.seconds, arguments.prompts)
    lines, missing = _run_cells(chosen, cores, effort, console)
    report.print_tables(lines, console)
    for name, reason in missing.items():
        console.print(f"not measured: {name}: {reason}", style="yellow", markup=False)
    console.print(f"{time.monotonic() - began_s:.0f} s")
    _write(arguments, lines, missing)
    # The tables say what a peer cannot do; the benchmark does not fail because of it.
    own_failed = any(line.failed for line in lines if line.target in _OWN)
    return 0 if lines and not own_failed and set(missing) <= set(_PEERS) else 1


def _run_cells(
    chosen: Sequence[Cell], cores: Cores, effort: Effort, console: Console
) -> tuple[list[Line], dict[str, str]]:
    with (
        tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder,
        contextlib.ExitStack() as stack,
        servers(Path(folder), cores) as running,
        console.status("starting") as status,
    ):
        fleet = Fleet(running, cores, start_mock(running), stack)
        for name in dict.fromkeys(TARGETS[target].server for cell in chosen for target in cell.targets):
            status.update(f"starting {name}")
            fleet.start(name)
        measurement = Measurement(fleet, stack.enter_context(generator(cores.rest)), effort, status.update)
        return measurement.lines(chosen), fleet.missing


def _write(arguments: argparse.Namespace, lines: Sequence[Line], missing: dict[str, str]) -> None:
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    facts = report.facts_of(rounds=arguments.rounds, seconds=arguments.seconds, prompts=arguments.prompts, date=date)
    if str(arguments.json) == "-":
        print(report.as_json(lines, facts, missing))
    elif arguments.json:
        arguments.json.write_text(report.as_json(lines, facts, missing))
    if arguments.document:
        report.write_document(arguments.document, lines, facts, missing, _command(sys.argv[1:]))


def _command(arguments: Sequence[str]) -> str:
    """The command that repeats the measurement, without its output options."""
    kept_arguments = [
        word
        for position, word in enumerate(arguments)
        if word not in _WRITING and (position == 0 or arguments[position - 1] not in _WRITING)
    ]
    return " ".join([".venv/bin/python -m bench", *kept_arguments])


def allow_many_files() -> None:
    """Raises the limit to what the connections on both sides of a gateway need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files_max = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < files_max:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, hard))


if __name__ == "__main__":
    sys.exit(main())
