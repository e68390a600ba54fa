"""A column that SQLite should not look up in an index.

SQLite has no statistics here: for the latest calls of a project it would use the index that starts with the project, and sort
all its calls, although the index on times has them in order. A plus before the column prevents that. Postgres has statistics,
and an expression would hide the column from them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class unindexed(FunctionElement[str]):
    """The column itself, as an expression that SQLite's planner does not match with an index."""

    inherit_cache = True
    type = Text()

    def __init__(self, column: ColumnElement[Any]) -> None:
        super().__init__(column)


@compiles(unindexed)
def _compile_plain(element: unindexed, compiler: Any, **options: Any) -> str:
    return str(compiler.process(next(iter(element.clauses)), **options))


@compiles(unindexed, "sqlite")
def _compile_unindexed(element: unindexed, compiler: Any, **options: Any) -> str:
    return "+" + str(compiler.process(next(iter(element.clauses)), **options))
