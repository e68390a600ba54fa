"""Output of commands: tables for people, JSON for programs. Colours only on a terminal, and none with NO_COLOR."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import orjson
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A pipe has no width, and wrapping would break up what a program looks for.
_PIPE_WIDTH: Final = 400
_COLOURS: Final = {
    "ok": "green",
    "active": "green",
    "warn": "yellow",
    "paused": "yellow",
    "exhausted": "red",
    "fail": "red",
    "revoked": "red",
    "cancelled": "red",
}


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def echo_json(value: Any) -> None:
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def show_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        console().print(table_of(headings, rows))
    else:
        typer.echo("Nothing found.")


def table_of(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table with numbers right-aligned. Cells are plain text, never markup."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, heading in enumerate(headings):
        is_number = any(isinstance(row[at], int | float) and not isinstance(row[at], bool) for row in rows)
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: Any) -> Text:
    text = shown(value)
    return Text(text, style=_COLOURS.get(text, ""))


def shown(value: Any) -> str:
    """A cell as text: – for nothing, thousands separators, and money to nano-USD without trailing zeros."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.9f}".rstrip("0").rstrip(".")
    return str(value)


def setting_text(value: object) -> str:
    """A setting's value as the configuration file has it: true, not True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def moment(at: str | None) -> str | None:
    """An ISO time to the second, as date and time."""
    return None if at is None else at[:19].replace("T", " ")
