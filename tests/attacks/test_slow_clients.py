"""Clients that are slow in either direction: each is disconnected, and all others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.serving import Served, serving
from tests.attacks.raw_http import CHAT, connect, read_reply, request
from tests.bare_server import bare_server
from tests.farebox_process import tagged
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("slow-clients")

SERVER = {
    "header_seconds": 1.0,
    "stall_seconds": 1.0,
    "connections_max": 64,
    "bodies_bytes_max": 4_000_000,
    "body_bytes_max": 3_000_000,
}
# Deadlines are checked once a second; the rest is for a busy machine.
SOON_S = 15.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    budgets = [{"scope": "run", "match": "*", "tokens": 500_000}]
    with serving(tmp_path_factory.mktemp("slow"), budgets=budgets, server=SERVER) as running:
        yield running


def connections_ended(served: Served, reason: str) -> float:
    return served.metric("farebox_connections_ended_total", reason=reason)


def test_headers_sent_a_byte_at_a_time_are_cut_off(served: Served) -> None:
    """The deadline is for the whole head: a byte now and then does not extend it."""
    with connect(served.gateway.url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nx-a: ")
        deadline = time.monotonic() + SOON_S
        while not select.select([connection], [], [], 0.2)[0]:
            assert time.monotonic() < deadline, "the gateway still reads"
            connection.sendall(b"a")
        assert read_reply(connection, SOON_S).is_closed


def test_incomplete_headers_get_a_408(served: Served) -> None:
    with connect(served.gateway.url) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-a: ")
        reply = read_reply(connection, SOON_S)
    assert reply.is_closed
    assert reply.statuses == [408]
    error = reply.answers[0].json()["error"]
    assert error["code"] == "request_timeout"
    assert error["metadata"]["request_id"] == reply.answers[0].headers["x-request-id"]


def test_incomplete_pipelined_request_does_not_disturb_the_first(served: Served) -> None:
    served.provider.script(delay_ms=2500)
    with connect(served.gateway.url) as connection:
        connection.sendall(request() + b"POST /v1")
        reply = read_reply(connection, SOON_S)
    assert reply.statuses[0] == 200


def test_silent_connection_is_closed(served: Served) -> None:
    with connect(served.gateway.url) as connection:
        assert read_reply(connection, SOON_S).is_closed


def test_300_idle_connections_do_not_displace_calls(served: Served) -> None:
    """The connection that was idle longest is closed first, and one with a call in flight never."""
    served.provider.script(delay_ms=3000)
    before = connections_ended(served, "too_many")
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as opened:
        working = pool.submit(served.chat, tagged("slow", "r-working"), max_tokens=20)
        until(lambda: served.metric("farebox_calls_in_flight") == 1, description="the call is under way")
        for _ in range(300):
            opened.enter_context(connect(served.gateway.url))
        assert served.gateway.get("/livez").status == 200
        assert served.metric("farebox_connections") <= SERVER["connections_max"]
        assert served.chat(tagged("slow", "r-other"), max_tokens=20).status == 200
        assert working.result().status == 200
    assert connections_ended(served, "too_many") - before >= 300 - SERVER["connections_max"]


def test_10000_idle_connections_stay_within_the_default_limit(tmp_path: Path) -> None:
    """The default limit is 8,192: the oldest idle connections are closed, and all others are served."""
    connection_count, limit = 10_000, 8_192
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < connection_count + 1_000:
        pytest.skip(f"a process may open only {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with serving(tmp_path) as running, contextlib.ExitStack() as opened:
            for _ in range(connection_count):
                opened.enter_context(connect(running.gateway.url))
            assert running.gateway.get("/livez").status == 200
            assert running.chat(max_tokens=20).status == 200
            assert running.metric("farebox_connections") <= limit
            assert connections_ended(running, "too_many") >= connection_count - limit
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_client_that_does_not_read_is_disconnected_and_charged(served: Served) -> None:
    """The answer is far larger than all buffers on the way, so the gateway stops reading from the provider, and then gives up."""
    served.provider.script(tokens=400_000)
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    before = connections_ended(served, "unread")
    with connect(served.gateway.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        headers = [f"{name}: {value}".encode() for name, value in tagged("slow", "r-unread").items()]
        connection.sendall(request(headers=headers, body=json.dumps(body).encode()))
        until(lambda: connections_ended(served, "unread") > before, 60, "the client is disconnected")
        until(lambda: served.metric("farebox_calls_in_flight") == 0, description="its call is over")
    facts = served.balance(tagged("slow", "r-unread"))
    assert facts["reserved"] == 0
    assert facts["settled"] > 0


def test_request_bodies_above_the_common_limit_are_refused_with_503(served: Served) -> None:
    """Each of them is small enough; together they are not. What is refused takes nothing from the others."""
    served.provider.script(times=4, delay_ms=1500)
    content = "a " * 900_000
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda at: served.chat(None, content), range(4)))
    statuses = sorted(reply.status for reply in replies)
    assert 503 in statuses, statuses
    assert {reply.json()["error"]["code"] for reply in replies if reply.status == 503} == {"gateway_busy"}
    assert {reply.headers["retry-after"] for reply in replies if reply.status == 503} == {"1"}
    assert served.chat(None, "a " * 900_000).status != 503, "what was held for the others is free again"


async def read_all(scope: Any, receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def refuse_at_once(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def test_incomplete_body_gets_a_408() -> None:
    async with bare_server(read_all, head_s=0.1, body_s=0.3) as url:
        with await asyncio.to_thread(connect, url) as connection:
            connection.sendall(request()[:-10])
            reply = await asyncio.to_thread(read_reply, connection, SOON_S)
    assert reply.is_closed
    assert reply.answers[0].status == 408


async def test_refused_body_is_not_read_to_its_end() -> None:
    """Closing in the middle of the body would make the client miss the answer; reading a gigabyte would be a waste."""
    async with bare_server(refuse_at_once) as url:
        with await asyncio.to_thread(connect, url) as connection:
            connection.sendall(request(length=False, headers=[b"content-length: 1000000000"], body=b"a" * 1000))
            reply = await asyncio.to_thread(read_reply, connection, SOON_S)
    assert reply.statuses == [413]
    assert reply.is_closed


async def test_slow_reader_that_keeps_reading_is_not_disconnected() -> None:
    """A client that keeps reading keeps its connection, however long the whole answer takes."""
    size = 24_000_000

    async def long_answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})

    def read_slowly(connection: socket.socket) -> int:
        total = 0
        while piece := connection.recv(600_000):
            total += len(piece)
            if total >= size:
                break
            time.sleep(0.1)
        return total

    async with bare_server(long_answer, stall_s=0.5) as url:
        with await asyncio.to_thread(connect, url, SOON_S) as connection:
            connection.sendall(request())
            assert await asyncio.to_thread(read_slowly, connection) >= size


async def test_client_deadlines_do_not_apply_while_the_call_runs() -> None:
    """A call that takes longer than all deadlines of the client together."""

    async def think(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(2.5)
        await read_all(scope, receive, send)

    async with bare_server(think, head_s=0.1, body_s=0.1, stall_s=0.1) as url:
        with await asyncio.to_thread(connect, url) as connection:
            connection.sendall(request(body=CHAT, headers=[b"connection: close"]))
            reply = await asyncio.to_thread(read_reply, connection, 6.0)
    assert reply.statuses == [200]
