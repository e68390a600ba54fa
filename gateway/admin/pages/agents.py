"""/admin/agents: intensity scores with their parts, over time."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from gateway.admin.forms import parse_decimal
from gateway.admin.page_request import Page, PageRequest
from gateway.admin.reports import first_day_shown, load_report_by
from gateway.endpoints.api import agents
from gateway.endpoints.api.agents import IntensityBody
from gateway.endpoints.api.schema import ListQuery
from gateway.store.usage_report import GroupBy
from policies.intensity import CREATION, EXECUTION


async def list_agents(page_request: PageRequest) -> Response:
    if page_request.name:
        return await show_agent(page_request)
    agent_list = await page_request.call_api(
        agents.list_agents, query=ListQuery(project=page_request.project, limit=1_000)
    )
    report = await load_report_by(page_request, GroupBy.AGENT, first_day_shown(page_request), limit=500)
    row_by_agent = {row.agent or "": row for row in report.rows}
    scores = {score.agent: score for score in agent_list.agents}
    rows = [(name, scores.get(name), row_by_agent.get(name)) for name in sorted({*scores, *row_by_agent} - {""})]
    return page_request.render("agents", rows=rows)


async def show_agent(page_request: PageRequest) -> Response:
    intensity = await page_request.call_api(agents.get_intensity, path={"agent": page_request.name})
    parts: dict[str, Any] = intensity.metrics.get("parts") or {}
    oldest_first = intensity.history[::-1]
    past_parts = [score.metrics.get("parts") or {} for score in oldest_first]
    groups = [
        (
            side,
            group.name,
            group.weight,
            parts.get(key := f"{side}.{group.name}"),
            [score.meaning for score in group.measures],
            [past[key] for past in past_parts if past.get(key) is not None],
        )
        for side, table in (("creation", CREATION), ("execution", EXECUTION))
        for group in table
    ]
    return page_request.render(
        "agent", agent=intensity, groups=groups, series=[score.combined for score in oldest_first]
    )


async def set_score(page_request: PageRequest) -> Response:
    scores = {name: page_request.form.get(name, "").strip() for name in ("creation", "execution")}
    fields: dict[str, Any] = {name: parse_decimal(name, text) for name, text in scores.items() if text}
    note = page_request.form.get("note", "").strip()
    body = IntensityBody.model_validate({**fields, **({"note": note} if note else {})})
    await page_request.call_api(agents.put_intensity, path={"agent": page_request.name}, body=body)
    return page_request.redirect("agents", page_request.name, done="saved")


PAGES = (
    Page("GET", "/agents", list_agents, "viewer"),
    Page("POST", "/agents", set_score, "admin"),  # for a name that cannot be part of a path
    Page("GET", "/agents/{name:path}", show_agent, "viewer"),
    Page("POST", "/agents/{name:path}", set_score, "admin"),
)
