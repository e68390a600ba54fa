"""What a client gets when the provider fails, and that a failed call costs nothing."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.acceptance.serving import PROMPT_TOKENS, Served, model, serving, text_of
from tests.fake_provider import FakeProvider
from tests.farebox_process import Reply, tagged

pytestmark = pytest.mark.xdist_group("acceptance-errors")


def _models(provider: FakeProvider) -> list[dict[str, Any]]:
    url = provider.openai_url
    claude = model(provider.anthropic_url, "claude", upstream="anthropic/claude-sonnet-4-5")
    dead = model("http://127.0.0.1:9/v1", "dead")
    ranker = model(url, "ranker", upstream="hosted_vllm/ranker")
    return [
        model(url),
        model(url, "shaky", upstream="openai/gpt-4.1-mini"),
        model(url, "backup"),
        claude,
        dead,
        ranker,
    ]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {
        "num_retries": 1,
        "timeout": 1.5,
        "stream_timeout": 1.5,
        "connect_timeout": 1,
        "allowed_fails": 1000,
        "fallbacks": [{"shaky": ["backup"]}],
    }
    budgets = [{"scope": "run", "match": "*", "tokens": 10_000}]
    folder = tmp_path_factory.mktemp("errors")
    with serving(folder, models=_models, budgets=budgets, router_settings=settings) as running:
        yield running


def check_nothing_spent(served: Served, headers: dict[str, str]) -> None:
    facts = served.balance(headers)
    assert (facts["settled"], facts["reserved"]) == (0, 0)


STATUSES = [400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503, 529]


@pytest.mark.parametrize("status", STATUSES)
def test_provider_error_keeps_its_status_and_message_and_costs_nothing(served: Served, status: int) -> None:
    headers = tagged("wf", f"r-{status}")
    served.provider.script(status=status, message="no, not like this", code="its_own_code", times=None)
    reply = served.chat(headers, max_tokens=100)
    assert reply.status == status
    error = reply.json()["error"]
    assert (error["message"], error["code"]) == ("no, not like this", "its_own_code")
    assert reply.headers["x-request-id"]
    assert reply.headers["x-workflow-run-id"] == f"r-{status}"
    served.provider.clear()
    check_nothing_spent(served, headers)


@pytest.mark.parametrize("body", ["none", "html", "text", "string", "detail"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_provider_error_without_a_json_object_becomes_an_error_object(
    served: Served, body: str, streamed: bool
) -> None:
    headers = tagged("wf", f"r-{body}-{streamed}")
    served.provider.script(status=503, body=body, message="gone fishing", times=None)
    reply = served.chat(headers, stream=streamed, max_tokens=100)
    assert reply.status == 503
    assert reply.headers["content-type"].startswith("application/json")
    error = reply.json()["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "<html" not in error["message"]
    if body in ("text", "string", "detail"):
        assert "gone fishing" in error["message"]
    served.provider.clear()
    check_nothing_spent(served, headers)


def test_anthropic_errors_have_the_anthropic_shape(served: Served) -> None:
    body = {"model": "claude", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
    served.provider.script(status=429, message="slow down", retry_after="1", times=None)
    reply = served.gateway.request("POST", "/v1/messages", body, tagged("wf", "r-anthropic"))
    assert reply.status == 429
    assert reply.headers["retry-after"] == "1"
    answer = reply.json()
    assert answer["type"] == "error"
    assert (answer["error"]["type"], answer["error"]["message"]) == ("rate_limit_error", "slow down")
    served.provider.clear()
    starved = {**tagged("wf", "r-anthropic-2"), "x-workflow-budget-tokens": "1"}
    reply = served.gateway.request("POST", "/v1/messages", body, starved)
    assert (reply.status, reply.json()["type"], reply.json()["error"]["type"]) == (402, "error", "billing_error")
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("directive", "statuses"),
    [
        ({"reset": "before_headers"}, {502}),
        ({"delay_ms": 4000}, {504}),
        ({"raw": "SSH-2.0-nonsense\r\n"}, {502}),
        ({"content_length": 100_000, "cut_after": 20}, {502}),
        ({"header_bytes": 1_000_000}, {502}),
        ({"gzip_bomb_bytes": 200_000_000}, {502, 504}),  # a busy machine may run out of time first
    ],
    ids=["reset", "timeout", "nonsense", "short", "header", "bomb"],
)
def test_malformed_or_late_provider_answer_is_a_502_or_504(
    served: Served, directive: dict[str, Any], statuses: set[int]
) -> None:
    headers = tagged("wf", f"r-{next(iter(directive))}")
    served.provider.script(times=None, **directive)
    started_s = time.monotonic()
    reply = served.chat(headers, max_tokens=100)
    assert reply.status in statuses, reply.body
    assert reply.json()["error"]["type"] == "upstream_error"
    assert reply.json()["error"]["metadata"]["request_id"] == reply.headers["x-request-id"]
    took_s = time.monotonic() - started_s
    assert took_s < 8
    stops = dict(part.split(";dur=") for part in reply.headers["server-timing"].split(", "))
    assert float(stops["upstream"]) > (took_s - 0.5) * 1000, "the provider's time is not reported as the gateway's"
    served.provider.clear()
    facts = served.balance(headers)
    assert facts["reserved"] == 0
    assert facts["settled"] <= PROMPT_TOKENS + 100


@pytest.mark.parametrize("path", ["chat/completions", "completions", "messages", "embeddings"])
def test_error_object_with_status_200_is_a_502_that_books_the_prompt(served: Served, path: str) -> None:
    """Aggregators of models report an upstream's error this way, because their own part went well."""
    body = {"error": {"message": "the model is down", "code": 503}}
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(json.dumps(body))}\r\n\r\n"
    served.provider.script(raw=head + json.dumps(body))
    asked = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}
    used = {"chat/completions": "messages", "messages": "messages", "completions": "prompt", "embeddings": "input"}[
        path
    ]
    limit = {} if path == "embeddings" else {"max_tokens": 20}
    run = f"r-error-as-200-{path.replace('/', '-')}"
    model = "claude" if path == "messages" else "fake"
    fields = {"model": model, used: asked[used], **limit}
    reply = served.gateway.request("POST", f"/v1/{path}", fields, tagged("wf", run))
    assert (reply.status, reply.json()["error"]["message"]) == (502, "the model is down")
    (call,) = served.gateway.get(f"/api/runs/{run}/calls").json()["calls"]
    assert (call["status"], call["output_tokens"], call["usage_source"]) == ("error", 0, "estimated")
    assert call["input_tokens"] > 0
    assert served.gateway.get(f"/api/runs/{run}").json()["tokens"]["reserved"] == 0


