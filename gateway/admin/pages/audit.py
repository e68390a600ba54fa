"""/admin/audit: who changed what, and when."""

from __future__ import annotations

from starlette.responses import Response

from gateway.admin.visit import Page, Visit
from gateway.endpoints.api import audit
from gateway.endpoints.api.audit import AuditQuery

# The beginnings of what may happen, for the filter.
_KINDS = ("setting.", "run.", "workflow.", "budget.", "key.", "agent.", "admin.")


async def show_audit(visit: Visit) -> Response:
    known = {"actor", "action", "target", "run", "from", "to", "cursor"}
    given = {name: value for name, value in visit.request.query_params.items() if name in known and value}
    if "project" in visit.request.query_params:
        given["project"] = visit.project
    found = await visit.ask(audit.list_events, query=AuditQuery.model_validate(given | {"limit": 100}))
    filters = {name: visit.param(name) for name in ("actor", "action", "target", "from", "to")}
    return visit.show("audit", events=found.events, following=found.next, kinds=_KINDS, filters=filters)


PAGES = (Page("GET", "/audit", show_audit, "viewer"),)
