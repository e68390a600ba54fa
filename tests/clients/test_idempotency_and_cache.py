"""Repeated calls under an `Idempotency-Key` or with the cache on are charged once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import URLError

import openai
import pytest

from tests.acceptance.serving import Served, finish_of, model, serving, text_of
from tests.clients.serving_clients import roomy, run_of, tiny
from tests.farebox_process import Reply
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("clients-idempotency")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    budgets = [
        {"scope": "run", "match": "roomy", "tokens": 20_000},
        {"scope": "run", "match": "tiny", "tokens": 5},
    ]
    with serving(
        tmp_path_factory.mktemp("idempotency"),
        budgets=budgets,
        models=lambda provider: [
            model(provider.openai_url),
            model(provider.openai_url, "remembering", cache_ttl_seconds=60),
        ],
    ) as running:
        yield running


# ── Idempotency-Key ──


def test_repeated_call_under_one_key_is_replayed_and_charged_once(served: Served) -> None:
    headers = {**roomy("i-same"), "idempotency-key": "same"}
    first = served.chat(headers, max_tokens=50)
    second = served.chat(headers, max_tokens=50)
    assert second.body == first.body
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    assert "idempotent-replayed" not in first.headers
    assert served.seen() == 1
    assert run_of(served, "i-same")["tokens"]["settled"] == first.json()["usage"]["total_tokens"]


def test_other_request_under_the_same_key_is_a_409(served: Served) -> None:
    headers = {**roomy("i-other"), "idempotency-key": "other"}
    served.chat(headers)
    conflict = served.chat(headers, content="something else")
    assert conflict.status == 409
    assert conflict.json()["error"]["code"] == "idempotency_conflict"
    assert conflict.headers["x-should-retry"] == "false"
    assert served.seen() == 1


def test_repeat_during_the_first_call_is_a_409_with_retry_after(served: Served) -> None:
    served.provider.script(delay_ms=800)
    headers = {**roomy("i-flight"), "idempotency-key": "flight"}
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: served.chat(headers), range(4)))
    assert sorted(reply.status for reply in replies) == [200, 409, 409, 409]
    assert {reply.headers.get("retry-after") for reply in replies if reply.status == 409} == {"1"}
    assert served.seen() == 1
    assert served.chat(headers).headers["idempotent-replayed"] == "true"


def test_openai_sdk_waits_for_the_first_call_and_gets_its_answer(served: Served) -> None:
    served.provider.script(text="time people", delay_ms=500, times=None)
    headers = {**roomy("i-client"), "idempotency-key": "client"}

    def ask(_: int) -> str | None:
        with openai.OpenAI(base_url=served.gateway.url + "/v1", api_key="local", max_retries=3) as client:
            answer = client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "hi"}], extra_headers=headers
            )
            return answer.choices[0].message.content

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, range(2))) == ["time people"] * 2
    assert served.seen() == 1


@pytest.mark.parametrize("status", [500, 400])
def test_failed_call_may_be_repeated_under_its_key(served: Served, status: int) -> None:
    served.provider.script(status=status)
    headers = {**roomy(f"i-failed-{status}"), "idempotency-key": f"failed-{status}"}
    assert served.chat(headers).status >= 400
    assert served.chat(headers).status == 200
    assert served.seen() == 2


def test_refused_call_may_be_repeated_under_its_key(served: Served) -> None:
    headers = {**tiny("i-refused"), "idempotency-key": "refused"}
    replies = [served.chat(headers) for _ in range(2)]
    assert [reply.status for reply in replies] == [402, 402]
    assert "idempotent-replayed" not in replies[1].headers


def test_stream_is_replayed_without_its_budget_comment(served: Served) -> None:
    served.provider.script(text="time people way")
    headers = {**roomy("i-stream"), "idempotency-key": "stream"}
    first, events = served.stream(headers)
    second, replayed = served.stream(headers)
    assert [event for event in events if not event.startswith(": budget")] == replayed
    assert text_of(replayed) == "time people way"
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["idempotent-replayed"] == "true"
    assert served.chat(headers).status == 409, "a buffered answer is another request"
    assert served.seen() == 1


def test_broken_stream_may_be_repeated_under_its_key(served: Served) -> None:
    served.provider.script(tokens=20, cut_after=5)
    headers = {**roomy("i-broken"), "idempotency-key": "broken"}
    assert any("upstream_broken" in event for event in served.stream(headers)[1])
    reply, events = served.stream(headers)
    assert "idempotent-replayed" not in reply.headers
    assert finish_of(events) == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_answer_is_replayed_to_a_client_that_disconnected(served: Served, stream: bool) -> None:
    served.provider.script(tokens=4, delay_ms=600, chunk_delay_ms=100)
    headers = {**roomy(f"i-left-{stream}"), "idempotency-key": f"left-{stream}"}
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    with pytest.raises((TimeoutError, URLError)):
        served.gateway.request("POST", "/v1/chat/completions", body, headers, timeout=0.3)
    replies: list[Reply] = []

    def is_there() -> bool:
        replies.append(served.gateway.request("POST", "/v1/chat/completions", body, headers))
        return replies[-1].status == 200

    until(is_there, 15)
    assert {reply.status for reply in replies[:-1]} <= {409}
    assert replies[-1].headers["idempotent-replayed"] == "true"
    assert served.seen() == 1


def test_stored_answer_survives_a_killed_gateway(served: Served) -> None:
    headers = {**roomy("i-restart"), "idempotency-key": "restart"}
    first = served.chat(headers)
    served.gateway.kill()
    served.gateway.start()
    second = served.chat(headers)
    assert (second.body, second.headers["idempotent-replayed"]) == (first.body, "true")
    assert served.seen() == 1


def test_idempotency_key_above_255_characters_is_refused(served: Served) -> None:
    reply = served.chat({"idempotency-key": "x" * 256})
    assert reply.status == 400
    assert reply.json()["error"]["param"] == "idempotency-key"
    assert served.seen() == 0


def test_idempotency_key_of_another_protocol_is_a_409(served: Served) -> None:
    headers = {"idempotency-key": "protocols"}
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
    assert served.gateway.request("POST", "/v1/completions", body, headers).status == 200
    assert served.gateway.request("POST", "/v1/chat/completions", body, headers).status == 409


# ── the cache ──


def ask(served: Served, run: str, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    return served.chat({**roomy(run), **(headers or {})}, **{"model": "remembering", **fields})


def test_cache_hit_costs_nothing_and_is_marked(served: Served) -> None:
    first = ask(served, "c-hit", content="a question")
    second = ask(served, "c-hit-2", content="a question")
    assert second.body == first.body
    assert second.headers["x-farebox-cache"] == "hit"
    assert second.headers["x-budget-actions"].endswith("cache=hit")
    assert "x-farebox-cache" not in first.headers
    assert second.headers["x-budget-run-remaining"] == "20000"
    assert run_of(served, "c-hit-2")["tokens"]["settled"] == 0
    assert served.seen() == 1


@pytest.mark.parametrize(
    ("second", "headers"),
    [
        ({"temperature": 0.5}, {}),
        ({"content": "x"}, {}),
        ({"stream": True}, {}),
        ({}, {"anthropic-version": "2023-06-01"}),
        ({}, {"openai-beta": "assistants=v2"}),
        ({}, {"x-farebox-cache": "off"}),
    ],
)
def test_different_request_or_cache_off_is_a_cache_miss(
    served: Served, second: dict[str, Any], headers: dict[str, str]
) -> None:
    asked: dict[str, Any] = {"content": f"asked anew {second} {headers}"}
    ask(served, "c-miss", **asked)
    assert "x-farebox-cache" not in ask(served, "c-miss", headers, **{**asked, **second}).headers
    assert served.seen() == 2


def test_calls_of_different_traces_share_an_answer(served: Served) -> None:
    for span in ("1", "2"):
        trace = {"traceparent": f"00-{span * 32}-{span * 16}-01", "tracestate": f"vendor={span}"}
        reply = ask(served, "c-traced", trace, content="traced")
    assert reply.headers["x-farebox-cache"] == "hit"


def test_stream_is_cached(served: Served) -> None:
    served.provider.script(text="time people way")
    request = {"model": "remembering", "content": "a stream"}
    _, events = served.stream(roomy("c-stream"), **request)
    reply, replayed = served.stream(roomy("c-stream-2"), **request)
    assert reply.headers["x-farebox-cache"] == "hit"
    assert text_of(replayed) == "time people way"
    assert [event for event in events if not event.startswith(": budget")] == replayed
    assert run_of(served, "c-stream-2")["tokens"]["settled"] == 0
    assert served.seen() == 1


def test_request_header_turns_the_cache_on(served: Served) -> None:
    with_cache = {"x-farebox-cache": "30"}
    for _ in range(2):
        reply = ask(served, "c-asked", with_cache, model="fake", content="cached on request")
    assert reply.headers["x-farebox-cache"] == "hit"
    assert "x-farebox-cache" not in ask(served, "c-asked", model="fake", content="cached on request").headers
    assert served.seen() == 2


def test_clamped_answer_is_not_cached(served: Served) -> None:
    served.provider.script(tokens=5000, times=None)
    poor = {"x-workflow-budget-tokens": "60"}
    first = ask(served, "c-poor", poor, content="a long story")
    assert "clamp" in first.headers["x-budget-actions"]
    second = ask(served, "c-rich", content="a long story")
    assert "x-farebox-cache" not in second.headers
    third = ask(served, "c-third", content="a long story")
    assert third.headers["x-farebox-cache"] == "hit"


def test_untagged_calls_are_cached(served: Served) -> None:
    replies = [served.chat(content="without a tag", model="remembering") for _ in range(2)]
    assert replies[1].headers["x-farebox-cache"] == "hit"
    assert replies[0].body == replies[1].body


def test_error_is_not_cached(served: Served) -> None:
    served.provider.script(status=400)
    assert ask(served, "c-error", content="fails once").status == 400
    assert ask(served, "c-error", content="fails once").status == 200


@pytest.mark.parametrize("value", ["", "0", "-1", "86401", "yes"])
def test_invalid_cache_header_is_refused(served: Served, value: str) -> None:
    reply = ask(served, "c-wrong", {"x-farebox-cache": value})
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["param"] == "x-farebox-cache"
