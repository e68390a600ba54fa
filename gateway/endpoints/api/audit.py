"""/api/audit: who changed what, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gateway.endpoints.api.route import ApiRequest, Route
from gateway.endpoints.api.schema import Instant, ListQuery, NoBody, Wanted, in_ms, page_start
from gateway.store import audit as audit_store
from gateway.store.audit import AuditEvent, AuditFilter
from gateway.timestamps import iso


class AuditQuery(ListQuery):
    """`action` with a dot at its end means all that begin so: `run.`. Without `project`: of all projects."""

    actor: Wanted | None = None
    action: Wanted | None = None
    target: Wanted | None = None
    run: Wanted | None = None
    since: Instant | None = Field(default=None, alias="from")
    until: Instant | None = Field(default=None, alias="to")


@dataclass(frozen=True, slots=True)
class EventView:
    id: int
    at: str | None
    actor: str
    action: str
    target: str
    project: str
    run: str
    request_id: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EventList:
    events: tuple[EventView, ...]
    next: str | None


async def list_events(request: ApiRequest[AuditQuery, NoBody]) -> EventList:
    query = request.query
    audit_filter = AuditFilter(
        project=query.project if "project" in query.model_fields_set else None,
        actor=query.actor,
        action=query.action,
        target=query.target,
        run=query.run,
        from_ms=in_ms(query.since),
        to_ms=in_ms(query.until),
    )
    events = await audit_store.query(request.store, audit_filter, query.limit + 1, page_start(query.cursor) or None)
    page = events[: query.limit]
    return EventList(tuple(_view(event) for event in page), str(page[-1].id) if len(events) > query.limit else None)


def _view(event: AuditEvent) -> EventView:
    return EventView(
        event.id,
        iso(event.at_ms),
        event.actor,
        event.action,
        event.target,
        event.project,
        event.run,
        event.request_id,
        event.detail,
    )


ROUTES = (Route("GET", "/audit", list_events, EventList, "Changes, the newest first.", AuditQuery),)
