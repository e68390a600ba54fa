"""What is booked where a provider has not reported its usage: its prompt as far as it has, and our count of the output within the hold."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.serving import Served, model, serving
from tests.farebox_process import tagged
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("acceptance-estimated-usage")

LIMIT = 400


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("estimated"),
        models=lambda provider: [
            model(provider.url, "claude", "anthropic/claude-sonnet-4-5"),
            model(provider.openai_url, "own", "hosted_vllm/our-own-model"),
        ],
        budgets=[{"scope": "run", "match": "*", "tokens": LIMIT}],
    ) as running:
        yield running


def body_of(name: str, **fields: Any) -> dict[str, Any]:
    return {"model": name, "messages": [{"role": "user", "content": "hi"}], **fields}


def settled(served: Served, run: str) -> int:
    """What the run has settled once nothing of it is reserved."""
    facts: dict[str, Any] = {}

    def is_free() -> bool:
        facts.update(served.gateway.request("GET", f"/api/runs/{run}").json()["tokens"])
        return bool(facts["reserved"] == 0)

    until(is_free, 3, f"the hold of {run} is resolved")
    return int(facts["settled"])


def call_of(served: Served, run: str) -> dict[str, Any]:
    calls: list[dict[str, Any]] = []

    def is_recorded() -> bool:
        calls[:] = served.gateway.request("GET", f"/api/runs/{run}/calls").json()["calls"]
        return bool(calls)

    until(is_recorded, 3, f"the call of {run} is recorded")
    return calls[0]


def test_answer_that_ends_at_its_cap_is_not_cut_by_an_estimate_of_its_tokens(served: Served) -> None:
    served.provider.script(tokens=1000)
    reply = served.gateway.request(
        "POST", "/v1/messages", body_of("claude", max_tokens=900, stream=True), tagged("claude", "r-at-cap")
    )
    assert '"actions":["clamp"]' in reply.body.decode()
    call = call_of(served, "r-at-cap")
    assert (call["usage_source"], call["overrun_tokens"]) == ("provider", 0)
    assert call["output_tokens"] == served.last.body["max_tokens"]


def test_stream_cut_on_an_estimate_is_booked_within_its_hold(served: Served) -> None:
    served.provider.script(tokens=3000, ignore_max=True, words_per_chunk=4, chunk_delay_ms=1)
    reply = served.gateway.request(
        "POST", "/v1/messages", body_of("claude", max_tokens=900, stream=True), tagged("claude", "r-cut")
    )
    assert '"actions":["clamp","cut"]' in reply.body.decode()
    assert 300 < settled(served, "r-cut") <= LIMIT


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_answer_without_usage_within_its_cap_is_booked_within_its_hold(served: Served, streamed: bool) -> None:
    run = f"r-missing-{streamed}"
    served.provider.script(tokens=100, usage="missing")
    body = body_of("own", max_tokens=100, stream=streamed)
    reply = served.gateway.request("POST", "/v1/chat/completions", body, tagged("own", run))
    assert reply.status == 200
    call = call_of(served, run)
    assert (call["output_tokens"], call["overrun_tokens"], call["usage_source"]) == (100, 0, "estimated")


def test_answer_without_usage_far_above_its_cap_is_booked_as_counted(served: Served) -> None:
    served.provider.script(tokens=200, usage="missing", ignore_max=True)
    body = body_of("own", max_tokens=100)
    reply = served.gateway.request("POST", "/v1/chat/completions", body, tagged("own", "r-ignores"))
    call = call_of(served, "r-ignores")
    assert call["output_tokens"] >= 200
    assert reply.headers["x-budget-actions"] == f"overrun={call['overrun_tokens']}"
    (alert,) = [line for line in served.gateway.log.splitlines() if "overrun" in line and "warning" in line]
    assert reply.headers["x-request-id"] in alert


def test_disconnect_from_a_message_books_the_prompt_as_its_start_reported_it(served: Served) -> None:
    served.provider.script(tokens=200, chunk_delay_ms=20)
    connection = http.client.HTTPConnection(served.gateway.url.removeprefix("http://"), timeout=10)
    body = json.dumps(body_of("claude", max_tokens=300, stream=True))
    connection.request("POST", "/v1/messages", body, tagged("claude", "r-gone"))
    response = connection.getresponse()
    start = response.read(900).decode()
    response.close()
    connection.close()
    until(lambda: served.last.disconnected_s is not None, 2, "the upstream call is closed")
    call = call_of(served, "r-gone")
    assert call["status"] == "cancelled"
    assert f'"input_tokens":{call["input_tokens"]},' in start
    assert 0 < call["output_tokens"] < 200