_USAGE = {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12}
_BODY_FIELDS: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20},
    "messages": {"model": "claude", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20},
    "embeddings": {"input": "hi"},
    "responses": {"input": "hi", "max_output_tokens": 20},
    "rerank": {"model": "ranker", "query": "hi", "documents": ["one", "two"]},
}


def _answered_with(served: Served, path: str, body: str) -> tuple[Reply, dict[str, Any]]:
    """The reply when the provider answers 200 with this body, and the call's record."""
    run = f"r-{uuid.uuid4()}"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    served.provider.script(raw=head + body)
    reply = served.gateway.request("POST", f"/v1/{path}", {"model": "fake"} | _BODY_FIELDS[path], tagged("wf", run))
    (call,) = served.gateway.get(f"/api/runs/{run}/calls").json()["calls"]
    return reply, call


@pytest.mark.parametrize(
    ("path", "body", "missing"),
    [
        ("chat/completions", "{}", "has no 'choices'"),
        ("chat/completions", '{"choices": null, "message": "sk-upstream-key has expired"}', "has no 'choices'"),
        ("chat/completions", "[]", "has no 'choices'"),
        ("chat/completions", '{"id": "x", "choi', "is not valid JSON"),
        ("messages", '{"type": "message"}', "has no 'content'"),
        ("embeddings", "{}", "has no 'data'"),
        ("responses", '{"id": "x"}', "has no 'output'"),
    ],
)
def test_success_without_an_answer_in_it_is_a_502_that_books_the_prompt_and_says_so(
    served: Served, path: str, body: str, missing: str
) -> None:
    reply, call = _answered_with(served, path, body)
    assert reply.status == 502
    message = reply.json()["error"]["message"]
    assert missing in message
    assert "so the prompt, as we count it, was booked." in message
    assert "upstream-key" not in message
    assert (call["status"], call["output_tokens"], call["usage_source"]) == ("error", 0, "estimated")
    assert call["input_tokens"] > 0
    run = served.gateway.get(f"/api/runs/{reply.headers['x-workflow-run-id']}").json()
    assert (run["tokens"]["settled"], run["tokens"]["reserved"]) == (call["input_tokens"], 0)


