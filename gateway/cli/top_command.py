"""`farebox top`: the admin pages' table of runs, in a terminal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import ConsoleDimensions, Group, JustifyMethod
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.cli.connection import Connection
from gateway.cli.output import cell_text, console
from gateway.cli.runs_command import RUN_HEADINGS, Project, run_row
from gateway.cli.session import Session

_BAR_CELLS: Final = 16
_STATES: Final = {"active": "green", "paused": "yellow", "completed": "dim"}
_COLUMNS: Final = (
    ("run", "left"),
    ("workflow", "left"),
    ("agent", "left"),
    ("state", "left"),
    ("budget", "left"),
    ("tokens", "right"),
    ("of", "right"),
    ("usd", "right"),
    ("calls", "right"),
    ("refused", "right"),
    ("last", "right"),
)
# A narrow terminal shortens names, and then does without these columns, in this order. It never shortens a number.
_DROPPED_FIRST: Final = ("agent", "last", "budget", "of", "calls", "refused")
_NAMES: Final = frozenset({"run", "workflow", "agent"})
_NAME_CELLS_MIN: Final = 10
_PADDING_CELLS: Final = 3


def top(
    session: Session,
    workflow: Annotated[str | None, typer.Option(help="Only of this workflow.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only of this agent.")] = None,
    state: Annotated[str | None, typer.Option(help="active, paused, exhausted, completed or cancelled.")] = None,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between updates.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print the table once and exit, as into a pipe.")] = False,
    project: Project = "default",
) -> None:
    """Watch runs as they spend. Ctrl-C ends it."""
    query = {"limit": 100, "project": project, "workflow": workflow, "agent": agent, "state": state}
    try:
        session.run(lambda connection: _watch(session, connection, query, every, once))
    except KeyboardInterrupt:
        return


async def _watch(
    session: Session, connection: Connection, query: Mapping[str, Any], every_s: float, once: bool
) -> None:
    response = (await connection.request("GET", "/runs", query)).raise_for_error().value
    terminal = console()
    if once or session.as_json or not terminal.is_terminal:
        rows = [run_row(run) for run in response["runs"]]
        session.print_rows(response, lambda: (RUN_HEADINGS, rows), others="`farebox runs list --limit` shows more")
        return
    with Live(console=terminal, screen=True, auto_refresh=False) as live:
        while True:
            runs, has_more = response["runs"], bool(response.get("next"))
            live.update(screen(runs, connection.location, time.time(), terminal.size, has_more=has_more), refresh=True)
            await asyncio.sleep(every_s)
            response = (await connection.request("GET", "/runs", query)).raise_for_error().value


def screen(
    runs: list[dict[str, Any]], location: str, now_s: float, size: ConsoleDimensions, *, has_more: bool = False
) -> Group:
    """A line of totals, and as many runs as fit below it. `has_more`: there are older runs, which the totals leave out."""
    reserved_tokens = sum(run["tokens"]["reserved"] for run in runs)
    active = sum(run["state"] == "active" for run in runs)
    head = Text.assemble(
        (time.strftime(" %H:%M:%S ", time.localtime(now_s)), "reverse"),
        (f"  {location}   ", "dim"),
        f"of the latest {len(runs):,} runs: " if has_more else "",
        (f"{active:,} active", "green"),
        f"   {reserved_tokens:,} tokens held",
        (f"   {sum(run['refused'] for run in runs):,} refused", "yellow"),
    )
    rows = [_cells(run, now_s) for run in runs[: max(1, size.height - 5)]]
    return Group(head, _table(rows, size.width) if runs else Text("\n  No matching runs yet.", style="dim"))


def _table(rows: list[list[Text]], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = _shown_widths(rows, width)
    for at, cells in shown.items():
        heading, side = _COLUMNS[at]
        justify: JustifyMethod = "right" if side == "right" else "left"
        table.add_column(heading, justify=justify, no_wrap=True, overflow="ellipsis", width=cells)
    for row in rows:
        table.add_row(*(row[at] for at in shown))
    return table


def _shown_widths(rows: list[list[Text]], width: int) -> dict[int, int]:
    """The columns that fit, by position, each with its width."""
    widest = [max(len(heading), *(row[at].cell_len for row in rows)) for at, (heading, _) in enumerate(_COLUMNS)]
    shown = {
        at: min(widest[at], _NAME_CELLS_MIN) if heading in _NAMES else widest[at]
        for at, (heading, _) in enumerate(_COLUMNS)
    }
    positions = {heading: at for at, (heading, _) in enumerate(_COLUMNS)}
    spare = width - sum(shown.values()) - _PADDING_CELLS * len(shown)
    for heading in _DROPPED_FIRST:
        if spare >= 0:
            break
        spare += shown.pop(positions[heading]) + _PADDING_CELLS
    for at in shown:
        more = max(0, min(spare, widest[at] - shown[at]))
        shown[at] += more
        spare -= more
    return shown


def _cells(run: Mapping[str, Any], now_s: float) -> list[Text]:
    tokens = run["tokens"]
    return [
        Text(run["run"], style="bold"),
        Text(run["workflow"]),
        Text(run["agent"], style="dim"),
        Text(run["state"], style=_STATES.get(run["state"], "red")),
        _bar(tokens["settled"], tokens["reserved"], tokens["limit"]),
        Text(cell_text(tokens["settled"])),
        Text(cell_text(tokens["limit"]), style="dim"),
        Text(f"{run['cost_usd']['settled']:,.4f}"),
        Text(cell_text(run["calls"])),
        Text(cell_text(run["refused"]), style="yellow" if run["refused"] else "dim"),
        Text(_ago(run["last_at"], now_s), style="dim"),
    ]


def _bar(settled: int, reserved: int, limit: int | None) -> Text:
    """Settled, held and remaining, as in the bars of the admin pages."""
    if not limit:
        return Text("no limit", style="dim")
    filled_cells = min(_BAR_CELLS, round((settled + reserved) / limit * _BAR_CELLS))
    booked = min(filled_cells, round(settled / limit * _BAR_CELLS))
    colour = "red" if settled >= limit else "green"
    return Text.assemble(
        ("█" * booked, colour), ("▓" * (filled_cells - booked), "yellow"), ("░" * (_BAR_CELLS - filled_cells), "dim")
    )


def _ago(at: str | None, now_s: float) -> str:
    if at is None:
        return "–"
    seconds = max(0, int(now_s - datetime.fromisoformat(at).astimezone(UTC).timestamp()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
