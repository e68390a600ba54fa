"""Inserts and lookups of many rows in one statement, on either engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson
from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    Float,
    Integer,
    Text,
    any_,
    bindparam,
    func,
    select,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.schema import Table
from sqlalchemy.types import TypeEngine

from gateway.store.database import StoreConnection

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

    Insert: TypeAlias = postgresql.Insert | sqlite.Insert

Rows = Sequence[Mapping[str, Any]]
Conflict: TypeAlias = "Callable[[Insert], Insert]"

# The types that Postgres needs for the parameters of `unnest`; SQLAlchemy's own would render as VARCHAR and the like.
_ARRAYS: Final = {item: ARRAY(item(), dimensions=1) for item in (Text, Boolean, BigInteger, Integer, Float)}
# Prefix of the parameters' names, which must differ from all columns of the conflict clause.
_PARAMETER_PREFIX: Final = "offered_"


def ignore_conflict(statement: Insert) -> Insert:
    """ON CONFLICT DO NOTHING: the existing row stays."""
    return statement.on_conflict_do_nothing()


def add_on_conflict(
    table: Table, sums: Sequence[str], **expressions: Callable[[Any, Any], ColumnElement[Any]]
) -> Conflict:
    """ON CONFLICT DO UPDATE: add `sums` to the existing row; `expressions` compute new values from (the old row, the offered row)."""

    def conflict(statement: Insert) -> Insert:
        changes: dict[str, Any] = {name: table.c[name] + statement.excluded[name] for name in sums}
        changes |= {name: make(table.c, statement.excluded) for name, make in expressions.items()}
        return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=changes)

    return conflict


def replace_on_conflict(table: Table, names: Sequence[str]) -> Conflict:
    """ON CONFLICT DO UPDATE: the offered values of `names` replace the old ones."""

    def conflict(statement: Insert) -> Insert:
        changes = {name: statement.excluded[name] for name in names}
        return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=changes)

    return conflict


async def insert(connection: StoreConnection, table: Table, rows: Rows, conflict: Conflict) -> None:
    """Insert all `rows`, which have the same columns, in one round trip. `conflict` handles conflicts with the primary key."""
    if rows:
        names = tuple(column.name for column in table.columns if column.name in rows[0])
        await insert_values(connection, table, names, [tuple(row[name] for name in names) for row in rows], conflict)


async def insert_values(
    connection: StoreConnection, table: Table, names: tuple[str, ...], rows: list[tuple[Any, ...]], conflict: Conflict
) -> None:
    """Like `insert`, for rows given as the values of `names`, which are in the order of the table's columns."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        statement, constants = _sqlite_insert(table, names, conflict)
        await connection.run_sync(
            Connection.exec_driver_sql, statement, [row + constants for row in rows] if constants else rows
        )
        return
    columns = zip(*rows, strict=True)
    arrays = {_PARAMETER_PREFIX + name: list(values) for name, values in zip(names, columns, strict=True)}
    await connection.execute(_postgres_insert(table, names, conflict), arrays)


@lru_cache(maxsize=64)
def _sqlite_insert(table: Table, names: tuple[str, ...], conflict: Conflict) -> tuple[str, tuple[Any, ...]]:
    """The statement for SQLite, and the values for its conflict clause, which follow those of a row.

    Compiled once: if SQLAlchemy gets a dictionary per row, a batch costs three times as much before SQLite sees it.
    """
    compiled = conflict(sqlite.insert(table).values({name: bindparam(name) for name in names})).compile(
        dialect=sqlite.dialect(paramstyle="qmark")
    )
    order = compiled.positiontup or []
    assert tuple(order[: len(names)]) == names  # noqa: S101 - columns are in the table's order, before the conflict clause
    return str(compiled), tuple(compiled.params[name] for name in order[len(names) :])


@lru_cache(maxsize=64)
def _postgres_insert(table: Table, names: tuple[str, ...], conflict: Conflict) -> Insert:
    """Arrays need one parameter per column instead of one per value, and one parse for the whole batch.

    Cached, because building the statement takes as long as inserting two hundred rows.
    """
    from sqlalchemy.dialects import postgresql  # 40 ms and 3 MB that an embedded store does not need at its start

    arrays = [bindparam(_PARAMETER_PREFIX + name, type_=_array_of(table.c[name])) for name in names]
    source = func.unnest(*arrays).table_valued(*names, name="offered").render_derived()
    offered = select(*(source.c[name] for name in names))
    return conflict(postgresql.insert(table).from_select(list(names), offered))


def is_in(connection: StoreConnection, column: Column[Any], values: Sequence[Any]) -> ColumnElement[bool]:
    """`column IN values`, with a single parameter instead of one per value."""
    dialect = connection.dialect.name
    return _in_list(
        dialect, column, bindparam(None, list_parameter(connection, values), type_=_list_type(dialect, column))
    )


def is_in_parameter(dialect: str, column: Column[Any], name: str) -> ColumnElement[bool]:
    """Like `is_in`, for a cached statement: its parameter `name` takes the values in the form that `list_parameter` returns."""
    return _in_list(dialect, column, bindparam(name, type_=_list_type(dialect, column)))


def list_parameter(connection: StoreConnection, values: Sequence[Any]) -> str | list[Any]:
    """Values as one parameter; for SQLite, an array in JSON."""
    return orjson.dumps(values).decode() if connection.dialect.name == "sqlite" else list(values)


def _in_list(dialect: str, column: Column[Any], values: BindParameter[Any]) -> ColumnElement[bool]:
    if dialect == "sqlite":
        return column.in_(select(func.json_each(values).table_valued("value").c.value))
    return column == any_(values)


def _list_type(dialect: str, column: Column[Any]) -> TypeEngine[Any]:
    return Text() if dialect == "sqlite" else _array_of(column)


def _array_of(column: Column[Any]) -> ARRAY[Any]:
    return next(array for item, array in _ARRAYS.items() if isinstance(column.type, item))
