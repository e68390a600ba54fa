"""The outermost layer: what no part behind it should ever have to think about.

One valid host, one credential, few and small headers, a path that is what it looks like. uvicorn with httptools is strict
about framing already; what it lets through was measured, and each of these rules answers one such finding.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from gateway.errors import BadRequest, GatewayError
from gateway.wire.openai_errors import error_body

HEADER_BYTES_MAX: Final = 32 * 1024
HEADERS_MAX: Final = 100
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")
# Encoded dots, slashes, backslashes and control characters, which servers and proxies decode differently; parameters and
# double slashes. A line break would pass by every route, whose patterns end at it.
_CROOKED: Final = re.compile(rb"%2e|%2f|%5c|%[01][0-9a-f]|%7f|\\|;|//|/\.\.?(?:/|\Z)", re.IGNORECASE)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
# Two of them that differ would let two readers of the request see two different requests.
_ONCE: Final = frozenset(
    {
        b"host",
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"content-type",
        b"content-length",
        b"cookie",
        b"transfer-encoding",
    }
)
# Names of models and runs may have slashes, which clients escape; nothing is looked up by that path.
_NAME: Final = re.compile(
    rb"(?:(?<=/models/)|(?<=/runs/))(?:%2[Ff])*[A-Za-z0-9][\w.:@~-]*(?:(?:/(?:%2[Ff])*|(?:%2[Ff])+)[A-Za-z0-9][\w.:@~-]*)*\Z"
)
_OVERRIDES: Final = frozenset({b"x-http-method-override", b"x-method-override", b"x-original-url", b"x-rewrite-url"})

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class Guard:
    """Wraps an ASGI application. A request that breaks a rule is answered here, with 400, 405 or 431."""

    def __init__(self, application: Asgi) -> None:
        self._application = application

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            fault = fault_of(scope)
            if fault is not None:
                await _answer(send, fault)
                return
        await self._application(scope, receive, send)


def fault_of(scope: Mapping[str, Any]) -> GatewayError | None:
    """What is wrong with a request's line and headers, None if nothing is."""
    if scope["method"] not in _METHODS:
        return BadRequest(f"The method {scope['method'][:20]} is not supported.", status=405, code="method_not_allowed")
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    if not raw_path.startswith(b"/") or _is_crooked(raw_path):
        return BadRequest("The path is not in its plain form.", code="invalid_path")
    return _header_fault(scope["headers"])


def _is_crooked(path: bytes) -> bool:
    return bool(_CROOKED.search(path) and _CROOKED.search(_NAME.sub(b"", path)))


def _header_fault(headers: list[tuple[bytes, bytes]]) -> GatewayError | None:
    if len(headers) > HEADERS_MAX:
        return _too_many(f"more than {HEADERS_MAX} headers")
    size = 0
    seen: set[bytes] = set()
    for name, value in headers:
        size += len(name) + len(value)
        if name in _ONCE:
            if name in seen:
                return BadRequest.header(name.decode("latin-1"), "stands in the request twice")
            seen.add(name)
            if name == b"host" and not _HOST.match(value):
                return BadRequest.header("host", "is not the name of a host")
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                # Every reader of a request has to find the same end of it, and only for this value do all of them.
                return BadRequest.header("transfer-encoding", "must be chunked, and nothing else")
        elif name in _OVERRIDES:
            return BadRequest.header(name.decode("latin-1"), "is not supported")
    if len({name for name, _ in headers}) != len(headers):
        doubled = _doubled_tag(headers)
        if doubled is not None:
            return BadRequest.header(doubled.decode("latin-1"), "stands in the request twice, with different values")
    if size > HEADER_BYTES_MAX:
        return _too_many(f"more than {HEADER_BYTES_MAX} bytes of headers")
    if b"host" not in seen:
        return BadRequest.header("host", "is missing")
    return None


def _doubled_tag(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """A tag that is given two values: which run pays would be a guess."""
    seen: dict[bytes, bytes] = {}
    for name, value in headers:
        if name.startswith(b"x-workflow-") and seen.setdefault(name, value) != value:
            return name
    return None


def _too_many(what: str) -> GatewayError:
    return BadRequest(f"The request has {what}.", status=431, code="headers_too_large")


async def _answer(send: Any, error: GatewayError) -> None:
    body = error_body(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
