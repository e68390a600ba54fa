"""A column that SQLite is not to look up in an index.

It knows nothing about the data: asked for the latest calls of a project, it would take the index that begins with the project
and sort all its calls, where the index of times has them in order. A plus before the column keeps it from that. Postgres has
statistics, and an expression would hide the column from them.
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
def _plain(element: unindexed, compiler: Any, **options: Any) -> str:
    return str(compiler.process(next(iter(element.clauses)), **options))


@compiles(unindexed, "sqlite")
def _hidden(element: unindexed, compiler: Any, **options: Any) -> str:
    return "+" + str(compiler.process(next(iter(element.clauses)), **options))
