"""Output of commands: tables that break no words, and times with their zone."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gateway.cli import output
from gateway.cli.output import pluralized, show_table, timestamp

HEADINGS = ("id", "of", "tokens", "changed")
ROWS = [("budget-01a22364c139d652b0eaed5316a25121", "triage", 1_234_567, "2026-11-28 18:22:15Z")]


def printed(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    terminal = Console(width=width, file=io.StringIO())
    monkeypatch.setattr(output, "console", lambda: terminal)
    show_table(HEADINGS, ROWS)
    return [line.rstrip() for line in terminal.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]


def test_table_in_a_narrow_terminal_wraps_between_words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = printed(100, monkeypatch)
    assert [cell.strip() for cell in whole[-1].split("   ")] == [ROWS[0][0], "triage", "1,234,567", ROWS[0][3]]
    assert max(map(len, printed(83, monkeypatch))) <= 83
    assert [line.split() for line in printed(83, monkeypatch)][-2:] == [
        [ROWS[0][0], "triage", "1,234,567", "2026-11-28"],
        ["18:22:15Z"],
    ]


def test_row_is_printed_as_lines_if_the_table_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(60, monkeypatch) == [
        f"id       {ROWS[0][0]}",
        "of       triage",
        "tokens   1,234,567",
        "changed  2026-11-28 18:22:15Z",
    ]


def test_no_escape_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("code",), [("bad\x1b]0;title\x07\x9b31m\nfake row",)])
    assert not {*map(ord, capsys.readouterr().out)} & {0x07, 0x1B, 0x9B}


def test_timestamps_end_with_z_and_nouns_are_pluralized() -> None:
    assert (timestamp("2026-11-28T18:22:15.353Z"), timestamp(None)) == ("2026-11-28 18:22:15Z", None)
    assert (pluralized(1, "call"), pluralized(0, "call"), pluralized(1_200, "call")) == (
        "1 call",
        "0 calls",
        "1,200 calls",
    )


def test_piped_table_has_one_line_per_row_of_any_width(capsys: pytest.CaptureFixture[str]) -> None:
    names = [letter * 128 for letter in "rwak"]
    show_table(("run", "workflow", "agent", "key"), [names])
    assert capsys.readouterr().out.splitlines()[-2].split() == names
