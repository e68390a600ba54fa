"""A complete gateway in this process with orchestration on, for the tests of orchestration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from gateway.app import Application
from gateway.config.loading import parse_config

CONFIG = """
model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, mock_response: "one two three"}}
    model_info: {{input_cost_per_token: 1.0e-6, output_cost_per_token: 4.0e-6, max_output_tokens: 2000}}
storage: {{ledger: "memory://", store: "sqlite:///{folder}/store.db", spool: "{folder}/spool.jsonl"}}
settings: {settings}
"""


class Orchestrated:
    def __init__(self, application: Application, client: httpx.AsyncClient) -> None:
        self.application = application
        self.orchestration = application.parts.orchestration
        self._client = client

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        reply = await self._client.request(method, path, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def declare(self, name: str, **declaration: Any) -> None:
        await self.ask("PUT", f"/api/workflows/{name}", declaration)

    async def set(self, key: str, value: Any) -> None:
        await self.ask("PUT", f"/api/settings/orchestration_{key}", {"value": value})

    async def call(
        self, workflow: str, run: str, step: str, prompt: str = "hi", output_max: int = 16, **more: Any
    ) -> httpx.Response:
        """`more` are tags: `priority="high"` becomes `x-workflow-priority: high`."""
        tags = {"x-workflow-id": workflow, "x-workflow-run-id": run, "x-workflow-step": step}
        tags |= {f"x-workflow-{name.replace('_', '-')}": value for name, value in more.pop("headers", {}).items()}
        tags |= {f"x-workflow-{name}": value for name, value in more.items() if isinstance(value, str)}
        body = {"model": "mock", "messages": [{"role": "user", "content": prompt}], "max_tokens": output_max}
        body |= more.get("body", {})
        return await self._client.post("/v1/chat/completions", json=body, headers=tags)

    async def run(self, run: str) -> Any:
        """The run as the API shows it, after pending writes are flushed."""
        await self.orchestration.plans.flush()
        return await self.ask("GET", f"/api/runs/{run}")

    async def steps(self, run: str) -> dict[str, Any]:
        return {step["step"]: step for step in (await self.run(run))["steps"]}

    async def audit(self, action: str, **filters: str) -> list[Any]:
        await self.orchestration.trail.flush()
        query = "&".join(f"{name}={value}" for name, value in {"action": action, "limit": "100", **filters}.items())
        return list(reversed((await self.ask("GET", f"/api/audit?{query}"))["events"]))

    def metric(self, name: str, **labels: str) -> float:
        return self.application.parts.telemetry.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def orchestrated(folder: Path, more_configuration: str = "", **settings: Any) -> AsyncIterator[Orchestrated]:
    """`settings` without their prefix; orchestration is on."""
    values = {"enabled": True, **settings}
    written = "{" + ", ".join(f"orchestration_{name}: {str(value).lower()}" for name, value in values.items()) + "}"
    config = parse_config(CONFIG.format(folder=folder, settings=written) + more_configuration, environ={})
    application = Application(config, environment={})
    await application.start()
    transport = httpx.ASGITransport(app=application, client=("127.0.0.1", 40_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4000") as client:
        try:
            yield Orchestrated(application, client)
        finally:
            await application.stop()


def words(count: int) -> str:
    """A text of exactly `count` tokens."""
    return " ".join(["time"] * count)
