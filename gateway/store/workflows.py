"""Declared workflows: their steps, and whether they observe or enforce."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import and_, select

from gateway.store.bulk import insert, replace_on_conflict
from gateway.store.database import Database
from gateway.store.tables import workflows
from gateway.store.versions import Subject, raise_version


@dataclass(frozen=True, slots=True)
class Workflow:
    """`mode` is observe, enforce, or empty for the orchestration's default. The declaration is stored JSON."""

    project: str
    name: str
    mode: str = ""
    declaration: Mapping[str, Any] = field(default_factory=dict)
    updated_at_ms: int = 0
    updated_by: str = ""


async def put(db: Database, workflow: Workflow) -> None:
    """Declare a workflow, or replace its declaration."""
    row = {
        "project": workflow.project,
        "name": workflow.name,
        "mode": workflow.mode,
        "declaration": orjson.dumps(workflow.declaration).decode(),
        "updated_at": workflow.updated_at_ms,
        "updated_by": workflow.updated_by,
    }
    async with db.begin() as connection:
        names = ("mode", "declaration", "updated_at", "updated_by")
        await insert(connection, workflows, [row], replace_on_conflict(workflows, names))
        await raise_version(connection, Subject.WORKFLOWS)


async def delete(db: Database, project: str, name: str) -> bool:
    """Delete a workflow. Returns whether it existed."""
    async with db.begin() as connection:
        condition = and_(workflows.c.project == project, workflows.c.name == name)
        result = await connection.execute(workflows.delete().where(condition))
        await raise_version(connection, Subject.WORKFLOWS)
    return result.rowcount > 0


async def get(db: Database, project: str, name: str) -> Workflow | None:
    query = select(workflows).where(workflows.c.project == project, workflows.c.name == name)
    async with db.begin() as connection:
        row = (await connection.execute(query)).mappings().first()
    return None if row is None else _from_row(row)


async def list_all(db: Database, project: str | None = None) -> list[Workflow]:
    query = select(workflows).order_by(workflows.c.project, workflows.c.name)
    if project is not None:
        query = query.where(workflows.c.project == project)
    async with db.begin() as connection:
        return [_from_row(row) for row in (await connection.execute(query)).mappings()]


def _from_row(row: Mapping[Any, Any]) -> Workflow:
    return Workflow(
        project=row["project"],
        name=row["name"],
        mode=row["mode"],
        declaration=orjson.loads(row["declaration"] or "{}"),
        updated_at_ms=row["updated_at"],
        updated_by=row["updated_by"],
    )
