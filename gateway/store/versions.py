"""A version number for each subject of the control snapshot, raised in the transaction that changes the subject.

Every process reads the few numbers once a second and reloads what changed. No message can be lost, and it works behind
pgbouncer, unlike LISTEN.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy import select

from gateway.store.bulk import insert, replace_on_conflict
from gateway.store.database import Database, StoreConnection
from gateway.store.tables import control_versions


class Subject(StrEnum):
    """The separately loaded parts of a snapshot."""

    SETTINGS = "settings"
    KEYS = "keys"
    WORKFLOWS = "workflows"
    BUDGETS = "budgets"
    AGENTS = "agents"


async def raise_version(connection: StoreConnection, subject: Subject) -> None:
    """Call this in the transaction of the change, so that readers see both or neither."""
    row = control_versions.c
    await connection.execute(control_versions.update().where(row.name == subject).values(version=row.version + 1))


async def read(db: Database) -> Mapping[str, int]:
    query = select(control_versions.c.name, control_versions.c.version)
    async with db.begin() as connection:
        return {row.name: row.version for row in await connection.execute(query)}


async def put_value(db: Database, name: str, value: str) -> None:
    """Store a text under a name, such as the last seen epoch of the embedded ledger."""
    rows = [{"name": name, "version": 0, "value": value}]
    async with db.begin() as connection:
        await insert(connection, control_versions, rows, replace_on_conflict(control_versions, ["value"]))


async def get_value(db: Database, name: str) -> str | None:
    query = select(control_versions.c.value).where(control_versions.c.name == name)
    async with db.begin() as connection:
        return (await connection.execute(query)).scalar()
