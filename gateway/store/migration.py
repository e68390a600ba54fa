"""Runs the migrations. Separate from `database`, because Alembic is seldom needed and adds 0.1 s to a start."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy.engine import Connection

from gateway.store import partitions
from gateway.store.database import SchemaMismatch, StoreConnection
from gateway.store.schema_snapshot import migrations_folder


async def upgrade(connection: StoreConnection, now_ms: int) -> None:
    """Runs in the caller's transaction. Raises SchemaMismatch if the tables have a revision that is unknown here."""
    await connection.run_sync(_upgrade, "head")
    if connection.dialect.name == "postgresql":
        await partitions.create_ahead(connection, now_ms)


async def downgrade(connection: StoreConnection, revision: str) -> None:
    """Go back to an older revision; `base` removes everything. For downgrades of the gateway, and for tests."""
    await connection.run_sync(_downgrade, revision)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection, revision: str) -> None:
    try:
        command.upgrade(_config(connection), revision)
    except CommandError as error:
        raise SchemaMismatch(
            f"The store's schema is newer than this gateway, or of something else ({error}): upgrade the gateway."
        ) from error


def _downgrade(connection: Connection, revision: str) -> None:
    command.downgrade(_config(connection), revision)
