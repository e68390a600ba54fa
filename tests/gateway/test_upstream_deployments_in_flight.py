"""What counts as in flight at a deployment, in a complete gateway in this process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from gateway.app import Application
from gateway.config.loading import parse_config
from tests.fake_provider import FakeProvider
from tests.waiting import eventually

CONFIG = """
model_list:
  - model_name: pair
    litellm_params: {{model: openai/first, api_base: "{provider}", api_key: k}}
  - model_name: pair
    litellm_params: {{model: openai/second, api_base: "{provider}", api_key: k}}
router_settings: {{routing_strategy: least-busy}}
budgets: [{{scope: run, match: "*", tokens: 1000000000}}]
storage: {{ledger: "sqlite:///{folder}/ledger.db", store: "sqlite:///{folder}/store.db"}}
"""
PATH = "/v1/chat/completions"


@asynccontextmanager
async def running(folder: Path, provider: str) -> AsyncIterator[tuple[Application, httpx.AsyncClient]]:
    application = Application(parse_config(CONFIG.format(folder=folder, provider=provider), environ={}))
    await application.start()
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as client:
        yield application, client
    await application.stop()


def in_flight(application: Application) -> list[int]:
    pool = application.parts.pool
    return [pool.in_flight(deployment) for deployment in pool.of("pair")]


async def test_least_busy_spreads_a_burst_of_calls_evenly(tmp_path: Path) -> None:
    async with FakeProvider() as provider, running(tmp_path, provider.openai_url) as (application, client):
        body = {"model": "pair", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"x-workflow-id": "burst", "x-workflow-run-id": "r-1"}
        provider.script(delay_ms=500)  # all are in flight at once
        first = asyncio.create_task(client.post(PATH, json=body, headers=headers))
        await eventually(lambda: len(provider.requests) == 1)
        burst = await asyncio.gather(*(client.post(PATH, json=body, headers=headers) for _ in range(19)))
        assert {answer.status_code for answer in (await first, *burst)} == {200}
        assert Counter(request.model for request in provider.requests) == {"first": 10, "second": 10}
        assert in_flight(application) == [0, 0]


async def test_stream_is_in_flight_until_its_end(tmp_path: Path) -> None:
    async with FakeProvider() as provider, running(tmp_path, provider.openai_url) as (application, client):
        provider.script(tokens=2, chunk_delay_ms=300)
        body = {"model": "pair", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        call = asyncio.create_task(client.post(PATH, json=body))
        await eventually(lambda: bool(provider.requests) and provider.requests[0].content_events == 1)
        assert sorted(in_flight(application)) == [0, 1]
        assert (await call).status_code == 200
        assert in_flight(application) == [0, 0]
