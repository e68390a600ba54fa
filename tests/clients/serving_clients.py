"""What every client meets: models of both vendors, a workflow with room, and one that can afford nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.acceptance.serving import Served, model, serving
from tests.farebox_process import tagged

RUN_TOKENS = 20_000
TINY_TOKENS = 5
BUDGETS: list[dict[str, Any]] = [
    {"scope": "run", "match": "roomy", "tokens": RUN_TOKENS},
    {"scope": "run", "match": "tiny", "tokens": TINY_TOKENS},
    {"scope": "workflow", "match": "by-day", "requests": 1, "window": "day"},
]
TOOL_ARGUMENTS = '{"city": "Bremen"}'


def roomy(run: str, step: str = "draft") -> dict[str, str]:
    return tagged("roomy", run, step)


def tiny(run: str, step: str = "draft") -> dict[str, str]:
    return tagged("tiny", run, step)


@contextlib.contextmanager
def serving_clients(folder: Path) -> Iterator[Served]:
    with serving(
        folder,
        budgets=BUDGETS,
        models=lambda provider: [
            model(provider.openai_url),
            model(provider.openai_url, "embedder", upstream="openai/text-embedding-3-small"),
            model(provider.anthropic_url, "claude", upstream="anthropic/claude-sonnet-4-5"),
        ],
    ) as running:
        yield running


def refusals(served: Served) -> float:
    """Calls that the gateway refused so far: the difference is how often a client tried."""
    return served.metric("farebox_requests_total", status="refused")


def run_of(served: Served, run: str) -> dict[str, Any]:
    """The run as the control API shows it."""
    reply = served.gateway.get(f"/api/runs/{run}")
    assert reply.status == 200, reply.body
    shown: dict[str, Any] = reply.json()
    return shown
