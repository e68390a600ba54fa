"""What nginx and Caddy must not change between a client and a gateway, with the configuration that is shipped for them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.load_balancers import caddy, nginx
from tests.acceptance.serving import Served, serving
from tests.farebox_process import tagged
from tests.waiting import until

ADMIN_KEY = "admin-" + "0" * 42
AS_ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
MEBIBYTE = 1024**2


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
def front(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """A gateway and its provider, reached through the load balancer. Its second gateway is down."""
    with serving(tmp_path, environment={"FAREBOX_ADMIN_KEY": ADMIN_KEY}) as served:
        port = int(served.gateway.url.rsplit(":", 1)[1])
        with request.param(tmp_path, [port, 1]) as front_port:
            gateway = replace(served.gateway, process=None, url=f"http://127.0.0.1:{front_port}")
            until(lambda: _listens(front_port), 20, "the load balancer listens")
            yield replace(served, gateway=gateway)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def key(front: Served) -> dict[str, str]:
    created = front.gateway.request("POST", "/api/keys", {"name": "ci"}, AS_ADMIN)
    return {"authorization": f"Bearer {created.json()['key']}"}


def test_session_header_with_an_underscore_names_the_run(front: Served, key: dict[str, str]) -> None:
    reply = front.chat({**key, "x-workflow-id": "wf", "session_id": "session-1"})
    assert (reply.status, reply.headers.get("x-workflow-run-id")) == (200, "session-1")


def test_body_of_the_largest_size_is_passed_on(front: Served, key: dict[str, str]) -> None:
    reply = front.chat(key, "a" * (32 * MEBIBYTE - 1000), max_tokens=5)
    assert reply.status == 200, reply.body[:300]


def test_stream_arrives_as_it_is_sent_and_a_disconnect_ends_the_call(front: Served, key: dict[str, str]) -> None:
    front.provider.script(tokens=200, chunk_delay_ms=100)
    headers = {**key, **tagged("wf", "gone")}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    body = '{"model": "fake", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
    host, port = front.gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{lines}"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        began, received = time.monotonic(), b""
        while received.count(b"data: ") < 3:
            received += connection.recv(65_536)
        assert time.monotonic() - began < 10, "of a stream that takes 20 seconds"
    until(lambda: _run(front, "gone")["tokens"]["settled"] > 0, 10, "the gateway notices that nobody listens")
    assert _run(front, "gone")["tokens"]["reserved"] == 0


def _run(front: Served, run: str) -> Any:
    return front.gateway.get(f"/api/runs/{run}", AS_ADMIN).json()


def test_forwarded_request_is_not_taken_for_a_local_one(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        port = int(served.gateway.url.rsplit(":", 1)[1])
        assert served.gateway.get("/api/settings").status == 200
        with nginx(tmp_path, [port, 1]) as front_port:
            until(lambda: _listens(front_port), 20, "nginx listens")
            front = replace(served.gateway, process=None, url=f"http://127.0.0.1:{front_port}")
            assert front.get("/api/settings", {"host": "localhost"}).status == 401
