"""Figures, tables and sections of an admin page, found in its HTML."""

from __future__ import annotations

import html
import re


def values(text: str) -> list[float]:
    """Every exact figure in a piece of a page, in order."""
    return [float(value) for value in re.findall(r'<data value="([^"]+)"', text)]


def figure(page: str, name: str) -> float:
    match = re.search(rf'data-figure="{name}"[^>]*>(.*?)</(?:p|b)>', page, re.DOTALL)
    assert match, name
    return values(match[1])[0]


def table_rows(page: str, css: str) -> list[tuple[str, list[float]]]:
    """(first cell's text, figures) for each row of the table with this class."""
    table = re.search(rf'<table class="{css}".*?</table>', page, re.DOTALL)
    assert table, css
    rows = re.findall(r"<tr(?: [^>]*)?>\s*<td[^>]*>(.*?)</td>(.*?)</tr>", table[0], re.DOTALL)
    return [(html.unescape(re.sub(r"<[^>]+>", "", first)).strip(), values(cells)) for first, cells in rows]


def section(page: str, heading: str) -> str:
    """The card with this heading, up to the next one."""
    match = re.search(rf"<h2>{heading}\b.*?(?=<h2>|</article>|</section>)", page, re.DOTALL)
    assert match, heading
    return match[0]
