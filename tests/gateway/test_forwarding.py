"""Attempts at deployments, in a complete gateway in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import Application
from gateway.config.loading import parse_config

CONFIG = """
model_list:
  - model_name: busy
    litellm_params: {{model: openai/busy, mock_response: "litellm.RateLimitError"}}
  - model_name: broken
    litellm_params: {{model: openai/broken, mock_response: "litellm.InternalServerError"}}
    model_info: {{input_cost_per_token: 1.0e-6, output_cost_per_token: 4.0e-6}}
  - model_name: unpriced
    litellm_params: {{model: openai/unpriced, mock_response: "one two three"}}
  - model_name: failing
    litellm_params: {{model: openai/failing, mock_response: "litellm.InternalServerError"}}
    model_info: {{input_cost_per_token: 1.0e-6, output_cost_per_token: 1.0e-6}}
  - model_name: dear
    litellm_params: {{model: openai/dear, mock_response: "litellm.InternalServerError"}}
    model_info: {{input_cost_per_token: 1.0e-4, output_cost_per_token: 1.0e-4}}
  - model_name: threefold
    litellm_params: {{model: openai/threefold, mock_response: "one two three", n: 3}}
    model_info: {{input_cost_per_token: 1.0e-6, output_cost_per_token: 1.0e-6}}
budgets:
  - {{scope: run, match: paid, usd: 0.0001}}
  - {{scope: run, match: counted, tokens: 100}}
router_settings:
  num_retries: 1
  fallbacks: [{{broken: [unpriced]}}, {{failing: [threefold]}}, {{dear: [threefold]}}]
storage: {{ledger: "memory://", store: "sqlite:///{folder}/store.db"}}
"""


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Application, httpx.AsyncClient]]:
    application = Application(parse_config(CONFIG.format(folder=folder), environ={}), environment={})
    await application.start()
    transport = httpx.ASGITransport(application, client=("127.0.0.1", 40_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4000") as client:
        yield application, client
    await application.stop()


def request(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16}


async def test_call_cancelled_between_two_attempts_leaves_nothing_in_flight(tmp_path: Path) -> None:
    async with running(tmp_path) as (application, client):
        (deployment,) = application.parts.pool.of("busy")
        calls = [asyncio.create_task(client.post("/v1/chat/completions", json=request("busy"))) for _ in range(3)]
        await asyncio.sleep(0.2)  # after its first answer, each waits for 0.4 s or more
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert application.parts.pool.in_flight(deployment) == 0


async def test_model_without_a_price_is_no_fallback_for_a_run_whose_own_budget_limits_money(tmp_path: Path) -> None:
    """Only the ledger knows that budget, so it is not in the call's chain."""
    async with running(tmp_path) as (_, client):
        announced = await client.post("/api/runs", json={"workflow": "w", "run": "limited", "budget_usd": 1})
        assert announced.status_code == 200, announced.text
        for run, status in (("free", 200), ("limited", 500)):
            tags = {"x-workflow-id": "w", "x-workflow-run-id": run}
            answer = await client.post("/v1/chat/completions", json=request("broken"), headers=tags)
            assert answer.status_code == status, answer.text


@pytest.mark.parametrize(("model", "workflow"), [("failing", "paid"), ("dear", "counted")])
@pytest.mark.parametrize(("output_tokens", "status"), [(25, 200), (40, 500)])
async def test_fallback_that_adds_choices_is_used_only_if_all_of_them_fit(
    tmp_path: Path, model: str, workflow: str, output_tokens: int, status: int
) -> None:
    """The budget covers 100 tokens: the prompt and one choice in either case, but three choices only if they are short."""
    async with running(tmp_path) as (_, client):
        body = request(model) | {"max_tokens": output_tokens}
        answer = await client.post("/v1/chat/completions", json=body, headers={"x-workflow-id": workflow})
        assert answer.status_code == status, answer.text
