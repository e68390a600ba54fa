"""Figures and times as people read them. Counts are never rounded: a page and a report must say the same number."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson
from markupsafe import Markup, escape

from gateway.timestamps import iso
from policies import amounts

_DURATION_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
DASH: Final = "–"
# How an account's name ends: its window, when that began, and whether it is observed.
_ACCOUNT_WINDOW: Final = re.compile(r"@(total|minute|hour|day|month)(?::\d+)?(?:~observe)?$")


def count(value: float | None) -> str:
    """12,345; a dash for what is not known."""
    return DASH if value is None else f"{value:,.0f}"


def money(value: float | None) -> str:
    """Dollars: cents from one dollar up, below it three significant digits, so that a single call is not $0.00."""
    if value is None:
        return DASH
    if value < 0:
        return f"-{money(-value)}"
    if value == 0 or value >= 0.995:
        return f"${value:,.2f}"
    if value < 0.000001:
        return "<$0.000001"
    decimals = max(2, 2 - math.floor(math.log10(value)))
    integer_part, _, digits = f"{value:.{min(decimals, 8)}f}".rstrip("0").partition(".")
    return f"${integer_part}.{digits.ljust(2, '0')}"


def percent(share: float | None) -> str:
    if share is None:
        return DASH
    return f"{share * 100:.1f} %" if 0 < share < 0.1 else f"{share * 100:,.0f} %"


def with_exact_value(value: float | None, formatted: str) -> Markup:
    """The formatted text, with the exact value for programs and in a tooltip."""
    if value is None:
        return Markup("{}").format(formatted)
    text = input_text(value)
    if value == 0:
        return Markup('<data value="0" class="zero">{}</data>').format(formatted)
    return Markup('<data value="{}" title="{}">{}</data>').format(text, text, formatted)


def tokens(value: int | None) -> Markup:
    return with_exact_value(value, count(value))


def usd(value: float | None) -> Markup:
    return with_exact_value(value, money(value))


def timestamp(text: str | None) -> Markup:
    """An ISO time as `<time>`: date and second in UTC. A script turns it into the reader's own time."""
    if not text:
        return Markup("–")
    formatted = text[:19].replace("T", " ") + " UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(text, formatted, formatted)


def ago(text: str | None, now_ms: int) -> Markup:
    """How long ago an ISO time was, roughly."""
    if not text:
        return Markup("–")
    at_ms = datetime.fromisoformat(text).timestamp() * 1000
    formatted = duration(max(0, now_ms - at_ms)) + " ago"
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(text, text[:19].replace("T", " "), formatted)


def duration(duration_ms: float | None) -> str:
    """A duration by its largest unit: 340 ms, 12 s, 5 min."""
    if duration_ms is None:
        return DASH
    if duration_ms < 1_000:
        return f"{duration_ms:.0f} ms"
    seconds = duration_ms / 1000
    size, unit = next((size, unit) for size, unit in _DURATION_UNITS if seconds >= size)
    amount = seconds / size
    return f"{amount:.1f} {unit}" if amount < 10 and unit == "s" else f"{amount:.0f} {unit}"


def window_text(window: str) -> str:
    """The window of a budget in the words of a sentence: today, this month, in total."""
    return {"total": "in total", "day": "today"}.get(window, f"this {window}")


def iso_day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()


def timestamp_of_ms(at_ms: int | None) -> Markup:
    return timestamp(iso(at_ms))


def pretty_json(text: str) -> str:
    """JSON as it is stored, with a line for each field; anything else as it is."""
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return text


def with_code(text: str) -> Markup:
    """A sentence with `code` in it."""
    parts = (
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(text.split("`"))
    )
    return Markup("").join(parts)


def input_text(value: float | str | None) -> str:
    """An amount as the value of an input, without an exponent: 0.0000001 instead of 1e-07. Text is left as it was typed."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def setting_text(value: bool | int | float | str) -> str:
    """A setting's value as the value of an input."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def page_path(page: str, name: str = "", **query: str | None) -> str:
    """The address of a page, or of one item by its name. Names that cannot be part of a path go into the query."""
    parameters = {key: value for key, value in query.items() if value not in (None, "")}
    path = f"/admin/{page}"
    if name and _fits_in_path(name):
        path += f"/{quote(name, safe='/:@')}"
    elif name:
        parameters["name"] = name
    return f"{path}?{urlencode(parameters)}" if parameters else path


def _fits_in_path(name: str) -> bool:
    """A path with empty or dotted parts is refused before it reaches a page."""
    return all(part not in ("", ".", "..") for part in name.split("/")) and not set(name) & set(";\\%")


def decision_facts(decision: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts of one decision as people read them: dollars instead of nano-USD, and a budget instead of the name of its account."""
    unit = decision.get("unit")
    for name, value in decision.items():
        if value in (None, "", []) or name == "unit":
            continue
        if name == "account":
            yield "budget", _ACCOUNT_WINDOW.sub(r", \1", str(value))
        elif name in ("needed", "remaining") and isinstance(value, int):
            yield name, money(amounts.usd(value)) if unit == "nano_usd" else f"{count(value)} {unit}"
        elif isinstance(value, list):
            yield name.replace("_", " "), ", ".join(map(str, value))
        else:
            yield name.replace("_", " "), str(value).replace("_", " ") if name == "why" else str(value)
