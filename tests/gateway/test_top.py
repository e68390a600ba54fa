"""The screen of `farebox top`: bars, sums, and names shown literally."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, ConsoleDimensions

from gateway.cli.top_command import screen


def run(name: str, settled: int, reserved: int, limit: int | None, **other_fields: Any) -> dict[str, Any]:
    tokens = {"settled": settled, "reserved": reserved, "limit": limit}
    fields = {"workflow": "triage", "agent": "ada", "state": "active", "calls": 3, "refused": 0}
    last = "1970-01-01T00:01:30+00:00"
    return {"run": name, "tokens": tokens, "cost_usd": {"settled": 0.25}, "last_at": last, **fields, **other_fields}


def rendered(runs: list[dict[str, Any]], height: int = 40, width: int = 150, **options: Any) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(screen(runs, "here", 100.0, ConsoleDimensions(width, height), **options))
    return console.export_text()


def test_bar_and_sums_show_settled_reserved_and_remaining_tokens() -> None:
    screen_text = rendered([run("r-1", 5_000, 2_500, 10_000), run("r-2", 9, 0, None, state="paused", refused=4)])
    assert "████████▓▓▓▓░░░░" in screen_text
    assert "no limit" in screen_text
    assert "10 s" in screen_text
    assert "1 active" in screen_text
    assert "2,500 tokens held" in screen_text
    assert "4 refused" in screen_text


def test_run_name_is_not_interpreted_as_markup() -> None:
    assert "[red]evil[/red]" in rendered([run("[red]evil[/red]", 1, 0, 2)])


def test_screen_shows_at_most_as_many_runs_as_fit() -> None:
    screen_text = rendered([run(f"r-{at}", 1, 0, 2) for at in range(50)], height=12)
    assert "r-6" in screen_text
    assert "r-7" not in screen_text
    assert "No matching runs" in rendered([])


def test_header_says_that_its_totals_cover_the_latest_runs_only() -> None:
    runs = [run(f"r-{at}", 1, 2, 9) for at in range(100)]
    assert "of the latest 100 runs: 100 active   200 tokens held" in rendered(runs, has_more=True)
    assert "latest" not in rendered(runs)


def test_narrow_terminal_shortens_names_and_drops_columns_but_no_number() -> None:
    runs = [run("nightly-report-2026-11-29", 1_234_567, 0, 2_000_000, calls=12_345, refused=678)]
    for width in (80, 100, 120):
        screen_text = rendered(runs, width=width)
        assert "nightly-r" in screen_text
        assert "1,234,567" in screen_text, width
        assert "0.2500" in screen_text
        assert all(len(line) <= width for line in screen_text.splitlines())
    assert "2,000,000" in rendered(runs, width=100)
    assert "nightly-report-2026-11-29" in rendered(runs, width=150)
