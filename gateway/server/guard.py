"""The outermost layer: refuses malformed requests, so that no part behind it has to handle them.

It requires one valid host, one credential, few and small headers, and a plain path. uvicorn with httptools is already strict
about framing; what it lets through was measured, and each rule here responds to one such finding.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from itertools import chain
from typing import Any, Final

from gateway.endpoints.request_id import Send, with_request_id
from gateway.errors import BadRequest, GatewayError
from gateway.wire import anthropic_errors, openai_errors

HEADER_BYTES_MAX: Final = 32 * 1024
HEADERS_MAX: Final = 100
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")
# Encoded dots, slashes, backslashes and control characters, which servers and proxies decode differently; parameters and
# double slashes. A line break would get past every route, because their patterns end at it.
_NOT_PLAIN: Final = re.compile(rb"%2e|%2f|%5c|%[01][0-9a-f]|%7f|\\|;|//|/\.\.?(?:/|\Z)", re.IGNORECASE)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
# If two of these differ, two parsers could see two different requests.
_UNREPEATABLE: Final = frozenset(
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
# Names of models and runs may contain slashes, which clients escape; no file is looked up by these paths.
_NAME: Final = re.compile(
    rb"(?:(?<=/models/)|(?<=/runs/))(?:%2[Ff])*[A-Za-z0-9][\w.:@~-]*(?:(?:/(?:%2[Ff])*|(?:%2[Ff])+)[A-Za-z0-9][\w.:@~-]*)*\Z"
)
_OVERRIDES: Final = frozenset({b"x-http-method-override", b"x-method-override", b"x-original-url", b"x-rewrite-url"})

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class Guard:
    """Wraps an ASGI application. A request that breaks a rule is answered here, with 400, 405 or 431."""

    def __init__(self, application: Asgi, new_id: Callable[[], str]) -> None:
        self._application = application
        self._new_id = new_id

    def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> Awaitable[None]:
        fault = fault_of(scope) if scope["type"] == "http" else None
        return self._application(scope, receive, send) if fault is None else self._refuse(scope, send, fault)

    def _refuse(self, scope: Mapping[str, Any], send: Any, fault: GatewayError) -> Awaitable[None]:
        fault.metadata["request_id"] = request_id = self._new_id()
        error_format = anthropic_errors if _is_messages_path(scope) else openai_errors
        return _answer(with_request_id(send, lambda: request_id), fault, error_format.error_body(fault))


def fault_of(scope: Mapping[str, Any]) -> GatewayError | None:
    """What is wrong with the request line and headers; None if nothing is."""
    if scope["method"] not in _METHODS:
        return BadRequest(
            f"The method {scope['method'][:20]} is not supported.",
            status=405,
            code="method_not_allowed",
            headers={"allow": ", ".join(sorted(_METHODS))},
        )
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    if not raw_path.startswith(b"/") or _is_malformed(raw_path):
        return BadRequest("The path is not in its plain form.", code="invalid_path")
    return _header_fault(scope["headers"])


def _is_messages_path(scope: Mapping[str, Any]) -> bool:
    return "/messages" in scope["path"] or any(name == b"anthropic-version" for name, _ in scope["headers"])


def _is_malformed(path: bytes) -> bool:
    return bool(_NOT_PLAIN.search(path) and _NOT_PLAIN.search(_NAME.sub(b"", path)))


def _header_fault(headers: list[tuple[bytes, bytes]]) -> GatewayError | None:
    if len(headers) > HEADERS_MAX:
        return _too_many(f"more than {HEADERS_MAX} headers")
    if sum(map(len, chain.from_iterable(headers))) > HEADER_BYTES_MAX:
        return _too_many(f"more than {HEADER_BYTES_MAX} bytes of headers")
    values = dict(headers)
    if len(values) != len(headers) and (fault := _repeated_header_fault(headers)) is not None:
        return fault
    if not _OVERRIDES.isdisjoint(values):
        name = next(name for name in values if name in _OVERRIDES)
        return BadRequest.header(name.decode("latin-1"), "is not supported")
    host = values.get(b"host")
    if host is None:
        return BadRequest.header("host", "is missing")
    if not _HOST.match(host):
        return BadRequest.header("host", "is not the name of a host")
    if values.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
        # All parsers must find the same end of a request, and they only agree for this value.
        return BadRequest.header("transfer-encoding", "must be chunked, and nothing else")
    return None


def _repeated_header_fault(headers: list[tuple[bytes, bytes]]) -> GatewayError | None:
    """Some headers may be repeated. With two values of a tag it would be a guess which run pays."""
    first_values: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in first_values:
            first_values[name] = value
        elif name in _UNREPEATABLE:
            return BadRequest.header(name.decode("latin-1"), "stands in the request twice")
        elif name.startswith(b"x-workflow-") and first_values[name] != value:
            return BadRequest.header(name.decode("latin-1"), "stands in the request twice, with different values")
    return None


def _too_many(excess: str) -> GatewayError:
    return BadRequest(f"The request has {excess}.", status=431, code="headers_too_large")


async def _answer(send: Send, error: GatewayError, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (b"request-id", error.metadata["request_id"].encode()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
