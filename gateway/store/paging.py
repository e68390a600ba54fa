"""Pages of rows, the latest first. A cursor names the last row of a page by its time and its name, which decides between equals."""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, and_, or_

# What no engine could look up (more than 64 bits, NUL) is no cursor.
_CURSOR: Final = re.compile(r"([0-9]{1,18}):([^\x00]+)")


def cursor_of(at_ms: int, name: str) -> str:
    return f"{at_ms}:{name}"


def behind(cursor: str | None, at: Column[Any], name: Column[Any]) -> list[ColumnElement[bool]]:
    """The condition of the next page; none for the first one, and for a malformed cursor."""
    found = _CURSOR.fullmatch(cursor or "")
    if found is None:
        return []
    at_ms, last = int(found[1]), found[2]
    return [or_(at < at_ms, and_(at == at_ms, name < last))]


def newest_first(at: Column[Any], name: Column[Any]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    return at.desc(), name.desc()
