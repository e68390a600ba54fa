"""A number for each subject of the control snapshot, raised in the transaction that changes the subject.

Every process reads the few numbers once a second and reloads what moved: no message can be lost, and it works behind
pgbouncer, where LISTEN does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy import select

from gateway.store.bulk import insert, replacing
from gateway.store.database import Database, StoreConnection
from gateway.store.tables import control_versions


class Subject(StrEnum):
    """What a snapshot is loaded from, each apart."""

    SETTINGS = "settings"
    KEYS = "keys"
    WORKFLOWS = "workflows"
    BUDGETS = "budgets"
    AGENTS = "agents"


async def changed(connection: StoreConnection, subject: Subject) -> None:
    """To be called in the transaction of the change: readers see both or neither."""
    row = control_versions.c
    await connection.execute(control_versions.update().where(row.name == subject).values(version=row.version + 1))


async def read(db: Database) -> Mapping[str, int]:
    query = select(control_versions.c.name, control_versions.c.version)
    async with db.begin() as connection:
        return {row.name: row.version for row in await connection.execute(query)}


async def note(db: Database, name: str, value: str) -> None:
    """Keep a text under a name of its own, such as the epoch of the embedded ledger that was last seen."""
    rows = [{"name": name, "version": 0, "value": value}]
    async with db.begin() as connection:
        await insert(connection, control_versions, rows, replacing(control_versions, ["value"]))


async def noted(db: Database, name: str) -> str | None:
    query = select(control_versions.c.value).where(control_versions.c.name == name)
    async with db.begin() as connection:
        return (await connection.execute(query)).scalar()
