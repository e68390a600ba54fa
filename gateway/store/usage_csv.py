"""A usage report as CSV that a spreadsheet can open without being told to run anything."""

from __future__ import annotations

import csv
import io

from gateway.store.tables import SUMS
from gateway.store.usage_report import Report

# What spreadsheets take for the beginning of a formula (OWASP: CSV injection).
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def cell(text: str) -> str:
    """Names come from headers that anybody may send; one that looks like a formula is marked as text."""
    return "'" + text if text.startswith(_FORMULA_STARTS) else text


def to_csv(report: Report) -> str:
    """A header, a row for each group, no total: sums of the columns give it."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([report.group_by.value, *SUMS])
    for row in report.rows:
        writer.writerow([cell(row.group), *(getattr(row.sums, name) for name in SUMS)])
    return out.getvalue()
