"""Many clients meet an exhausted budget: the SDKs, told not to retry, send one request each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
import pytest

from tests.acceptance.serving import Served, model, serving
from tests.farebox_process import tagged

CLIENTS = 250
pytestmark = pytest.mark.xdist_group("acceptance-storm")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    budgets = [
        {"scope": "run", "match": "spent", "tokens": 1},
    ]
    with serving(
        tmp_path_factory.mktemp("storm"),
        budgets=budgets,
        models=lambda provider: [
            model(provider.openai_url),
            model(provider.anthropic_url, "claude", upstream="anthropic/claude-sonnet-4-5"),
        ],
    ) as running:
        yield running


def refused(served: Served) -> float:
    return served.metric("farebox_requests_total", status="refused")


async def test_openai_sdk_does_not_retry_a_402(served: Served) -> None:
    before = refused(served)
    async with openai.AsyncOpenAI(base_url=served.gateway.url + "/v1", api_key="any", max_retries=3) as client:

        async def call(at: int) -> openai.APIStatusError:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(
                    model="fake",
                    messages=[{"role": "user", "content": "hi"}],
                    stream=at % 2 == 0,
                    extra_headers=tagged("spent", "r-storm"),
                )
            return caught.value

        errors = await asyncio.gather(*(call(at) for at in range(CLIENTS)))
    assert {error.status_code for error in errors} == {402}
    assert {error.code for error in errors} == {"request_exceeds_budget"}
    assert refused(served) - before == CLIENTS
    assert served.seen() == 0


async def test_anthropic_sdk_does_not_retry_a_402(served: Served) -> None:
    before = refused(served)
    async with anthropic.AsyncAnthropic(base_url=served.gateway.url, api_key="any", max_retries=3) as client:

        async def call() -> anthropic.APIStatusError:
            with pytest.raises(anthropic.APIStatusError) as caught:
                await client.messages.create(
                    model="claude",
                    max_tokens=50,
                    messages=[{"role": "user", "content": "hi"}],
                    extra_headers=tagged("spent", "r-storm-2"),
                )
            return caught.value

        errors = await asyncio.gather(*(call() for _ in range(CLIENTS)))
    assert {error.status_code for error in errors} == {402}
    assert refused(served) - before == CLIENTS
    assert served.seen() == 0


def test_openai_sdk_retries_a_busy_budget_until_it_is_granted(served: Served) -> None:
    headers = {**tagged("busy", "r-busy"), "x-workflow-budget-tokens": "60"}
    served.provider.script(tokens=5, delay_ms=600)
    with (
        openai.OpenAI(base_url=served.gateway.url + "/v1", api_key="any", max_retries=3) as client,
        ThreadPoolExecutor(2) as pool,
    ):

        def call() -> str | None:
            answer = client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "hi"}], max_tokens=17, extra_headers=headers
            )
            return answer.choices[0].message.content

        before = served.seen()
        results = list(pool.map(lambda _: call(), range(2)))
    assert all(results)
    assert served.seen() - before == 2
