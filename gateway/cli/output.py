"""Output of commands: tables for people, JSON for programs. Colours only on a terminal, and none with NO_COLOR."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import orjson
import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A pipe has no width, and wrapping would break up what a program looks for.
_PIPE_WIDTH: Final = 100_000
_CELL_PADDING: Final = 3
# A provider's error code is among what cells hold, and a terminal obeys escapes in it.
_CONTROL_CHARACTERS: Final = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), " ")
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
    """Print a table, or a block of lines for each row if the terminal is too narrow for a table."""
    if not rows:
        typer.echo("Nothing found.")
        return
    terminal = console()
    table = fitted_table(headings, rows, terminal.width)
    if table is not None:
        terminal.print(table)
    else:
        _print_blocks(terminal, headings, rows)


def _print_blocks(terminal: Console, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    heading_cells = max(cell_len(heading) for heading in headings)
    for row in rows:
        for heading, value in zip(headings, row, strict=True):
            terminal.print(Text(f"{heading:<{heading_cells}}  ") + _cell(value), soft_wrap=True)
        terminal.print()


def fitted_table(headings: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> Table | None:
    """A table with numbers right-aligned, or None if a word or a number would have to be broken. Cells are plain text, never markup."""
    columns = [[heading, *(cell_text(row[index]) for row in rows)] for index, heading in enumerate(headings)]
    widths = _column_widths(columns, width)
    if widths is None:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        is_number = any(isinstance(row[index], int | float) and not isinstance(row[index], bool) for row in rows)
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold", width=widths[index])
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _column_widths(columns: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Each column gets the width of its longest word, and the spare width goes to the first columns that need more. None if the words
    do not fit."""
    widths = [max(cell_len(word) for text in texts for word in text.split() or [""]) for texts in columns]
    spare = width - sum(widths) - _CELL_PADDING * len(columns)
    if spare < 0:
        return None
    for index, texts in enumerate(columns):
        extra_width = min(spare, max(map(cell_len, texts)) - widths[index])
        widths[index] += extra_width
        spare -= extra_width
    return widths


def _cell(value: Any) -> Text:
    text = cell_text(value)
    return Text(text, style=_COLOURS.get(text, ""))


def cell_text(value: Any) -> str:
    """A cell as text: – for nothing, thousands separators, and money to nano-USD without trailing zeros."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.9f}".rstrip("0").rstrip(".")
    return str(value).translate(_CONTROL_CHARACTERS)


def setting_text(value: object) -> str:
    """A setting's value as the configuration file has it: true, not True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def timestamp(at: str | None) -> str | None:
    """An ISO time in UTC to the second, as date, time and Z."""
    return None if at is None else at[:19].replace("T", " ") + "Z"


def pluralized(number: int, noun: str) -> str:
    """`1 call`, `1,200 calls`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
