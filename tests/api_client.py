"""The whole gateway in this process, asked over ASGI.

Its ledger is the in-memory twin and its store an SQLite file of the test's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gateway.app import Application
from gateway.config.loading import parse_config

CONFIG = """
model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, mock_response: "one two three"}}
    model_info: {{input_cost_per_token: 1.0e-6, output_cost_per_token: 4.0e-6, max_output_tokens: 100}}
budgets:
  - {{scope: run, match: "*", tokens: 20000, usd: 0.50}}
  - {{scope: workflow, match: "nightly", tokens: 100000, window: day}}
storage: {{ledger: "{ledger}", store: "{store}", spool: "{folder}/spool.jsonl"}}
"""


@dataclass
class Api:
    """`headers` are sent with every request."""

    application: Application
    client: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=dict)

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        headers = {**self.headers, **options.pop("headers", {})}
        content = options.pop("content", None)
        content_option = {"json": body} if body is not None else {"content": content} if content is not None else {}
        return await self.client.request(method, path, headers=headers, **content_option, **options)

    async def get(self, path: str, **options: Any) -> Any:
        return await self._good("GET", path, None, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return await self._good("POST", path, body, **options)

    async def put(self, path: str, body: Any, **options: Any) -> Any:
        return await self._good("PUT", path, body, **options)

    async def patch(self, path: str, body: Any, **options: Any) -> Any:
        return await self._good("PATCH", path, body, **options)

    async def delete(self, path: str, **options: Any) -> Any:
        return await self._good("DELETE", path, None, **options)

    async def refused(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, dict[str, Any]]:
        """The status and the error object."""
        reply = await self.ask(method, path, body, **options)
        assert reply.status_code >= 400, reply.text
        return reply.status_code, reply.json()["error"]

    async def chat(
        self, run: str = "r1", step: str = "draft", workflow: str = "nightly", **more: Any
    ) -> httpx.Response:
        headers = {"x-workflow-id": workflow, "x-workflow-run-id": run, "x-workflow-step": step}
        body = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], **more.pop("body", {})}
        return await self.client.post("/v1/chat/completions", json=body, headers={**headers, **more})

    async def _good(self, method: str, path: str, body: Any, **options: Any) -> Any:
        reply = await self.ask(method, path, body, **options)
        assert reply.status_code == 200, reply.text
        return reply.json()


async def make_api(
    folder: Path,
    environment: Mapping[str, str] | None = None,
    peer: str = "127.0.0.1",
    more: str = "",
    *,
    ledger: str = "memory://",
    store: str = "",
) -> Api:
    """`store` is an SQLite file in `folder` unless it is given."""
    storage = {"ledger": ledger, "store": store or f"sqlite:///{folder}/store.db"}
    config = parse_config(CONFIG.format(folder=folder, **storage) + more, environ={})
    application = Application(config, environment=dict(environment or {}))
    await application.start()
    transport = httpx.ASGITransport(app=application, client=(peer, 40_000))
    return Api(application, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4000"))


async def make_persistent_api(folder: Path) -> Api:
    """Its ledger and store are files in `folder`: made again there, it stands for a gateway that has no runs in memory."""
    return await make_api(folder, ledger=f"sqlite:///{folder}/ledger.db")


async def close_api(api: Api) -> None:
    await api.client.aclose()
    await api.application.stop()
