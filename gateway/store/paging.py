"""Pages of rows, latest first. A cursor names the last row of a page by its time and, to break ties, its name."""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, and_, or_

# Excludes what no engine could look up (more than 64 bits, NUL).
CURSOR: Final = r"[0-9]{1,18}:[^\x00]{1,512}"
_CURSOR: Final = re.compile(CURSOR)


def cursor_of(at_ms: int, name: str) -> str:
    return f"{at_ms}:{name}"


def after_cursor(cursor: str | None, time_column: Column[Any], name_column: Column[Any]) -> list[ColumnElement[bool]]:
    """The condition of the next page; none for the first one. Raises ValueError for an invalid cursor."""
    if not cursor:
        return []
    if not _CURSOR.fullmatch(cursor):
        raise ValueError("no cursor")
    at_ms, _, last = cursor.partition(":")
    return [or_(time_column < int(at_ms), and_(time_column == int(at_ms), name_column < last))]


def newest_first(time_column: Column[Any], name_column: Column[Any]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    return time_column.desc(), name_column.desc()
