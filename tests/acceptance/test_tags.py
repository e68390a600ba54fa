"""Where a call's workflow, run and step come from, which source wins, and what an untagged call looks like on both sides."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.serving import Served, serving, words
from tests.farebox_process import Reply, tagged

pytestmark = pytest.mark.xdist_group("acceptance-tags")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    budgets = [
        {"scope": "agent", "match": "poor", "tokens": 1, "window": "day"},
        {"scope": "run", "match": "limited", "tokens": 5000},
    ]
    folder = tmp_path_factory.mktemp("tags")
    with serving(folder, budgets=budgets, reservations={"implicit_run_silence_seconds": 1}) as running:
        yield running


def identity(
    served: Served, headers: dict[str, str], path: str = "", metadata: Any = None
) -> tuple[str | None, str | None, str | None]:
    """Workflow, run and step as the gateway sees them: a refusal names all three."""
    body: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": words(50)}]}
    if metadata is not None:
        body["metadata"] = metadata
    starved = {**headers, "x-workflow-budget-tokens": "1"}
    reply = served.gateway.request("POST", f"{path}/v1/chat/completions", body, starved)
    assert reply.status == 402, reply.body
    facts = reply.json()["error"]["metadata"]
    return facts["workflow"], facts["run"], facts["step"]


META = {"workflow_id": "m-wf", "run_id": "m-run", "step": "m-step"}
SENT = {**META, "run_id": "m-sent"}  # a run that no other test has tightened
BAGGAGE = "other=1, workflow.id=b-wf;p=1 , workflow.run.id=b-run,workflow.step=b%2Fstep"

SOURCES: list[tuple[dict[str, str], str, Any, tuple[str, str, str]]] = [
    (tagged("h-wf", "h-run", "h-step"), "", None, ("h-wf", "h-run", "h-step")),
    ({"x-workflow-id": "h-wf", "x-workflow-run-id": "h-run"}, "", None, ("h-wf", "h-run", "default")),
    ({}, "/w/p-wf/r/p-run/s/p-step", None, ("p-wf", "p-run", "p-step")),
    ({}, "/w/p-wf/r/p-run", None, ("p-wf", "p-run", "default")),
    ({"x-workflow-run-id": "h-run"}, "/w/p-wf/s/p-step", None, ("p-wf", "h-run", "p-step")),
    ({}, "", META, ("m-wf", "m-run", "m-step")),
    ({"baggage": BAGGAGE}, "", None, ("b-wf", "b-run", "b/step")),
    # Earlier sources take precedence.
    (tagged("h-wf", "h-run", "h-step"), "/w/p-wf/r/p-run/s/p-step", META, ("h-wf", "h-run", "h-step")),
    ({"baggage": BAGGAGE}, "/w/p-wf/r/p-run/s/p-step", META, ("p-wf", "p-run", "p-step")),
    ({"baggage": BAGGAGE}, "", META, ("m-wf", "m-run", "m-step")),
    ({"x-workflow-id": "h-wf", "baggage": BAGGAGE}, "", None, ("h-wf", "b-run", "b/step")),
    # Session headers name the run once a workflow is known, and only if nothing else does.
    ({"x-workflow-id": "h-wf", "x-session-id": "sess-1"}, "", None, ("h-wf", "sess-1", "default")),
    ({"x-workflow-id": "h-wf", "session_id": "sess-2"}, "", None, ("h-wf", "sess-2", "default")),
    ({"x-workflow-id": "h-wf", "x-claude-code-session-id": "c-1"}, "", None, ("h-wf", "c-1", "default")),
    ({"x-workflow-id": "h-wf", "helicone-session-id": "hel"}, "", None, ("h-wf", "hel", "default")),
    ({"x-workflow-id": "h-wf", "x-portkey-trace-id": "pk"}, "", None, ("h-wf", "pk", "default")),
    (
        {"x-workflow-id": "h-wf", "x-litellm-trace-id": "t-1", "x-litellm-session-id": "t-2"},
        "",
        None,
        ("h-wf", "t-1", "default"),
    ),
    ({**tagged("h-wf", "h-run", "h-step"), "x-session-id": "sess"}, "", None, ("h-wf", "h-run", "h-step")),
    ({"x-session-id": "sess", "baggage": BAGGAGE}, "", None, ("b-wf", "b-run", "b/step")),
]


@pytest.mark.parametrize(("headers", "path", "metadata", "expected"), SOURCES)
def test_tags_are_read_from_every_source_in_order_of_precedence(
    served: Served, headers: dict[str, str], path: str, metadata: Any, expected: tuple[str, str, str]
) -> None:
    assert identity(served, headers, path, metadata) == expected


def test_answer_headers_report_run_step_and_remaining_budget(served: Served) -> None:
    served.provider.script(tokens=5)
    reply = served.chat(tagged("limited", "r-headers", "draft"), max_tokens=20)
    assert reply.status == 200
    assert reply.headers["x-workflow-run-id"] == "r-headers"
    assert reply.headers["x-workflow-step"] == "draft"
    assert reply.headers["x-workflow-prompt-tokens"] == "8"
    assert reply.headers["x-budget-run-limit"] == "5000"
    assert reply.headers["x-budget-run-remaining"] == str(5000 - 8 - 5), "after settlement on a buffered answer"
    assert "x-budget-actions" not in reply.headers
    stops = [part.split(";")[0].strip() for part in reply.headers["server-timing"].split(",")]
    assert stops[0] == "tag"
    assert {"reserve", "upstream", "settle"} <= set(stops)
    assert reply.headers["x-request-id"]


def tag_headers_of(reply: Reply) -> dict[str, str]:
    """What an answer reports about its tags and budgets."""
    return {name: value for name, value in reply.headers.items() if name.startswith(("x-workflow-", "x-budget-"))}


COUNTED = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("path", "headers", "metadata", "expected"),
    [
        ("", tagged("limited", "r-count", "s"), None, {"run-id": "r-count", "step": "s", "prompt-tokens": "5"}),
        ("/w/limited/r/r-count", {}, None, {"run-id": "r-count", "step": "default", "prompt-tokens": "5"}),
        ("", {}, META, {"run-id": "m-run", "step": "m-step", "prompt-tokens": "5"}),
        ("", {"x-workflow-id": "counts-only"}, None, {"step": "default", "prompt-tokens": "5"}),
        ("", {}, None, {}),
    ],
)
def test_count_tokens_reports_its_tags_and_starts_no_run(
    served: Served, path: str, headers: dict[str, str], metadata: Any, expected: dict[str, str]
) -> None:
    body = COUNTED if metadata is None else {**COUNTED, "metadata": metadata}
    reply = served.gateway.request("POST", f"{path}/v1/messages/count_tokens", body, headers)
    assert (reply.status, reply.json()) == (200, {"input_tokens": 5})
    assert tag_headers_of(reply) == {f"x-workflow-{name}": value for name, value in expected.items()}
    assert served.gateway.get("/api/runs?workflow=counts-only").json()["runs"] == []
    assert served.gateway.get("/api/runs/r-count").status == 404


def test_count_tokens_refuses_invalid_tags(served: Served) -> None:
    reply = served.gateway.request("POST", "/v1/messages/count_tokens", COUNTED, {"x-workflow-id": "a b"})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "x-workflow-id")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/none", {}, 404),
        ("/v1/chat/completions", {**COUNTED, "model": "none"}, 404),
        ("/v1/messages", {**COUNTED, "model": "none", "max_tokens": 5}, 404),
        ("/v1/messages/count_tokens", {**COUNTED, "model": "none"}, 404),
        ("/v1/chat/completions", b"{", 400),
    ],
)
def test_refusal_of_a_tagged_request_reports_run_and_step(served: Served, path: str, body: Any, status: int) -> None:
    for prefix, headers in (("", tagged("wf", "r-lost", "s")), ("/w/wf/r/r-lost/s/s", {})):
        reply = served.gateway.request("POST", prefix + path, body, headers)
        assert reply.status == status, reply.body
        assert tag_headers_of(reply) == {"x-workflow-run-id": "r-lost", "x-workflow-step": "s"}


def test_agent_is_read_from_header_metadata_or_baggage(served: Served) -> None:
    for headers, metadata in (
        ({**tagged("wf", "r-agent"), "x-workflow-agent": "poor"}, None),
        ({}, {"workflow_id": "wf", "run_id": "r-agent", "agent": "poor"}),
        ({"baggage": "workflow.id=wf,workflow.run.id=r-agent,workflow.agent=poor"}, None),
    ):
        reply = served.chat(headers, metadata=metadata) if metadata else served.chat(headers)
        assert reply.status == 402, reply.body
        assert reply.json()["error"]["metadata"]["scope"] == "agent"
    assert served.chat({**tagged("wf", "r-agent"), "x-workflow-agent": "rich"}, max_tokens=16).status == 200


@pytest.mark.parametrize(
    ("headers", "fields", "metadata", "sent"),
    [
        ({}, {}, SENT, None),
        ({}, {"store": True}, {**SENT, "team": "x"}, {"team": "x"}),
        ({"x-workflow-id": "s-wf"}, {"store": True}, {"step": "m-step", "team": "x"}, {"team": "x"}),
        ({}, {}, {"step": "mine"}, {"step": "mine"}),  # no workflow, no tags: the client's own words
    ],
)
@pytest.mark.parametrize("endpoint", ["chat/completions", "responses"])
def test_tags_in_metadata_are_not_forwarded(
    served: Served, endpoint: str, headers: dict[str, str], fields: dict[str, Any], metadata: Any, sent: Any
) -> None:
    content = {"input": "hi"} if endpoint == "responses" else {"messages": [{"role": "user", "content": "hi"}]}
    body = {"model": "fake", **content, **fields, "metadata": metadata}
    reply = served.gateway.request("POST", f"/v1/{endpoint}", body, headers)
    assert reply.status == 200, reply.body
    assert served.last.body.get("metadata") == sent
    assert not [name for name in served.last.headers if name.lower().startswith(("x-workflow-", "baggage"))]


def test_calls_without_a_run_share_an_implicit_run_until_the_workflow_is_silent(served: Served) -> None:
    first = served.chat({"x-workflow-id": "implicit"}, max_tokens=16).headers["x-workflow-run-id"]
    second = served.chat({"x-workflow-id": "implicit"}, max_tokens=16).headers["x-workflow-run-id"]
    other = served.chat({"x-workflow-id": "implicit-2"}, max_tokens=16).headers["x-workflow-run-id"]
    assert first == second != other
    time.sleep(1.3)
    assert served.chat({"x-workflow-id": "implicit"}, max_tokens=16).headers["x-workflow-run-id"] != first


BAD = [
    ("x-workflow-id", "a b"),
    ("x-workflow-id", ""),
    ("x-workflow-id", "x" * 129),
    ("x-workflow-id", "naïve"),
    ("x-workflow-id", "{{7*7}}"),
    ("x-workflow-run-id", "r;1"),
    ("x-workflow-run-id", "a'--"),
    ("x-workflow-step", "<b>"),
    ("x-workflow-agent", "a,b"),
    ("x-workflow-user", "me@x y"),
    ("x-workflow-parent-run-id", "?"),
    ("x-workflow-intent", "dance"),
    ("x-workflow-priority", "urgent"),
    ("x-workflow-options", "no-compress,no-pay"),
    ("x-workflow-budget-tokens", "-1"),
    ("x-workflow-budget-tokens", "1.5"),
    ("x-workflow-budget-tokens", "1e3"),
    ("x-workflow-budget-tokens", "9007199254740993"),
    ("x-workflow-budget-tokens", "²"),
    ("x-workflow-budget-usd", "-0.1"),
    ("x-workflow-budget-usd", "NaN"),
    ("x-workflow-budget-usd", "Infinity"),
    ("x-workflow-budget-usd", "$1"),
    ("x-workflow-budget-usd", "10000000"),
    ("x-workflow-budget-usd", "0.0000000001"),
    ("x-workflow-budget-usd", "1e999999999999"),
    ("x-workflow-budget-usd", "1e99999999999999999999"),
]


@pytest.mark.parametrize(("header", "value"), BAD)
def test_invalid_tag_header_is_refused_with_400_naming_the_header(served: Served, header: str, value: str) -> None:
    headers = {**tagged(), header: value.encode().decode("latin-1")}
    reply = served.chat(headers)
    assert reply.status == 400, reply.body
    error = reply.json()["error"]
    assert header in error["message"]
    assert (error["param"], error["code"], error["type"]) == (header, "invalid_header", "invalid_request_error")
    assert reply.headers["x-request-id"]
    assert served.seen() == 0


@pytest.mark.parametrize(
    "header", ["x-workflow-run-id", "x-workflow-parent-run-id", "x-workflow-step", "x-workflow-budget-tokens"]
)
def test_tags_without_a_workflow_are_refused(served: Served, header: str) -> None:
    reply = served.chat({header: "5"})
    assert (reply.status, reply.json()["error"]["param"]) == (400, header)
    assert served.seen() == 0


@pytest.mark.parametrize("raw", [b"a\x00b", b"a\x01b", b"r\x0b", b"a\r\n b", b"\xff\xfe", "x\u202eb".encode()])
def test_control_characters_in_a_tag_are_refused_and_not_repeated(served: Served, raw: bytes) -> None:
    host, _, port = served.gateway.url.removeprefix("http://").partition(":")
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = b"\r\n".join(
        [
            b"POST /v1/chat/completions HTTP/1.1",
            b"host: x",
            b"connection: close",
            b"x-workflow-id: " + raw,
            b"content-length: " + str(len(body)).encode(),
            b"",
            body,
        ]
    )
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert served.seen() == 0
    assert raw not in answer.partition(b"\r\n\r\n")[0]


def test_invalid_baggage_or_metadata_is_refused_naming_the_field(served: Served) -> None:
    reply = served.chat({"baggage": "workflow.id=a b"})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "baggage (workflow.id)")
    reply = served.chat(metadata={"workflow_id": "wf", "run_id": 7})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "metadata.run_id")
    assert served.seen() == 0


UNTAGGED_BODY = {
    "model": "fake",
    "messages": [{"role": "user", "content": "hi", "name": "ann"}],
    "temperature": 0.3,
    "max_tokens": 30,
    "x_unknown": {"deep": [1, None, "é"]},
    "logit_bias": {"50256": -100},
    "user": "u-1",
}


def test_untagged_call_passes_through_unchanged(served: Served) -> None:
    reply = served.gateway.request("POST", "/v1/chat/completions", UNTAGGED_BODY)
    assert reply.status == 200
    assert served.last.body == {**UNTAGGED_BODY, "model": "gpt-4o-mini"}
    assert served.last.credential == "upstream-key"
    ours = {name for name in reply.headers if name.startswith(("x-workflow", "x-budget"))}
    assert ours == set()
    assert reply.headers["x-request-id"]
    assert "tag;dur=" in reply.headers["server-timing"]
    sent = set(served.last.headers)
    assert not {name for name in sent if name.startswith(("x-workflow", "baggage", "cookie", "x-forwarded"))}


def test_metadata_of_an_untagged_call_is_forwarded_unchanged(served: Served) -> None:
    metadata = {"run_id": "not ours", "step": "é", "ticket": "7"}
    assert served.chat(metadata=metadata, store=True).status == 200
    assert served.last.body["metadata"] == metadata


def test_tag_session_and_credential_headers_are_not_forwarded(served: Served) -> None:
    headers = {
        **tagged("wf", "r-strip", "s", agent="a", user="u", priority="high", intent="extract", options="no-route"),
        "baggage": "workflow.id=wf",
        "x-session-id": "s-1",
        "cookie": "a=1",
        "proxy-authorization": "Basic x",
    }
    metadata = {"workflow_id": "wf", "run_id": "r-strip", "step": "s", "agent": "a", "ticket": "7"}
    assert served.chat(headers, metadata=metadata, max_tokens=16).status == 200
    assert served.last.body["metadata"] == {"ticket": "7"}
    assert not {"baggage", "x-session-id", "cookie", "proxy-authorization"} & set(served.last.headers)
    assert not [name for name in served.last.headers if name.startswith("x-workflow")]
    assert served.chat(metadata={"workflow_id": "wf", "run_id": "r-strip"}, max_tokens=16).status == 200
    assert "metadata" not in served.last.body


def test_paths_without_v1_or_with_tags_reach_the_same_endpoints(served: Served) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16}
    for path in ("/chat/completions", "/w/wf/r/r-path/s/s/chat/completions", "/w/wf/chat/completions"):
        assert served.gateway.request("POST", path, body).status == 200, path
    assert served.gateway.get("/w/wf/v1/models").json()["data"][0]["id"] == "fake"
    assert served.gateway.request("POST", "/w/a b/v1/chat/completions".replace(" ", "%20"), body).status == 400
    for path, expected in (
        ("/w/wf/v1/nothing", (404, "not_found")),
        ("/v1/nothing", (404, "not_found")),
        ("/w/wf", (404, "not_found")),
        ("/w//v1/chat/completions", (400, "invalid_path")),
    ):
        reply = served.gateway.request("POST", path, body)
        assert (reply.status, reply.json()["error"]["code"]) == expected, path
