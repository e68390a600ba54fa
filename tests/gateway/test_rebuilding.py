"""An embedded ledger whose file is gone: at the next start, a new one is filled from the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from gateway.app import Application
from gateway.config.loading import parse_config

CONFIG = """
model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, mock_response: "one two three"}}
storage: {{ledger: "sqlite:///{folder}/ledger.db", store: "sqlite:///{folder}/store.db", spool: "{folder}/spool.jsonl"}}
budgets:
  - {{scope: project, requests: 2, window: total}}
"""


@asynccontextmanager
async def gateway_in(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    application = Application(parse_config(CONFIG.format(folder=folder), environ={}), environment={})
    await application.start()
    transport = httpx.ASGITransport(app=application, client=("127.0.0.1", 40_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4000") as client:
        try:
            yield client
        finally:
            await application.stop()


async def status_of_a_call(client: httpx.AsyncClient) -> int:
    body = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    tags = {"x-workflow-id": "w", "x-workflow-run-id": "r", "x-workflow-step": "s"}
    return (await client.post("/v1/chat/completions", json=body, headers=tags)).status_code


async def test_missing_ledger_file_is_rebuilt_with_its_usage(tmp_path: Path) -> None:
    async with gateway_in(tmp_path) as client:
        assert [await status_of_a_call(client) for _ in range(2)] == [200, 200]
        before = (await client.get("/api/runs/r")).json()
    for file in tmp_path.glob("ledger.db*"):
        file.unlink()
    async with gateway_in(tmp_path) as client:
        after = (await client.get("/api/runs/r")).json()
        assert (after["tokens"], after["source"]) == (before["tokens"], "ledger")
        assert await status_of_a_call(client) == 402
    async with gateway_in(tmp_path) as client:
        assert await status_of_a_call(client) == 402, "the rebuilt ledger is kept"
