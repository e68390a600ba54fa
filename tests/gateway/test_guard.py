"""Requests that the guard refuses, and valid ones that it passes on."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.server.guard import HEADER_BYTES_MAX, HEADERS_MAX, Guard, fault_of

HOST = (b"host", b"127.0.0.1:4000")


def request(
    path: bytes = b"/v1/chat/completions", method: str = "POST", *headers: tuple[bytes, bytes]
) -> dict[str, Any]:
    header_pairs = list(headers) or [HOST]
    return {"type": "http", "method": method, "path": path.decode("latin-1"), "raw_path": path, "headers": header_pairs}


@pytest.mark.parametrize(
    "host", [b"localhost", b"a.example:80", b"[::1]:4000", b"farebox", b"gw-1.internal:4000", b"10.0.0.1", b"a_b:1"]
)
def test_valid_host_is_accepted(host: bytes) -> None:
    assert fault_of(request(b"/", "GET", (b"host", host))) is None


@pytest.mark.parametrize(
    "host", [b"a/#@evil", b"a?b", b"", b"a b", b"a:port", b"[::1", b"evil.example:80:80", b"-x", b"a\x00b"]
)
def test_invalid_host_is_refused(host: bytes) -> None:
    fault = fault_of(request(b"/", "GET", (b"host", host)))
    assert fault is not None
    assert (fault.status, fault.param) == (400, "host")


@pytest.mark.parametrize(
    "path",
    [
        b"//v1/x",
        b"/v1/%2e%2e/admin",
        b"/v1/..%2fadmin",
        b"/v1/models/..%2fadmin",
        b"/v1/models/a%2f..%2fadmin",
        b"/api/runs/a%2f..%2f..%2fkeys",
        b"/api/runs/..%2fkeys",
        b"/api/runs//x",
        b"/api/keys%2fk1",
        b"/v1/../admin",
        b"/./x",
        b"/a;b",
        b"/a\\b",
        b"/a%00",
        b"/a%0Ab",
        b"/a%7f",
        b"/..",
        b"http://x/y",
    ],
)
def test_ambiguous_path_is_refused(path: bytes) -> None:
    fault = fault_of(request(path))
    assert fault is not None
    assert (fault.status, fault.code) == (400, "invalid_path")


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"/w/a.b/r/c:d/s/e@f/v1/chat/completions",
        b"/api/runs/r-1",
        b"/admin/static/x.css",
        b"/v1/a%20b",
        b"/v1/models/openai%2Fgpt-4o",
        b"/api/runs/2026%2F11%2F22:a/pause",
        b"/api/runs/%2Fhome%2Fme%2F%2Fproject",
    ],
)
def test_valid_path_is_accepted(path: bytes) -> None:
    assert fault_of(request(path)) is None


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get"])
def test_unsupported_method_is_405(method: str) -> None:
    fault = fault_of(request(b"/", method))
    assert fault is not None
    assert (fault.status, fault.headers) == (405, {"allow": "DELETE, GET, HEAD, PATCH, POST, PUT"})


@pytest.mark.parametrize(
    "name", [b"host", b"authorization", b"x-api-key", b"content-length", b"content-type", b"cookie"]
)
def test_repeated_singleton_header_is_refused(name: bytes) -> None:
    headers = (HOST, (name, b"a"), (name, b"b")) if name != b"host" else (HOST, HOST)
    fault = fault_of(request(b"/", "POST", *headers))
    assert fault is not None
    assert (fault.status, fault.param) == (400, name.decode())


@pytest.mark.parametrize("name", [b"x-workflow-id", b"x-workflow-run-id", b"x-workflow-step", b"x-workflow-budget-usd"])
def test_repeated_tag_header_is_refused_only_if_its_values_differ(name: bytes) -> None:
    fault = fault_of(request(b"/", "POST", HOST, (name, b"a"), (b"accept", b"*/*"), (name, b"b")))
    assert fault is not None
    assert (fault.status, fault.code, fault.param) == (400, "invalid_header", name.decode())
    assert fault_of(request(b"/", "POST", HOST, (name, b"a"), (name, b"a"))) is None
    assert fault_of(request(b"/", "POST", HOST, (b"accept", b"a"), (b"accept", b"b"))) is None


def test_missing_host_too_many_or_large_headers_and_method_override_are_refused() -> None:
    no_host = fault_of(request(b"/", "GET", (b"accept", b"*/*")))
    many = fault_of(request(b"/", "GET", HOST, *[(b"x-a", b"1")] * HEADERS_MAX))
    large = fault_of(request(b"/", "GET", HOST, (b"x-a", b"1" * HEADER_BYTES_MAX)))
    override = fault_of(request(b"/", "POST", HOST, (b"x-http-method-override", b"DELETE")))
    assert [fault.status for fault in (no_host, many, large, override) if fault] == [400, 431, 431, 400]


async def test_refused_request_is_answered_by_the_guard_alone() -> None:
    reached: list[str] = []
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await Guard(application, lambda: "an-id")(request(b"//x"), None, send)
    assert reached == []
    assert sent[0]["status"] == 400
    assert {(b"x-request-id", b"an-id"), (b"request-id", b"an-id")} <= set(sent[0]["headers"])
    await Guard(application, lambda: "an-id")(request(b"/x"), None, send)
    assert reached == ["/x"]