def test_success_with_usage_but_without_an_answer_is_a_502_that_books_the_usage(served: Served) -> None:
    reply, call = _answered_with(served, "chat/completions", json.dumps({"usage": _USAGE}))
    assert reply.status == 502
    assert "so the usage that it reports was booked." in reply.json()["error"]["message"]
    assert (call["status"], call["input_tokens"], call["output_tokens"]) == ("error", 8, 4)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}),
        ("messages", {"type": "message", "content": [], "stop_reason": "refusal"}),
        ("responses", {"status": "failed", "output": [], "error": {"code": "server_error", "message": "no"}}),
        ("rerank", {"object": "list", "data": [{"index": 0, "relevance_score": 0.5}]}),
        ("rerank", [{"index": 0, "score": 0.5}]),
    ],
    ids=["content-filter", "refusal", "failed-response", "voyage", "tei"],
)
def test_valid_answer_of_an_odd_shape_is_relayed_unchanged(served: Served, path: str, body: Any) -> None:
    reply, call = _answered_with(served, path, json.dumps(body))
    assert (reply.status, reply.json(), call["status"]) == (200, body, "ok")


@pytest.mark.parametrize("oddity", ["NaN", "1e999", '"\\ud83d"'], ids=["nan", "huge", "half-a-surrogate"])
def test_usage_is_booked_from_an_answer_that_strict_json_refuses(served: Served, oddity: str) -> None:
    choice = f'{{"message": {{"role": "assistant", "content": "one two"}}, "logprobs": {oddity}}}'
    body = f'{{"choices": [{choice}], "usage": {json.dumps(_USAGE)}}}'
    reply, call = _answered_with(served, "chat/completions", body)
    assert (reply.status, reply.body.decode()) == (200, body)
    assert (call["input_tokens"], call["output_tokens"], call["usage_source"]) == (8, 4, "provider")


def _stream_of(*texts: str) -> str:
    """A whole streamed answer, with each text as it stands in the JSON."""
    choice = '{{"index": 0, "delta": {{"content": "{}"}}, "finish_reason": {}}}'
    choices = [choice.format(text, "null") for text in texts] + [choice.format("", '"stop"')]
    events = [f'{{"choices": [{choice}]}}' for choice in choices] + [
        json.dumps({"choices": [], "usage": _USAGE}),
        "[DONE]",
    ]
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return head + "".join(f"data: {event}\n\n" for event in events)


def test_stream_that_cuts_an_emoji_in_two_is_relayed_and_booked(served: Served) -> None:
    """Servers that cut a text by UTF-16 units do this. Each half alone is no Unicode, but clients join them."""
    served.provider.script(raw=_stream_of("It is ", "\\ud83d", "\\ude00."))
    headers = tagged("wf", "r-half-emoji")
    _, events = served.stream(headers, max_tokens=20)
    assert text_of(events) == "It is \ud83d\ude00."
    assert events[-1] == "[DONE]"
    (call,) = served.gateway.get("/api/runs/r-half-emoji/calls").json()["calls"]
    assert (call["status"], call["total_tokens"]) == ("ok", 12)


def test_unreachable_provider_is_a_502_and_costs_nothing(served: Served) -> None:
    reply = served.chat(tagged("wf", "r-dead"), model="dead", max_tokens=100)
    assert (reply.status, reply.json()["error"]["code"]) == (502, "upstream_unreachable")
    check_nothing_spent(served, tagged("wf", "r-dead"))


def test_redirect_is_a_502_and_is_not_followed(served: Served) -> None:
    served.provider.script(redirect=f"{served.provider.url}/v1/stolen", times=None)
    reply = served.chat(tagged("wf", "r-redirect"), max_tokens=100)
    assert reply.status == 502
    assert {request.path for request in served.provider.requests} == {"/v1/chat/completions"}
    assert "location" not in reply.headers


def test_provider_headers_not_meant_for_clients_are_removed(served: Served) -> None:
    served.provider.script(cookie=True)
    reply = served.chat(tagged("wf", "r-cookie"), max_tokens=100)
    assert reply.status == 200
    assert not {"set-cookie", "x-accel-buffering", "transfer-encoding", "openai-organization"} & set(reply.headers)


