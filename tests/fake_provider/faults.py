"""Answers that are broken on the wire, and errors as providers give them."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from tests.fake_provider.directive import Directive

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
HTML = "<html><head><title>{status} Bad Gateway</title></head><body><center><h1>nginx says {status}</h1></center></body></html>"


def error_object(directive: Directive, anthropic: bool) -> dict[str, Any]:
    """The error object of the provider whose protocol the request speaks."""
    message = directive.message or f"The fake provider was told to answer {directive.status}."
    kind = directive.error_type or _TYPES.get(directive.status, "api_error" if anthropic else "server_error")
    if anthropic:
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_fake"}
    return {"error": {"message": message, "type": kind, "param": directive.param, "code": directive.code}}


def error_response(directive: Directive, anthropic: bool) -> web.Response:
    message = directive.message or "told to fail"
    forms: dict[str, tuple[str, str]] = {
        "json": ("application/json", json.dumps(error_object(directive, anthropic))),
        "none": ("application/octet-stream", ""),
        "html": ("text/html", HTML.format(status=directive.status)),
        "text": ("text/plain", message),
        "string": ("application/json", json.dumps({"error": message})),
        "detail": ("application/json", json.dumps({"detail": message})),
    }
    content_type, text = forms[directive.body]
    headers = {"retry-after": directive.retry_after} if directive.retry_after else {}
    return web.Response(status=directive.status, text=text, content_type=content_type, headers=headers)


def reset(request: web.Request) -> None:
    """Drop the connection with a RST, as a crashed process or a firewall does."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def send_raw(request: web.Request, text: str) -> None:
    """Write these bytes instead of an HTTP answer, and close."""
    transport = request.transport
    assert transport is not None
    assert isinstance(transport, asyncio.WriteTransport)
    transport.write(text.encode("latin-1"))
    transport.close()


def gzip_bomb(size: int) -> Iterator[bytes]:
    """A gzip member that unpacks to `size` bytes of an endless JSON string, made without ever holding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield packer.compress(b'{"id": "')
    block = b"x" * 1_000_000
    for _ in range(max(1, size // len(block))):
        yield packer.compress(block)
    yield packer.flush()
