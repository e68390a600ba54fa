"""Attempts at deployments, in a complete gateway in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from gateway.app import Application
from gateway.config.loading import parse_config

CONFIG = """
model_list:
  - model_name: busy
    litellm_params: {{model: openai/busy, mock_response: "litellm.RateLimitError"}}
router_settings: {{num_retries: 2}}
storage: {{ledger: "memory://", store: "sqlite:///{folder}/store.db"}}
"""


async def test_call_cancelled_between_two_attempts_leaves_nothing_in_flight(tmp_path: Path) -> None:
    application = Application(parse_config(CONFIG.format(folder=tmp_path), environ={}))
    await application.start()
    pool, transport = application.parts.pool, httpx.ASGITransport(application)
    (deployment,) = pool.of("busy")
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        body = {"model": "busy", "messages": [{"role": "user", "content": "hi"}]}
        calls = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(3)]
        await asyncio.sleep(0.2)  # after its first answer, each waits for 0.4 s or more
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    assert pool.in_flight(deployment) == 0
    await application.stop()