# ── retries and fallbacks ──


def test_server_error_is_retried_within_the_same_hold(served: Served) -> None:
    headers = tagged("wf", "r-again")
    served.provider.script(status=500)
    served.provider.script(tokens=10)
    reply = served.chat(headers, max_tokens=100)
    assert reply.status == 200
    assert served.seen() == 2
    assert served.balance(headers)["settled"] == PROMPT_TOKENS + 10


def test_short_retry_after_is_waited_for_before_the_retry(served: Served) -> None:
    served.provider.script(status=429, retry_after="1")
    served.provider.script(tokens=10)
    began_s = time.monotonic()
    assert served.chat(tagged("wf", "r-short-pause"), max_tokens=100).status == 200
    assert time.monotonic() - began_s >= 1
    assert served.seen() == 2


def test_long_retry_after_is_returned_to_the_client(served: Served) -> None:
    headers = tagged("wf", "r-long-pause")
    served.provider.script(status=429, retry_after="30", times=None)
    began_s = time.monotonic()
    reply = served.chat(headers, max_tokens=100)
    assert time.monotonic() - began_s < 8
    assert (reply.status, reply.headers["retry-after"], served.seen()) == (429, "30", 1)
    check_nothing_spent(served, headers)


def test_fallback_is_used_without_waiting_for_a_long_retry_after(served: Served) -> None:
    served.provider.script(
        status=429, retry_after="30", times=None, when=lambda request: request.body["model"] == "gpt-4.1-mini"
    )
    served.provider.script(tokens=10, times=None)
    began_s = time.monotonic()
    reply = served.chat(tagged("wf", "r-pause-fallback"), model="shaky", max_tokens=100)
    assert time.monotonic() - began_s < 8
    assert reply.status == 200
    assert "fallback=backup" in reply.headers["x-budget-actions"]


def test_400_of_the_provider_is_not_retried(served: Served) -> None:
    served.provider.script(status=400, times=None)
    assert served.chat(tagged("wf", "r-once")).status == 400
    assert served.seen() == 1


def test_configured_fallback_answers_when_a_model_fails(served: Served) -> None:
    headers = tagged("wf", "r-fallback")
    served.provider.script(status=503, times=None, when=lambda request: request.body["model"] == "gpt-4.1-mini")
    served.provider.script(tokens=10, times=None)
    reply = served.chat(headers, model="shaky", max_tokens=100)
    assert reply.status == 200
    assert "fallback=backup" in reply.headers["x-budget-actions"]
    assert served.last.body["model"] == "gpt-4o-mini"
    assert served.balance(headers)["settled"] == PROMPT_TOKENS + 10


def test_openai_sdk_raises_its_own_error_type_for_each_status(served: Served) -> None:
    with OpenAI(base_url=served.gateway.url + "/v1", api_key="any", max_retries=0) as client:
        kinds: list[tuple[int, type[openai.APIStatusError]]] = [
            (400, openai.BadRequestError),
            (401, openai.AuthenticationError),
            (404, openai.NotFoundError),
            (429, openai.RateLimitError),
            (500, openai.InternalServerError),
        ]
        for status, kind in kinds:
            served.provider.clear()
            served.provider.script(status=status, times=None)
            with pytest.raises(kind) as caught:
                client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}])
            assert caught.value.request_id


def test_untagged_failure_is_counted_once(served: Served) -> None:
    refused = served.metric("farebox_requests_total", status="refused")
    errors = served.metric("farebox_requests_total", status="error")
    assert served.chat(model="dead").status == 502
    assert served.metric("farebox_requests_total", status="error") == errors + 1
    assert served.metric("farebox_requests_total", status="refused") == refused


def test_stream_reset_before_its_first_event_ends_with_an_error_and_frees_the_hold(served: Served) -> None:
    served.provider.script(reset="after_headers", tokens=10, times=None)
    reply, events = served.stream(tagged("wf", "r-after-headers"), max_tokens=100)
    assert reply.status in (200, 502)
    if reply.status == 200:
        assert [event for event in events if '"error"' in event], events
    else:
        assert json.loads(reply.body)["error"]["type"] == "upstream_error"
    served.provider.clear()
    assert served.balance(tagged("wf", "r-after-headers"))["reserved"] == 0
