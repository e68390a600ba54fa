"""A usage report as CSV, safe against formula injection in spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.store.runs import Sums
from gateway.store.tables import SUMS
from gateway.store.usage_report import ReportRow
from policies.amounts import usd_text

# Characters with which spreadsheets begin a formula (OWASP: CSV injection).
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def cell(text: str) -> str:
    """Names come from headers that anybody can send; one that looks like a formula is marked as text."""
    return "'" + text if text.startswith(_FORMULA_STARTS) else text


def to_csv(group_by: str, rows: Sequence[ReportRow], key_names: Mapping[str, str] | None = None) -> str:
    """A header and a row per group; there is no total row, as summing the columns gives it. Money is in USD. `key_names`:
    names for groups that are ids of keys."""
    out = io.StringIO()
    writer = csv.writer(out)
    names = [] if key_names is None else ["key_name"]
    writer.writerow([group_by, *names, *(name.replace(_NANO_USD, "_usd") for name in SUMS)])
    for row in rows:
        name_cells = [] if key_names is None else [cell(key_names.get(row.group, ""))]
        writer.writerow([cell(row.group), *name_cells, *(_figure(row.sums, name) for name in SUMS)])
    return out.getvalue()


_NANO_USD: Final = "_nano_usd"


def _figure(sums: Sums, name: str) -> int | str:
    value: int = getattr(sums, name)
    return usd_text(value) if name.endswith(_NANO_USD) else value
