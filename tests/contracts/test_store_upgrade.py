"""A database of every older revision, with a row in every table, is upgraded to this one and keeps all of its data."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, insert, inspect, select
from sqlalchemy.engine import Connection, RowMapping
from sqlalchemy.types import Boolean, Float, Integer

from gateway.store import partitions, settings
from gateway.store.database import Database
from gateway.store.migration import _config
from gateway.store.schema_snapshot import migrations_folder
from gateway.store.tables import METADATA, SCHEMA_REVISION
from policies.settings import SETTINGS
from tests.store_events import NOW_MS

pytest_plugins = ("tests.store_fixtures",)

REVISIONS = [
    script.revision
    for script in ScriptDirectory(str(migrations_folder())).walk_revisions()
    if script.revision != SCHEMA_REVISION
]
ALEMBIC_TABLES = ("alembic_version",)
SETTINGS_TABLE = "system_settings_config"
EDITED = "orchestration_max_tokens_per_step"


def upgrade_to(connection: Connection, revision: str) -> None:
    command.upgrade(_config(connection), revision)


def value_for(column: Any, number: int) -> Any:
    """A value of the column's type that is easy to recognise."""
    if isinstance(column.type, Boolean):
        return True
    if isinstance(column.type, Integer):
        return NOW_MS if column.name.endswith(("_ms", "at")) or column.name in ("day", "hour") else number
    if isinstance(column.type, Float):
        return number / 2
    return f"{column.name}-{number}"


def tables_of(connection: Connection) -> list[Table]:
    metadata = MetaData()
    metadata.reflect(connection)
    partitions = [name for name in inspect(connection).get_table_names() if name.startswith("token_usage_2")]
    return [table for table in metadata.sorted_tables if table.name not in (*ALEMBIC_TABLES, *partitions)]


def fill(connection: Connection) -> dict[str, dict[str, Any]]:
    """Inserts one row into every table of the current schema."""
    rows = {}
    for number, table in enumerate(tables_of(connection), 1):
        if table.name == SETTINGS_TABLE:
            continue  # the migrations themselves fill it
        rows[table.name] = {column.name: value_for(column, number) for column in table.columns}
        connection.execute(insert(table).values(rows[table.name]))
    return rows


def all_rows(connection: Connection) -> dict[str, list[RowMapping]]:
    return {table.name: list(connection.execute(select(table)).mappings()) for table in tables_of(connection)}


@pytest.fixture
async def database(empty_url: str) -> AsyncIterator[Database]:
    database = Database(empty_url)
    await database.open()
    yield database
    await database.close()


@pytest.mark.parametrize("revision", REVISIONS)
async def test_upgrade_from_each_older_revision_keeps_every_row(database: Database, revision: str) -> None:
    async with database.begin() as connection:
        await connection.run_sync(upgrade_to, revision)
        if database.is_postgres:
            await partitions.create_ahead(connection, NOW_MS)
        before = await connection.run_sync(fill)
    assert len(before) >= 10
    assert await database.migrate(NOW_MS) == SCHEMA_REVISION
    await database.check_schema()
    async with database.begin() as connection:
        after = await connection.run_sync(all_rows)
    assert set(after) == {table.name for table in METADATA.sorted_tables}
    for table, row in before.items():
        same = [
            migrated for migrated in after[table] if all(migrated.get(name) == value for name, value in row.items())
        ]
        assert same, f"{table}: {row} is not among {after[table]}"


async def test_migrating_again_keeps_changed_settings(database: Database) -> None:
    await database.migrate(NOW_MS)
    await settings.put(database, EDITED, 1234, "ada", NOW_MS)
    assert await database.migrate(NOW_MS) == SCHEMA_REVISION
    stored = await settings.get_all(database)
    assert set(stored) == set(SETTINGS)
    assert (stored[EDITED].value, stored[EDITED].updated_by) == (1234, "ada")


def test_at_least_one_older_revision_exists() -> None:
    assert REVISIONS
