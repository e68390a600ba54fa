"""Budgets made at run time: the fields of budgets in the file, and an id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import select

from gateway.store.bulk import insert, replace_on_conflict
from gateway.store.database import Database
from gateway.store.tables import budgets
from gateway.store.versions import Subject, raise_version
from policies.amounts import Limit
from policies.budgets import Budget, HoldKind, Mode, OnOutage, Scope, Window
from policies.pressure import ladder_items, parse_ladder


@dataclass(frozen=True, slots=True)
class StoredBudget:
    id: str
    budget: Budget
    updated_at_ms: int = 0
    updated_by: str = ""


async def put(db: Database, stored: StoredBudget) -> None:
    """Make a budget, or replace the one with this id."""
    row = _to_row(stored)
    async with db.begin() as connection:
        await insert(connection, budgets, [row], replace_on_conflict(budgets, [name for name in row if name != "id"]))
        await raise_version(connection, Subject.BUDGETS)


async def delete(db: Database, budget_id: str) -> bool:
    """Delete a budget. Returns whether it existed."""
    async with db.begin() as connection:
        result = await connection.execute(budgets.delete().where(budgets.c.id == budget_id))
        await raise_version(connection, Subject.BUDGETS)
    return result.rowcount > 0


async def get(db: Database, budget_id: str) -> StoredBudget | None:
    async with db.begin() as connection:
        row = (await connection.execute(select(budgets).where(budgets.c.id == budget_id))).mappings().first()
    return None if row is None else _from_row(row)


async def list_all(db: Database) -> list[StoredBudget]:
    """In the order of their last changes."""
    query = select(budgets).order_by(budgets.c.updated_at, budgets.c.id)
    async with db.begin() as connection:
        return [_from_row(row) for row in (await connection.execute(query)).mappings()]


def _to_row(stored: StoredBudget) -> dict[str, Any]:
    budget = stored.budget
    return {
        "id": stored.id,
        "project": budget.project,
        "scope": budget.scope.value,
        "match": budget.match,
        "tokens": budget.limit.tokens,
        "nano_usd": budget.limit.nano_usd,
        "requests": budget.limit.requests,
        "window": budget.window.value,
        "on_pressure": orjson.dumps(ladder_items(budget.on_pressure)).decode(),
        "hold": budget.hold.value,
        "on_outage": budget.on_outage.value,
        "mode": budget.mode.value,
        "timezone": budget.timezone,
        "wait_ms": budget.wait_ms,
        "updated_at": stored.updated_at_ms,
        "updated_by": stored.updated_by,
    }


def _from_row(row: Mapping[Any, Any]) -> StoredBudget:
    budget = Budget(
        scope=Scope(row["scope"]),
        limit=Limit(row["tokens"], row["nano_usd"], row["requests"]),
        match=row["match"],
        window=Window(row["window"]),
        on_pressure=parse_ladder(orjson.loads(row["on_pressure"])),
        hold=HoldKind(row["hold"]),
        on_outage=OnOutage(row["on_outage"]),
        mode=Mode(row["mode"]),
        project=row["project"],
        timezone=row["timezone"],
        wait_ms=row["wait_ms"],
    )
    return StoredBudget(row["id"], budget, row["updated_at"], row["updated_by"])
