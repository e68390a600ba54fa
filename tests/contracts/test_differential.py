"""One random workload through whole gateways on every engine: each answer and the final accounts are the same.

This compares not only the ledgers but everything above them: chains, ladders, clamps, headers, and operators' actions on runs.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import Application
from gateway.config.schema import Config
from tests.contracts import redis_engines

CALLS = 90
# On a busy machine Redis may miss its deadline: nothing is granted then, and the call can be repeated.
ATTEMPTS_MAX = 40
# Fields that depend on the time or on a random id, and not on a decision.
NOT_COMPARED = {"request_id", "reset_at"}


async def ledger_url(engine: str, folder: Path) -> str:
    match engine:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite:///{folder}/ledger.db"
        case "redis":
            return await redis_engines.empty_server()
        case _:
            return redis_engines.empty_cluster()


def configuration(ledger: str, folder: Path) -> Config:
    def mock(name: str, tokens: int, usd: float) -> dict[str, Any]:
        return {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "mock_response": " ".join(["time"] * tokens)},
            "model_info": {"input_cost_per_token": usd, "output_cost_per_token": 4 * usd, "max_output_tokens": 400},
        }

    return Config.model_validate(
        {
            "model_list": [mock("small", 9, 1e-7), mock("large", 60, 1e-6)],
            "budgets": [
                {"scope": "run", "match": "*", "tokens": 900, "usd": 0.01},
                {"scope": "step", "match": "a/*", "tokens": 400},
                {"scope": "workflow", "match": "b", "tokens": 2000, "window": "total"},
                {"scope": "run", "match": "c", "tokens": 500, "hold": "slices"},
                {"scope": "run", "match": "d", "tokens": 300, "mode": "observe"},
                {"scope": "agent", "match": "bot", "requests": 12, "window": "total"},
            ],
            "storage": {"ledger": ledger, "store": f"sqlite:///{folder}/store.db", "spool": f"{folder}/spool"},
        }
    )


@asynccontextmanager
async def gateway(engine: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    folder.mkdir()
    application = Application(configuration(await ledger_url(engine, folder), folder), environment={})
    await application.start()
    transport = httpx.ASGITransport(app=application, client=("127.0.0.1", 40_000))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4000") as client:
            yield client
    finally:
        await application.stop()


def workload(seed: int) -> list[tuple[str, str, dict[str, Any], dict[str, str]]]:
    """(method, path, body, headers), the same for every engine."""
    chance = random.Random(seed)
    steps: list[tuple[str, str, dict[str, Any], dict[str, str]]] = []
    for _ in range(CALLS):
        # Each run belongs to one workflow: otherwise its workflow would depend on which event reached the store first.
        workflow = chance.choice("abcd")
        run = f"{workflow}-{chance.randint(1, 2)}"
        if chance.random() < 0.08:
            action = chance.choice(["pause", "resume", "resume", "complete", "budget"])
            body: dict[str, Any] = {"tokens": chance.randint(100, 3000)} if action == "budget" else {}
            steps.append(("POST", f"/api/runs/{run}/{action}", body, {}))
            continue
        headers = {
            "x-workflow-id": workflow,
            "x-workflow-run-id": run,
            "x-workflow-step": chance.choice("st"),
        }
        if chance.random() < 0.2:
            headers["x-workflow-budget-tokens"] = str(chance.randint(50, 1500))
        if chance.random() < 0.2:
            headers["x-workflow-options"] = "no-clamp"
        if chance.random() < 0.2:
            headers["x-workflow-agent"] = "bot"
        if chance.random() < 0.1:
            headers["x-workflow-parent-run-id"] = "a-1"
        body = {
            "model": chance.choice(["small", "large"]),
            "messages": [{"role": "user", "content": "word " * chance.choice([1, 5, 40, 300])}],
            "stream": chance.random() < 0.3,
            "n": chance.choice([1, 1, 1, 2]),
        }
        if chance.random() < 0.7:
            body["max_tokens"] = chance.choice([1, 5, 20, 100, 5000])
        steps.append(("POST", "/v1/chat/completions", body, headers))
    return steps


async def decision_of(
    client: httpx.AsyncClient, step: tuple[str, str, dict[str, Any], dict[str, str]]
) -> dict[str, Any]:
    method, path, body, headers = step
    for _ in range(ATTEMPTS_MAX):
        reply = await client.request(method, path, json=body, headers=headers)
        if reply.status_code != 503:
            break
        await asyncio.sleep(0.25)
    budget_headers = {
        name: value
        for name, value in reply.headers.items()
        if name.startswith(("x-budget-", "x-workflow-", "x-should"))
    }
    decision: dict[str, Any] = {"asked": (path, headers), "status": reply.status_code, "headers": budget_headers}
    if reply.status_code >= 400:
        error = reply.json()["error"]
        facts = {name: value for name, value in (error.get("metadata") or {}).items() if name not in NOT_COMPARED}
        decision["error"] = (error["code"], error["message"], facts)
    elif path.startswith("/v1") and not body["stream"]:
        decision["usage"] = reply.json()["usage"]
    return decision


async def outcomes_on(engine: str, seed: int, folder: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    async with gateway(engine, folder) as client:
        decisions = [await decision_of(client, step) for step in workload(seed)]
        runs = (await client.get("/api/runs?limit=100")).json()["runs"]
        books = sorted(
            (run["run"], run["state"], run["tokens"], run["cost_usd"], run["requests"]["settled"]) for run in runs
        )
    return decisions, books


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 8))])
async def test_every_engine_decides_a_random_workload_identically(seed: int, tmp_path: Path) -> None:
    expected, books = await outcomes_on("memory", seed, tmp_path / "memory")
    statuses = [expected_outcomecome["status"] for expected_outcomecome in expected]
    assert statuses.count(200) > CALLS // 4
    assert statuses.count(402) > CALLS // 10, "a workload without refusals would compare little"
    for engine in ("sqlite", "redis", "redis-cluster"):
        outcomes, their_books = await outcomes_on(engine, seed, tmp_path / engine)
        for at, (expected_outcome, outcome) in enumerate(zip(expected, outcomes, strict=True)):
            assert outcome == expected_outcome, f"{engine} at call {at}"
        assert their_books == books, engine
