"""/admin/audit: who changed what, and when; and what the gateway decided by itself, which is far more."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from gateway.admin.page_request import Page, PageRequest
from gateway.endpoints.api import audit
from gateway.endpoints.api.audit import AuditQuery, EventView
from gateway.orchestration.audit_trail import ACTOR as GATEWAY

# The prefixes of actions that the filter offers.
_ACTION_PREFIXES: Final = ("setting.", "run.", "workflow.", "budget.", "key.", "agent.", "admin.", "call.", "intent.")
_EVENTS_SHOWN: Final = 100
_SCAN_SIZE: Final = 1_000
_SCANS_MAX: Final = 5


async def show_audit(page_request: PageRequest) -> Response:
    by = page_request.param("by", "people")
    events, next_cursor = await _find_events(page_request, by)
    filters = {name: page_request.param(name) for name in ("actor", "action", "target", "from", "to")}
    return page_request.render(
        "audit", events=events, next_cursor=next_cursor, kinds=_ACTION_PREFIXES, filters=filters, by=by
    )


async def _find_events(page_request: PageRequest, by: str) -> tuple[list[EventView], str | None]:
    """One page. People's changes are looked for among the latest few thousand events; the next page looks further."""
    query = _query(page_request)
    if by != "people" or query.actor:
        event_query = query.model_copy(update={"actor": GATEWAY} if by == GATEWAY else {})
        page = await page_request.call_api(audit.list_events, query=event_query)
        return list(page.events), page.next
    events: list[EventView] = []
    cursor = query.cursor
    for _ in range(_SCANS_MAX):
        scan = query.model_copy(update={"limit": _SCAN_SIZE, "cursor": cursor})
        page = await page_request.call_api(audit.list_events, query=scan)
        events += [event for event in page.events if event.actor != GATEWAY]
        cursor = page.next
        if cursor is None or len(events) >= _EVENTS_SHOWN:
            break
    return (
        (events[:_EVENTS_SHOWN], str(events[_EVENTS_SHOWN - 1].id)) if len(events) > _EVENTS_SHOWN else (events, cursor)
    )


def _query(page_request: PageRequest) -> AuditQuery:
    names = {"actor", "action", "target", "run", "from", "to", "cursor"}
    parameters = {
        name: value for name, value in page_request.http_request.query_params.items() if name in names and value
    }
    if "project" in page_request.http_request.query_params:
        parameters["project"] = page_request.project
    return AuditQuery.model_validate(parameters | {"limit": _EVENTS_SHOWN})


PAGES = (Page("GET", "/audit", show_audit, "viewer"),)
