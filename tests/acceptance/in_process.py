"""The whole gateway in this process, with a fake provider: for tests that count or time what its code does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.app import Application
from gateway.config.loading import parse_config
from policies.intents import Intent
from tests.fake_provider import FakeProvider

TAGS = {"x-workflow-id": "nightly", "x-workflow-run-id": "r-1", "x-workflow-step": "draft"}
CONFIG = """
model_list:
  - model_name: model
    litellm_params: {{model: openai/fake-model, api_base: "{provider}", api_key: k}}
    model_info: {{input_cost_per_token: 1.0e-7, output_cost_per_token: 4.0e-7, max_output_tokens: 4096}}
  - model_name: older
    litellm_params: {{model: openai/gpt-4, api_base: "{provider}", api_key: k}}
budgets:
  - {{scope: run, match: "*", tokens: 1000000000, usd: 1000}}
  - {{scope: workflow, match: "*", usd: 1000, window: day}}
settings: {{orchestration_enabled: {orchestrated}, orchestration_max_tokens_per_workflow: 10000000,
            orchestration_max_tokens_per_step: 1000000{intents}}}
storage: {{ledger: "{ledger}", store: "sqlite:///{folder}/store.db", spool: "{folder}/spool"}}
"""
INTENTS = "".join(f", orchestration_token_budget_{intent.value}: 1000000" for intent in Intent)


@asynccontextmanager
async def running_application(
    folder: Path, provider: FakeProvider, *, ledger: str = "", orchestrated: bool = False
) -> AsyncIterator[Application]:
    text = CONFIG.format(
        folder=folder,
        provider=provider.openai_url,
        ledger=ledger or f"sqlite:///{folder}/ledger.db",
        orchestrated="true" if orchestrated else "false",
        intents=INTENTS,
    )
    application = Application(parse_config(text, environ={}), environment={})
    await application.start()
    try:
        yield application
    finally:
        await application.stop()


async def ask(application: Application, headers: dict[str, str], body: bytes) -> int:
    """Calls the application directly: uvicorn's work is not counted."""
    sent: list[dict[str, Any]] = []
    asked = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in asked:
            return message
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    all_headers = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body)), **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in all_headers.items()],
        "client": ("127.0.0.1", 40_000),
        "server": ("127.0.0.1", 4_000),
    }
    await application(scope, receive, send)
    return int(sent[0]["status"])
