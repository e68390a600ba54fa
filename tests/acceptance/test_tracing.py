"""Spans of real calls, sent by the real exporter over a real socket to a small collector."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gateway.config.faults import ConfigError
from gateway.config.schema import TracingConfig
from gateway.tracing import switch
from gateway.tracing.attributes import VERSIONS, Value, names_of, rename_attributes
from tests.acceptance.collector import Collector, running_collector
from tests.acceptance.serving import Served, model, serving
from tests.farebox_process import tagged

pytestmark = pytest.mark.xdist_group("acceptance-tracing")
CLIENT, SERVER = Span.SpanKind.SPAN_KIND_CLIENT, Span.SpanKind.SPAN_KIND_SERVER
ERROR = 2
CLASSIFIER_ANSWER = '{"intent": "enrich", "confidence": 0.9, "reasoning": "it adds facts"}'
CONDENSED = "The ferry to Skagen leaves at 9:40 from pier 7; tickets cost 240 kroner, and dogs travel free."
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("tracing"),
        models=lambda provider: [
            model(provider.openai_url),
            model(provider.openai_url, "shaky", upstream="openai/gpt-4.1-mini"),
            model("http://127.0.0.1:9/v1", "dead"),
        ],
        budgets=[{"scope": "run", "match": "*", "tokens": 10_000}],
        router_settings={"num_retries": 0, "connect_timeout": 1, "fallbacks": [{"shaky": ["fake"]}]},
        tracing={"endpoint": collector.url, "headers": {"x-tenant": "acme"}, "service_name": "gate"},
        # Spans are exported at this interval; the default of five seconds would slow the tests.
        environment={"OTEL_BSP_SCHEDULE_DELAY": "100"},
    ) as running:
        yield running


def test_call_has_a_workflow_span_and_a_client_span_of_its_attempt(served: Served, collector: Collector) -> None:
    tags = tagged("told", "r-told", "draft", agent="ada")
    reply = served.chat({**tags, "traceparent": f"00-{TRACE}-{PARENT}-01"}, "the canary sings")
    assert reply.status == 200
    whole, (attempt,) = collector.call_of("told")
    assert (whole.trace, whole.parent, whole.kind, attempt.kind) == (TRACE, PARENT, SERVER, CLIENT)
    assert whole.attributes["gen_ai.operation.name"] == "invoke_workflow"
    assert whole.attributes["gen_ai.workflow.name"] == "told"
    assert whole.attributes["gen_ai.conversation.id"] == "r-told"
    assert (whole.attributes["farebox.step"], whole.attributes["farebox.agent"]) == ("draft", "ada")
    assert whole.attributes["farebox.request.id"] == reply.headers["x-request-id"]
    assert whole.attributes["http.response.status_code"] == 200
    usage = reply.json()["usage"]
    assert whole.attributes["farebox.tokens.settled"] == usage["total_tokens"]
    assert whole.attributes["farebox.tokens.reserved"] >= usage["total_tokens"]
    assert whole.attributes["farebox.cost_usd"] > 0
    provider_model = attempt.attributes["gen_ai.request.model"]
    assert attempt.name == f"chat {provider_model}"
    assert attempt.attributes["gen_ai.operation.name"] == "chat"
    assert attempt.attributes["gen_ai.provider.name"] == "openai"
    assert attempt.attributes["gen_ai.response.id"] == reply.json()["id"]
    assert attempt.attributes["gen_ai.response.model"] == reply.json()["model"]
    assert attempt.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert attempt.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert attempt.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert attempt.attributes["gen_ai.request.stream"] is False
    assert attempt.attributes["server.address"] == "127.0.0.1"
    assert (whole.status, attempt.status) == (0, 0)
    assert "error.type" not in {*whole.attributes, *attempt.attributes}
    (received,) = [request for request in served.provider.requests if "the canary sings" in request.raw.decode()]
    assert received.headers["traceparent"] == f"00-{TRACE}-{attempt.id}-01"
    assert collector.resources[0]["service.name"] == "gate"
    assert collector.headers[0]["x-tenant"] == "acme"


def test_spans_contain_no_prompts_answers_or_keys(served: Served, collector: Collector) -> None:
    reply = served.chat(tagged("quiet", "r-quiet"), "the canary whispers")
    collector.call_of("quiet")
    answer = reply.json()["choices"][0]["message"]["content"]
    assert answer
    for raw in collector.raw:
        assert b"canary" not in raw
        assert answer.encode() not in raw
        assert b"upstream-key" not in raw


def test_span_of_a_stream_has_time_to_first_chunk_and_finish_reason(served: Served, collector: Collector) -> None:
    reply, events = served.stream(tagged("flowing", "r-flow"))
    assert events[-1] == "[DONE]"
    whole, (attempt,) = collector.call_of("flowing")
    assert attempt.attributes["gen_ai.request.stream"] is True
    assert attempt.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert attempt.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert attempt.attributes["gen_ai.usage.output_tokens"] > 0
    assert whole.attributes["http.response.status_code"] == reply.status == 200


def test_span_of_a_refusal_has_its_error_code_and_no_client_span(served: Served, collector: Collector) -> None:
    reply = served.chat(tagged("poor", "r-poor", budget_tokens="20", options="no-clamp"), "hi", max_tokens=500)
    assert reply.status == 402
    whole, attempts = collector.call_of("poor")
    assert attempts == []
    assert whole.attributes["error.type"] == reply.json()["error"]["code"]
    assert whole.attributes["http.response.status_code"] == 402
    assert whole.status == ERROR


def test_request_for_an_unknown_model_has_an_error_span(served: Served, collector: Collector) -> None:
    assert served.gateway.chat("hi", {}, model="nobody").status == 404
    span = collector.wait(lambda received: received.attributes.get("error.type") == "model_not_found")
    assert span.name == "POST /v1/chat/completions"


def test_failed_attempt_has_its_own_span_beside_the_one_that_answered(served: Served, collector: Collector) -> None:
    served.provider.script(status=500)
    reply = served.gateway.chat("hi", tagged("stumbling", "r-st"), model="shaky")
    assert reply.status == 200
    whole, attempts = collector.call_of("stumbling")
    failed, answered = sorted(attempts, key=lambda span: "error.type" not in span.attributes)
    assert (failed.attributes["error.type"], failed.status) == ("500", ERROR)
    assert "error.type" not in answered.attributes
    assert "error.type" not in whole.attributes
    assert any(action.startswith("fallback=") for action in whole.attributes["farebox.actions"])


def test_unreachable_provider_is_an_error_of_attempt_and_call(served: Served, collector: Collector) -> None:
    assert served.gateway.chat("hi", tagged("lonely", "r-l"), model="dead").status == 502
    whole, (attempt,) = collector.call_of("lonely")
    assert attempt.attributes["error.type"] == whole.attributes["error.type"] == "upstream_unreachable"
    assert "ended span" not in served.gateway.log


@pytest.fixture(scope="module")
def orchestrated(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Served]:
    """A gateway that asks a model about unclear steps, and to condense long texts."""
    with serving(
        tmp_path_factory.mktemp("asking"),
        models=lambda provider: [
            model(provider.openai_url, upstream="openai/gpt-4o", input_cost_per_token=1e-5),
            model(provider.openai_url, "teller", f"openai/teller?text={quote(CLASSIFIER_ANSWER)}"),
            model(provider.openai_url, "condenser", f"openai/condenser?text={quote(CONDENSED)}"),
        ],
        tracing={"endpoint": collector.url},
        environment={"OTEL_BSP_SCHEDULE_DELAY": "100"},
        classifier={"model": "teller", "wait": True},
        compression={"semantic_model": "condenser"},
        settings={
            "orchestration_enabled": True,
            "orchestration_intent_classification_confidence_threshold": 0.99,
            "orchestration_compression_enabled": True,
            "orchestration_compression_strategy_summarize": "semantic",
            "orchestration_compression_min_quality": 0.1,
            "orchestration_max_tokens_per_step": 100_000,
            "orchestration_max_tokens_per_workflow": 100_000,
            "orchestration_token_budget_summarize": 50_000,
        },
    ) as running:
        yield running


def test_classification_by_a_model_is_a_span_of_its_call(orchestrated: Served, collector: Collector) -> None:
    reply = orchestrated.chat(tagged("vague", "r-vague", "work-on-it"), "Please proceed.", max_tokens=16)
    assert "source=llm" in reply.headers["x-workflow-intent"]
    whole, spans = collector.call_of("vague")
    own, attempt = sorted(spans, key=lambda span: "farebox.purpose" not in span.attributes)
    assert (own.attributes["farebox.purpose"], own.name.partition("?")[0], own.kind) == (
        "classify",
        "chat teller",
        CLIENT,
    )
    assert own.attributes["gen_ai.usage.input_tokens"] > 0
    assert own.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert "farebox.purpose" not in attempt.attributes
    assert attempt.attributes["gen_ai.usage.input_tokens"] == reply.json()["usage"]["prompt_tokens"]
    (question,) = [request for request in orchestrated.provider.requests if request.model == "teller"]
    assert question.headers["traceparent"].startswith(f"00-{whole.trace}-{own.id}-")


def test_semantic_compression_is_a_span_of_its_call(orchestrated: Served, collector: Collector) -> None:
    messages = [
        {"role": "user", "content": "Read the diary."},
        {
            "role": "assistant",
            "content": f"{' '.join(f'On day {day} the keeper saw nothing.' for day in range(90))} {CONDENSED}",
        },
        {"role": "user", "content": "When does the ferry leave?"},
    ]
    body = {"model": "fake", "max_tokens": 32, "messages": messages}
    headers = tagged("long", "r-long", "read", intent="summarize")
    reply = orchestrated.gateway.request("POST", "/v1/chat/completions", body, headers)
    assert reply.headers["x-budget-actions"].startswith("compress="), reply.headers
    _, spans = collector.call_of("long")
    own, attempt = sorted(spans, key=lambda span: "farebox.purpose" not in span.attributes)
    assert (own.attributes["farebox.purpose"], own.status) == ("condense", 0)
    assert own.attributes["gen_ai.usage.output_tokens"] > 0
    assert attempt.attributes["gen_ai.usage.input_tokens"] == reply.json()["usage"]["prompt_tokens"]


def test_classification_for_a_declared_run_has_its_own_trace(orchestrated: Served, collector: Collector) -> None:
    run = {"workflow": "declared", "steps": [{"id": "work", "prompt": "Do what has to be done next."}]}
    assert orchestrated.gateway.request("POST", "/api/runs", run).status == 200
    own = collector.wait(
        lambda received: received.attributes.get("farebox.purpose") == "classify" and not received.parent
    )
    assert own.name.startswith("chat teller")


def test_unsampled_trace_is_propagated_and_not_exported(served: Served, collector: Collector) -> None:
    headers = {**tagged("unseen", "r-un"), "traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert served.chat(headers, "not sampled").status == 200
    (received,) = [request for request in served.provider.requests if "not sampled" in request.raw.decode()]
    assert received.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert received.headers["traceparent"].endswith("-00")
    served.chat(tagged("after", "r-after"))
    collector.call_of("after")
    assert not [span for span in collector.spans if span.name == "invoke_workflow unseen"]


def test_attribute_names_follow_the_version_of_the_conventions() -> None:
    values: dict[str, Value | None] = {
        "provider": "openai",
        "workflow_name": "triage",
        "cache_write_tokens": 7,
        "input_tokens": 9,
        "error": None,
    }
    assert [rename_attributes(names_of(version), values) for version in VERSIONS] == [
        {"gen_ai.system": "openai", "gen_ai.usage.input_tokens": 9},
        {
            "gen_ai.provider.name": "openai",
            "gen_ai.workflow.name": "triage",
            "gen_ai.usage.cache_creation.input_tokens": 7,
            "gen_ai.usage.input_tokens": 9,
        },
        {
            "gen_ai.provider.name": "openai",
            "gen_ai.agent.name": "triage",
            "gen_ai.usage.cache_write.input_tokens": 7,
            "gen_ai.usage.input_tokens": 9,
        },
    ]


def test_opentelemetry_is_not_loaded_without_an_endpoint() -> None:
    program = "import sys, gateway.app; assert 'opentelemetry.sdk' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    off = switch.make_tracing(TracingConfig(), "here")
    assert type(off) is switch.NoTracing
    upstream: Any = object()
    assert off.upstream(upstream) is upstream


def test_missing_opentelemetry_package_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gateway.tracing.tracing", None)
    with pytest.raises(ConfigError, match=r"make install-otel; with the wheel: pip install 'farebox-….whl\[otel\]'"):
        switch.make_tracing(TracingConfig(endpoint="http://127.0.0.1:4318"), "here")
