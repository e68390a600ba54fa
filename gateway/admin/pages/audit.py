"""/admin/audit: who changed what, and when; and what the gateway decided by itself, which is far more."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from gateway.admin.visit import Page, Visit
from gateway.endpoints.api import audit
from gateway.endpoints.api.audit import AuditQuery, EventView
from gateway.orchestration.trail import ACTOR as GATEWAY

# The beginnings of what may happen, for the filter.
_KINDS: Final = ("setting.", "run.", "workflow.", "budget.", "key.", "agent.", "admin.", "call.", "intent.")
_SHOWN: Final = 100
_SCANNED_AT_ONCE: Final = 1_000
_SCANS_MAX: Final = 5


async def show_audit(visit: Visit) -> Response:
    by = visit.param("by", "people")
    events, following = await _events(visit, by)
    filters = {name: visit.param(name) for name in ("actor", "action", "target", "from", "to")}
    return visit.show("audit", events=events, following=following, kinds=_KINDS, filters=filters, by=by)


async def _events(visit: Visit, by: str) -> tuple[list[EventView], str | None]:
    """One page. People's changes are looked for among the latest few thousand events; the next page looks further."""
    query = _query(visit)
    if by != "people" or query.actor:
        wanted = query.model_copy(update={"actor": GATEWAY} if by == GATEWAY else {})
        found = await visit.ask(audit.list_events, query=wanted)
        return list(found.events), found.next
    shown: list[EventView] = []
    cursor = query.cursor
    for _ in range(_SCANS_MAX):
        scan = query.model_copy(update={"limit": _SCANNED_AT_ONCE, "cursor": cursor})
        found = await visit.ask(audit.list_events, query=scan)
        shown += [event for event in found.events if event.actor != GATEWAY]
        cursor = found.next
        if cursor is None or len(shown) >= _SHOWN:
            break
    return (shown[:_SHOWN], str(shown[_SHOWN - 1].id)) if len(shown) > _SHOWN else (shown, cursor)


def _query(visit: Visit) -> AuditQuery:
    known = {"actor", "action", "target", "run", "from", "to", "cursor"}
    given = {name: value for name, value in visit.request.query_params.items() if name in known and value}
    if "project" in visit.request.query_params:
        given["project"] = visit.project
    return AuditQuery.model_validate(given | {"limit": _SHOWN})


PAGES = (Page("GET", "/audit", show_audit, "viewer"),)
