"""A run that is used under several workflows is held to the run budgets of all of them, here and at every other gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.app import Application
from gateway.config.loading import parse_config
from tests.api_client import CONFIG, Api, close_api

LIMIT = 300


async def begun(folder: Path) -> Api:
    """A gateway on the ledger and store of the folder: begun again, it knows of no run."""
    config = parse_config(CONFIG.replace("memory://", "sqlite:///{folder}/ledger.db").format(folder=folder), environ={})
    application = Application(config, environment={})
    await application.start()
    transport = httpx.ASGITransport(app=application, client=("127.0.0.1", 40_000))
    return Api(application, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4000"))


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    made = await begun(tmp_path)
    await made.post("/api/budgets", {"scope": "run", "match": "lim-*", "tokens": LIMIT})
    yield made
    await close_api(made)


async def left(api: Api, workflow: str, run: str = "fx") -> str:
    reply = await api.chat(run, workflow=workflow, body={"max_tokens": 50})
    assert reply.status_code == 200, reply.text
    return reply.headers["x-budget-run-limit"]


@pytest.mark.parametrize("workflows", [("lim-1", "free"), ("free", "lim-1")])
async def test_the_smaller_budget_counts_whichever_workflow_came_first(api: Api, workflows: tuple[str, str]) -> None:
    await left(api, workflows[0])
    assert await left(api, workflows[1]) == str(LIMIT)
    assert [await left(api, name) for name in (*workflows, "third")] == [str(LIMIT)] * 3
    replies = [await api.chat("fx", workflow="free", body={"max_tokens": 50}) for _ in range(40)]
    assert {reply.status_code for reply in replies} == {200, 402}
    run = await api.get("/api/runs/fx")
    assert run["tokens"]["limit"] == LIMIT
    assert run["tokens"]["settled"] <= LIMIT


async def test_a_declared_budget_counts_for_other_workflows_too(api: Api) -> None:
    await api.put("/api/workflows/declared", {"budget": {"tokens": 200}})
    assert await left(api, "declared") == "200"
    assert await left(api, "free") == "200"


@pytest.mark.parametrize("is_orchestrated", [False, True])
async def test_a_gateway_that_never_saw_the_run_finds_its_workflow_in_the_store(
    api: Api, tmp_path: Path, is_orchestrated: bool
) -> None:
    """With orchestration on, its plan tells."""
    await api.put("/api/settings/orchestration_enabled", {"value": is_orchestrated})
    await left(api, "lim-1")
    await api.application.parts.flusher.drain(5_000)
    await close_api(api)
    other = await begun(tmp_path)
    try:
        assert await left(other, "free") == str(LIMIT)
    finally:
        await close_api(other)


async def test_what_an_operator_gave_the_run_goes_before_the_budgets_of_all(api: Api, tmp_path: Path) -> None:
    await left(api, "lim-1")
    await left(api, "free")
    await api.post("/api/runs/fx/budget", {"tokens": 5000})
    assert [await left(api, name) for name in ("free", "lim-1", "third")] == ["5000"] * 3
    await close_api(api)
    other = await begun(tmp_path)
    try:
        assert [await left(other, name) for name in ("free", "lim-1", "fourth")] == ["5000"] * 3
    finally:
        await close_api(other)


async def test_runs_of_one_workflow_follow_a_budget_that_is_raised(api: Api) -> None:
    assert await left(api, "lim-1") == str(LIMIT)
    (budget,) = [one for one in (await api.get("/api/budgets"))["budgets"] if one["match"] == "lim-*"]
    await api.put(f"/api/budgets/{budget['id']}", {"scope": "run", "match": "lim-*", "tokens": 900})
    assert await left(api, "lim-1") == "900"
