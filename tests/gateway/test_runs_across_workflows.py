"""A run that is used under several workflows is held to the run budgets of all of them, here and at every other gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api_client import Api, close_api, make_persistent_api

LIMIT = 300


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    persistent_api = await make_persistent_api(tmp_path)
    await persistent_api.post("/api/budgets", {"scope": "run", "match": "lim-*", "tokens": LIMIT})
    yield persistent_api
    await close_api(persistent_api)


async def run_limit(api: Api, workflow: str, run: str = "fx") -> str:
    reply = await api.chat(run, workflow=workflow, body={"max_tokens": 50})
    assert reply.status_code == 200, reply.text
    return reply.headers["x-budget-run-limit"]


@pytest.mark.parametrize("workflows", [("lim-1", "free"), ("free", "lim-1")])
async def test_smaller_run_budget_applies_whichever_workflow_came_first(api: Api, workflows: tuple[str, str]) -> None:
    await run_limit(api, workflows[0])
    assert await run_limit(api, workflows[1]) == str(LIMIT)
    assert [await run_limit(api, name) for name in (*workflows, "third")] == [str(LIMIT)] * 3
    replies = [await api.chat("fx", workflow="free", body={"max_tokens": 50}) for _ in range(40)]
    assert {reply.status_code for reply in replies} == {200, 402}
    run = await api.get("/api/runs/fx")
    assert run["tokens"]["limit"] == LIMIT
    assert run["tokens"]["settled"] <= LIMIT


async def test_declared_budget_applies_to_the_run_in_other_workflows(api: Api) -> None:
    await api.put("/api/workflows/declared", {"budget": {"tokens": 200}})
    assert await run_limit(api, "declared") == "200"
    assert await run_limit(api, "free") == "200"


@pytest.mark.parametrize("is_orchestrated", [False, True])
async def test_other_gateway_reads_the_workflow_of_the_run_from_the_store(
    api: Api, tmp_path: Path, is_orchestrated: bool
) -> None:
    """With orchestration on, the plan of the run names it."""
    await api.put("/api/settings/orchestration_enabled", {"value": is_orchestrated})
    await run_limit(api, "lim-1")
    await api.application.parts.flusher.drain(5_000)
    await close_api(api)
    other = await make_persistent_api(tmp_path)
    try:
        assert await run_limit(other, "free") == str(LIMIT)
    finally:
        await close_api(other)


async def test_operators_budget_for_the_run_beats_the_budgets_of_all_workflows(api: Api, tmp_path: Path) -> None:
    await run_limit(api, "lim-1")
    await run_limit(api, "free")
    await api.post("/api/runs/fx/budget", {"tokens": 5000})
    assert [await run_limit(api, name) for name in ("free", "lim-1", "third")] == ["5000"] * 3
    await close_api(api)
    other = await make_persistent_api(tmp_path)
    try:
        assert [await run_limit(other, name) for name in ("free", "lim-1", "fourth")] == ["5000"] * 3
    finally:
        await close_api(other)


async def test_raised_budget_applies_to_a_run_of_one_workflow(api: Api) -> None:
    assert await run_limit(api, "lim-1") == str(LIMIT)
    (budget,) = [budget for budget in (await api.get("/api/budgets"))["budgets"] if budget["match"] == "lim-*"]
    await api.put(f"/api/budgets/{budget['id']}", {"scope": "run", "match": "lim-*", "tokens": 900})
    assert await run_limit(api, "lim-1") == "900"
