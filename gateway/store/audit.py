"""Who changed what, and what the gateway decided. Append-only: the tables refuse changes, and the deletion of recent events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, select

from gateway.store.bulk import ignore_conflict, insert
from gateway.store.database import Database
from gateway.store.tables import audit_events

_DAY_MS: Final = 86_400_000
_FORGOTTEN_AT_ONCE: Final = 5_000
# The table protects events by the database's clock. An event that is old enough only by ours, which may be ahead, would fail the deletion.
_CLOCK_MARGIN_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """`actor` did `action` (words joined by dots: setting.changed, run.cancelled) to `target`. The store assigns `id`."""

    at_ms: int
    actor: str
    action: str
    target: str = ""
    project: str = ""
    run: str = ""
    request_id: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """None matches anything. An action with a dot at its end is a prefix. From inclusive, to exclusive, in ms."""

    project: str | None = None
    actor: str | None = None
    action: str | None = None
    target: str | None = None
    run: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None


async def append(db: Database, events: Sequence[AuditEvent]) -> None:
    """Raises StoreUnavailable, and then writes nothing."""
    rows = [
        {
            "at": event.at_ms,
            "actor": event.actor,
            "action": event.action,
            "target": event.target,
            "project": event.project,
            "run": event.run,
            "request_id": event.request_id,
            "detail": orjson.dumps(event.detail).decode() if event.detail else "",
        }
        for event in events
    ]
    async with db.begin() as connection:
        await insert(connection, audit_events, rows, ignore_conflict)


async def forget_old(db: Database, now_ms: int, days: int) -> int:
    """Delete events older than `days` (90 or more: the table protects younger ones). Returns how many.

    Works in parts, so that others can write in between.
    """
    before_ms = now_ms - days * _DAY_MS - _CLOCK_MARGIN_MS
    old = select(audit_events.c.id).where(audit_events.c.at < before_ms).limit(_FORGOTTEN_AT_ONCE)
    forgotten = 0
    while True:
        async with db.begin() as connection:
            result = await connection.execute(audit_events.delete().where(audit_events.c.id.in_(old)))
        forgotten += result.rowcount
        if result.rowcount < _FORGOTTEN_AT_ONCE:
            return forgotten


async def query(
    db: Database, audit_filter: AuditFilter, limit: int = 100, before_id: int | None = None
) -> list[AuditEvent]:
    """Newest first. For the next page, pass the last event's `id` as `before_id`."""
    statement = select(audit_events).where(*_conditions(audit_filter)).order_by(audit_events.c.id.desc()).limit(limit)
    if before_id is not None:
        statement = statement.where(audit_events.c.id < before_id)
    async with db.begin() as connection:
        return [_event(row) for row in (await connection.execute(statement)).mappings()]


def _conditions(audit_filter: AuditFilter) -> list[ColumnElement[bool]]:
    table = audit_events.c
    columns_and_values = [(table[name], getattr(audit_filter, name)) for name in ("project", "actor", "target", "run")]
    conditions: list[ColumnElement[bool]] = [
        column == value for column, value in columns_and_values if value is not None
    ]
    if audit_filter.action is not None:
        is_prefix = audit_filter.action.endswith(".")
        conditions.append(
            table.action.startswith(audit_filter.action, autoescape=True)
            if is_prefix
            else table.action == audit_filter.action
        )
    if audit_filter.from_ms is not None:
        conditions.append(table.at >= audit_filter.from_ms)
    if audit_filter.to_ms is not None:
        conditions.append(table.at < audit_filter.to_ms)
    return conditions


def _event(row: Mapping[Any, Any]) -> AuditEvent:
    names = ("id", "actor", "action", "target", "project", "run", "request_id")
    return AuditEvent(
        at_ms=row["at"], detail=orjson.loads(row["detail"] or "{}"), **{name: row[name] for name in names}
    )
