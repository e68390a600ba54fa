"""Real steps of real agents, replayed by real clients against tight budgets: at the end every token is accounted for."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.tokenizer import Tokenizer
from tests.acceptance.serving import Served, ledger_rows, model, serving, store_rows
from tests.fake_provider import FakeProvider

CONCURRENCY = 32
RUN_TOKENS = 900
REFERENCE = Path(os.environ.get("FAREBOX_REFERENCE") or Path(__file__).parents[3] / "shared" / "reference")
STEPS_FILE = REFERENCE / "intents" / "dev.jsonl"

pytestmark = [
    pytest.mark.xdist_group("acceptance-recorded-steps"),
    pytest.mark.skipif(
        not STEPS_FILE.exists(), reason=f"needs intents/dev.jsonl below {REFERENCE} (FAREBOX_REFERENCE)"
    ),
]


def steps() -> list[dict[str, Any]]:
    return [json.loads(line) for line in STEPS_FILE.read_text(encoding="utf-8").splitlines() if line.strip()]


def name_of(text: str) -> str:
    return "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in text)[:100]


@pytest.fixture(scope="module")
def provider() -> FakeProvider:
    """It counts with the tokenizer of the model that it imitates, so that it reports the same usage as the real one."""
    tokenizer = Tokenizer()
    asyncio.run(tokenizer.load())
    return FakeProvider(count=lambda text: tokenizer.count_text("o200k_base", text))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, provider: FakeProvider) -> Iterator[Served]:
    budgets: list[dict[str, Any]] = [
        {"scope": "run", "match": "*", "tokens": RUN_TOKENS},
        {"scope": "step", "match": "*", "tokens": 700},
        {"scope": "run", "match": "sliced-*", "tokens": RUN_TOKENS, "hold": "slices"},
    ]
    with serving(
        tmp_path_factory.mktemp("recorded-steps"),
        provider=provider,
        models=lambda running: [model(running.openai_url)],
        budgets=budgets,
        settings={"orchestration_enabled": True, "orchestration_max_tokens_per_workflow": 100_000},
        reservations={"slice_tokens": 64},
    ) as running:
        yield running


async def test_accounts_equal_usage_rows_after_a_replay_of_recorded_steps(served: Served) -> None:
    """A workflow is the repository that a step comes from, a run the file. Every third run holds slices, every second call
    streams, and every third answer comes without usage."""
    outcomes: Counter[str] = Counter()
    sources: dict[tuple[str, str], int] = {}
    served.provider.script(times=None, when=lambda request: len(request.raw) % 3 == 0, tokens=400, delay_ms=5)
    served.provider.script(times=None, when=lambda request: len(request.raw) % 3 == 1, tokens=60, usage="missing")
    places = asyncio.Semaphore(CONCURRENCY)
    client = openai.AsyncOpenAI(base_url=served.gateway.url + "/v1", api_key="any", max_retries=0)

    async def call(at: int, step: dict[str, Any]) -> None:
        source = step["source"]
        number = sources.setdefault((source["repo"], source["path"]), len(sources))
        workflow = ("sliced-" if number % 3 == 0 else "") + name_of(source["repo"])
        run = f"{name_of(source['path'])}-{number}"
        request: dict[str, Any] = {"model": "fake", "messages": messages_of(step)}
        if step["tools"]:
            request["tools"] = [{"type": "function", "function": {"name": name_of(tool)}} for tool in step["tools"]]
        if at % 5 == 0:
            request["max_tokens"] = 50
        headers = {
            "x-workflow-id": workflow,
            "x-workflow-run-id": run,
            "x-workflow-step": name_of(step["step_name"] or "default"),
        }
        async with places:
            await ask(client, request, headers, at % 2 == 0, outcomes)

    async with client:
        ended = await asyncio.gather(*(call(at, step) for at, step in enumerate(steps())), return_exceptions=True)
    assert [error for error in ended if error is not None] == []
    assert served.gateway.stop() == 0
    assert "call_failed" not in served.gateway.log
    assert "orchestration_failed" not in served.gateway.log
    total = sum(outcomes.values())
    assert total == len(steps())
    assert outcomes["other"] == 0, outcomes
    assert outcomes["answered"] >= total // 4, outcomes
    assert outcomes["refused"] >= total // 20, outcomes
    clamped = store_rows(served.gateway.folder, "SELECT count(*) AS n FROM token_usage WHERE actions LIKE '%clamp%'")
    assert clamped[0]["n"] >= 10
    check_accounts(served.gateway.folder)


def messages_of(step: dict[str, Any]) -> list[dict[str, str]]:
    system = [{"role": "system", "content": step["system"]}] if step["system"] else []
    return [*system, {"role": "user", "content": step["prompt"] or "Go on."}]


async def ask(
    client: openai.AsyncOpenAI, request: dict[str, Any], headers: dict[str, str], streamed: bool, outcomes: Counter[str]
) -> None:
    try:
        if streamed:
            stream = await client.chat.completions.create(**request, stream=True, extra_headers=headers)
            finish = [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices][-1]
            outcomes["answered" if finish in ("stop", "length", "tool_calls") else "other"] += 1
        else:
            answer = await client.chat.completions.create(**request, extra_headers=headers)
            outcomes["answered" if answer.choices else "other"] += 1
    except openai.APIStatusError as error:
        outcomes["refused" if error.status_code in (402, 429) else "other"] += 1


def check_accounts(folder: Path) -> None:
    """I1 and I2 for every run and step, to the token; money to the nano-USD."""
    assert ledger_rows(folder, "SELECT id FROM reservation WHERE state = 'pending'") == []
    assert ledger_rows(folder, "SELECT id FROM outbox") == []
    accounts = ledger_rows(folder, "SELECT * FROM account")
    runs = [row for row in accounts if row["account"].startswith("run/")]
    assert len(runs) > 20
    for row in accounts:
        assert (row["reserved_tokens"], row["reserved_nano_usd"], row["reserved_requests"]) == (0, 0, 0), row
    for row in runs:
        assert row["settled_tokens"] <= RUN_TOKENS, row["account"]
        used = store_rows(
            folder,
            "SELECT sum(total_tokens) AS tokens, sum(cost_nano_usd) AS nano_usd, sum(requests) AS requests,"
            " sum(overrun_tokens) AS overrun FROM token_usage WHERE run = ?",
            row["account"].removeprefix("run/"),
        )[0]
        assert used["tokens"] == row["settled_tokens"], row["account"]
        assert used["nano_usd"] == row["settled_nano_usd"], row["account"]
        assert used["requests"] == row["settled_requests"], row["account"]
        assert used["overrun"] == 0, row["account"]
