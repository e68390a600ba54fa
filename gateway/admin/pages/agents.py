"""/admin/agents: intensity scores with their parts, over time."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from gateway.admin.form_numbers import decimal
from gateway.admin.reports import first_day, report_by
from gateway.admin.visit import Page, Visit
from gateway.endpoints.api import agents
from gateway.endpoints.api.agents import IntensityBody
from gateway.endpoints.api.schema import ListQuery
from gateway.store.usage_report import GroupBy
from policies.intensity import CREATION, EXECUTION


async def list_agents(visit: Visit) -> Response:
    if visit.name:
        return await show_agent(visit)
    scored = await visit.ask(agents.list_agents, query=ListQuery(project=visit.project, limit=1_000))
    found = await report_by(visit, GroupBy.AGENT, first_day(visit), limit=500)
    seen = {row.agent or "": row for row in found.rows}
    known = {one.agent: one for one in scored.agents}
    lines = [(name, known.get(name), seen.get(name)) for name in sorted({*known, *seen} - {""})]
    return visit.show("agents", lines=lines)


async def show_agent(visit: Visit) -> Response:
    found = await visit.ask(agents.get_intensity, path={"agent": visit.name})
    parts: dict[str, Any] = found.metrics.get("parts") or {}
    oldest_first = found.history[::-1]
    before = [one.metrics.get("parts") or {} for one in oldest_first]
    groups = [
        (
            side,
            group.name,
            group.weight,
            parts.get(key := f"{side}.{group.name}"),
            [one.meaning for one in group.measures],
            [past[key] for past in before if past.get(key) is not None],
        )
        for side, table in (("creation", CREATION), ("execution", EXECUTION))
        for group in table
    ]
    return visit.show("agent", agent=found, groups=groups, series=[one.combined for one in oldest_first])


async def set_score(visit: Visit) -> Response:
    scores = {name: visit.form.get(name, "").strip() for name in ("creation", "execution")}
    given: dict[str, Any] = {name: decimal(name, text) for name, text in scores.items() if text}
    note = visit.form.get("note", "").strip()
    body = IntensityBody.model_validate({**given, **({"note": note} if note else {})})
    await visit.ask(agents.put_intensity, path={"agent": visit.name}, body=body)
    return visit.go("agents", visit.name, done="saved")


PAGES = (
    Page("GET", "/agents", list_agents, "viewer"),
    Page("POST", "/agents", set_score, "admin"),  # of a name that a path cannot carry
    Page("GET", "/agents/{name:path}", show_agent, "viewer"),
    Page("POST", "/agents/{name:path}", set_score, "admin"),
)
