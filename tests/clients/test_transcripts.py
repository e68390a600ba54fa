"""What Claude Code and Codex send and receive, replayed byte by byte: long instructions, schemas of tools, odd shapes of streams.

The requests and events are written from the documentation that each file of `transcripts/` names. The gateway may add a comment
and hold back an end; whatever else it changed would be a fault.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.serving import Served
from tests.clients.serving_clients import run_of

pytestmark = pytest.mark.xdist_group("clients-transcripts")

FOLDER = Path(__file__).parent / "transcripts"
Exchange = dict[str, Any]
EXCHANGES: list[tuple[str, Exchange]] = [
    (file.stem, exchange)
    for file in sorted(FOLDER.glob("*.json"))
    for exchange in json.loads(file.read_text())["exchanges"]
]
STREAMED = [(client, exchange) for client, exchange in EXCHANGES if "events" in exchange]
FORWARDED = ("anthropic-beta", "anthropic-version", "openai-beta")


def names(exchanges: list[tuple[str, Exchange]]) -> list[str]:
    return [f"{client}: {exchange['what']}" for client, exchange in exchanges]


def sse_text(exchange: Exchange, newline: str = "\n") -> str:
    blocks = [
        f"event: {event['name']}\ndata: {json.dumps(event['data'], ensure_ascii=False, separators=(',', ':'))}\n\n"
        for event in exchange["events"]
    ]
    return "".join(blocks).replace("\n", newline)


def answer_with(served: Served, text: str, content_type: str) -> None:
    """Bytes as they are: the directive is written as latin-1, so that UTF-8 has to be spelt in it."""
    body = text.encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    served.provider.script(raw=head + body.decode("latin-1"))


def send(served: Served, exchange: Exchange, run: str, **changed: Any) -> Any:
    headers = {**exchange["headers"], "x-workflow-run-id": run}
    return served.gateway.request("POST", exchange["path"], {**exchange["body"], **changed}, headers)


def run_name(prefix: str, exchange: Exchange) -> str:
    return f"{prefix}-{zlib.crc32(exchange['what'].encode())}"


def without_comments(text: str) -> str:
    return "".join(block + "\n\n" for block in text.split("\n\n") if block.strip() and not block.startswith(":"))


@pytest.mark.parametrize(("client", "exchange"), EXCHANGES, ids=names(EXCHANGES))
def test_exchange_is_forwarded_and_answered_unchanged(served: Served, client: str, exchange: Exchange) -> None:
    run = run_name("t", exchange)
    if "events" in exchange:
        answer_with(served, sse_text(exchange), "text/event-stream; charset=utf-8")
    elif "answer" in exchange:
        answer_with(served, json.dumps(exchange["answer"]), "application/json")
    reply = send(served, exchange, run)
    assert reply.status == 200, reply.body
    if exchange.get("free"):
        assert reply.json()["input_tokens"] > 1000
        assert served.seen() == 0
        return
    assert_forwarded_whole(served, exchange)
    if "answer" in exchange:
        assert reply.json() == exchange["answer"]
    elif "ends_with" in exchange:
        assert f"event: {exchange['ends_with']}\n" in reply.body.decode()
    else:
        assert without_comments(reply.body.decode()) == sse_text(exchange)
    if "used" in exchange:
        assert run_of(served, run)["tokens"]["settled"] == sum(exchange["used"])


def assert_forwarded_whole(served: Served, exchange: Exchange) -> None:
    """Nothing is changed but the model's name and, where the run's budget or the model's limit asks for it, the cap."""
    ours = {"model", "max_tokens", "max_output_tokens"}
    sent = {name: value for name, value in exchange["body"].items() if name not in ours}
    assert {name: value for name, value in served.last.body.items() if name not in ours} == sent
    for name in FORWARDED:
        assert served.last.headers.get(name) == exchange["headers"].get(name)
    strangers = {"x-workflow-id", "x-workflow-step", "x-claude-code-session-id", "session_id", "originator", "x-app"}
    assert not strangers & served.last.headers.keys()


@pytest.mark.parametrize(("client", "exchange"), STREAMED, ids=names(STREAMED))
def test_crlf_line_endings_give_the_same_events(served: Served, client: str, exchange: Exchange) -> None:
    answer_with(served, sse_text(exchange, "\r\n"), "text/event-stream")
    reply = send(served, exchange, run_name("t-crlf", exchange))
    relayed_lines = [line for line in reply.body.decode().replace("\r", "").split("\n") if line.startswith("data: ")]
    expected_lines = [line for line in sse_text(exchange).split("\n") if line.startswith("data: ")]
    assert relayed_lines[: len(expected_lines) - 1] == expected_lines[:-1]


@pytest.mark.parametrize(("client", "exchange"), STREAMED, ids=names(STREAMED))
def test_refused_stream_gets_a_json_error(served: Served, client: str, exchange: Exchange) -> None:
    headers = {**exchange["headers"], "x-workflow-run-id": f"t-refused-{client}", "x-workflow-budget-tokens": "20"}
    reply = served.gateway.request("POST", exchange["path"], exchange["body"], headers)
    assert reply.status == 402
    assert reply.headers["content-type"] == "application/json"
    assert f"t-refused-{client}" in reply.json()["error"]["message"]
    assert served.seen() == 0


@pytest.mark.parametrize("client", ["claude-code", "codex"])
def test_session_header_names_the_run(served: Served, client: str) -> None:
    exchange = next(exchange for of, exchange in STREAMED if of == client)
    answer_with(served, sse_text(exchange), "text/event-stream")
    reply = served.gateway.request("POST", exchange["path"], exchange["body"], exchange["headers"])
    session = exchange["headers"].get("x-claude-code-session-id") or exchange["headers"]["session_id"]
    assert reply.headers["x-workflow-run-id"] == session


def test_thinking_budget_is_clamped_below_the_output_cap(served: Served) -> None:
    exchange = next(exchange for _, exchange in STREAMED if "thinking" in exchange["body"])
    answer_with(served, sse_text(exchange), "text/event-stream")
    headers = {**exchange["headers"], "x-workflow-run-id": "t-thinking", "x-workflow-budget-tokens": "9000"}
    reply = served.gateway.request("POST", exchange["path"], exchange["body"], headers)
    assert reply.status == 200
    assert "clamp" in reply.headers["x-budget-actions"]
    sent = served.last.body
    assert 1024 <= sent["thinking"]["budget_tokens"] < sent["max_tokens"] < 8000
