"""Clients' connections: how long each may keep us waiting, how much memory it may take, and which one is closed if there are too many.

uvicorn waits for ever for the rest of a request and for a client to read its answer; each rule here ends one such wait. Once
a second all connections are checked for passed deadlines, because a timer per request would cost more than all of this.

    a connection waits for      its time                            then
    ------------------------    --------------------------------    ------------------
    the head of a request       `head_s` from its first byte         408, closed
    the rest of its body        `body_s` from its head               408, closed
    a rest no longer needed     `_LINGER_S` after an early answer    closed
    the client to read          `stall_s` without 1 KiB/s            reset
    a next request              `keep_alive_s`                       closed (uvicorn's own timer)
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import httptools
from uvicorn.config import Config as UvicornConfig
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.errors import BadRequest, GatewayError, Overloaded
from gateway.observability.telemetry import Telemetry
from gateway.pipeline.exchange import PRESENCE, WHOLE_ANSWER, ClientPresence
from gateway.server.guard import HEADER_BYTES_MAX
from gateway.server.whole_answers import WholeAnswers
from gateway.wire.openai_errors import error_body

_CHECK_INTERVAL_S: Final = 1.0
_NEVER: Final = float("inf")
# How long a client may go on sending after it was refused: closing at once would make it miss the answer.
_LINGER_S: Final = 5.0
_READ_BYTES_PER_SECOND_MIN: Final = 1024
# The guard answers politely if headers are up to twice as large as allowed; beyond that the connection is closed.
_HEAD_BYTES_MAX: Final = 2 * HEADER_BYTES_MAX + 65_536
# Extra bytes per byte of a body: chunk sizes, their extensions, trailers. Chunks of one byte have five.
_FRAMING_FACTOR: Final = 8
# File descriptors that are not for clients: files, the ledger, the store, the listening sockets.
_OWN_DESCRIPTORS: Final = 128
_EXTENSIONS: Final[dict[str, dict[object, object]]] = {WHOLE_ANSWER: {}}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    connections_max: int
    head_s: float
    body_s: float
    stall_s: float
    bodies_bytes_max: int  # over all requests being read or served


class Connections:
    """All connections of a process. `idle` has those without a call in progress, longest quiet first."""

    def __init__(self, limits: ConnectionLimits, telemetry: Telemetry, new_id: Callable[[], str]) -> None:
        self.limits = limits
        self.new_id = new_id
        self._telemetry = telemetry
        self.open: set[BoundedHttp] = set()
        self.idle: dict[BoundedHttp, None] = {}
        self.bodies_bytes = 0
        self._check_timer: asyncio.TimerHandle | None = None

    def protocol(
        self,
        config: UvicornConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> BoundedHttp:
        """The factory that uvicorn calls for each connection."""
        return BoundedHttp(self, config, server_state, app_state, _loop)

    def add(self, connection: BoundedHttp) -> None:
        self.open.add(connection)
        self._telemetry.connections.inc()
        self.idle[connection] = None
        if self._check_timer is None:
            self._check_timer = connection.loop.call_later(_CHECK_INTERVAL_S, self._check_deadlines, connection.loop)
        if len(self.open) > self.limits.connections_max:
            self._make_room()

    def remove(self, connection: BoundedHttp) -> None:
        self.open.discard(connection)
        self._telemetry.connections.dec()
        self.idle.pop(connection, None)

    def count_end(self, reason: str) -> None:
        self._telemetry.connections_ended.labels(reason).inc()

    def _make_room(self) -> None:
        """Close the connection that has been quiet for longest. If all are busy with calls, that is the newest one."""
        oldest = next(iter(self.idle))
        self.idle.pop(oldest)
        oldest.end("too_many")

    def _check_deadlines(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for connection in [
            connection
            for connection in self.open
            if connection.deadline_s < now_s or connection.read_deadline_s < now_s
        ]:
            connection.on_deadline(now_s)
        self._check_timer = loop.call_later(_CHECK_INTERVAL_S, self._check_deadlines, loop) if self.open else None


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol with deadlines. Times are the event loop's, in seconds."""

    def __init__(
        self,
        connections: Connections,
        config: UvicornConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = connections
        self._limits = connections.limits
        self.deadline_s = _NEVER  # for what the client has to send
        self.read_deadline_s = _NEVER  # for what the client has to read
        self._unread_bytes = 0
        self._is_body_due = False  # the head was read, but not the end of the body
        self._upgrade_headers: list[tuple[bytes, bytes]] | None = None  # of a request that offers another protocol
        self._received_bytes = 0  # of the request being read
        self._body_bytes = 0  # of the request being read
        self._held_bytes = 0  # of all bodies of this connection that calls still need
        self._presence = ClientPresence()  # shared, because requests of one connection are served one after the other

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline_s = self.loop.time() + self._limits.head_s
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self.deadline_s = self.read_deadline_s = _NEVER
        self._release()
        super().connection_lost(exc)
        self._presence.end()
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._received_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(BadRequest("This is not a valid HTTP/1.1 request.", code="invalid_http"))
            return
        if self._is_body_due:
            if self._received_bytes - self._body_bytes > _HEAD_BYTES_MAX + _FRAMING_FACTOR * self._body_bytes:
                self._refuse(BadRequest("The body is wrapped in too many bytes of no use.", code="invalid_http"))
        elif self._received_bytes > _HEAD_BYTES_MAX:
            message = f"The request has more than {HEADER_BYTES_MAX} bytes of headers."
            self._refuse(BadRequest(message, status=431, code="headers_too_large"))

    def _feed(self, data: bytes) -> None:
        remaining = memoryview(data)
        while remaining:
            try:
                self.parser.feed_data(remaining)
                return
            except httptools.HttpParserUpgrade as upgrade:
                remaining = remaining[upgrade.args[0] :]
                self._decline_upgrade()

    def _decline_upgrade(self) -> None:
        """Serve a client that offers another protocol (Java's offers h2c with its first request) in the current one, as RFC
        9110 (7.8) allows. The parser would take what follows for the other protocol, so a new one parses the same head
        without the offer."""
        method: bytes = self.parser.get_method()
        header_lines = [
            name + b": " + value for name, value in self._upgrade_headers or () if name not in _UPGRADE_HEADER_NAMES
        ]
        self._upgrade_headers, self._is_body_due = None, False
        if method == b"CONNECT":
            raise httptools.HttpParserError("this is no tunnel")
        head = b"\r\n".join([method + b" " + self.url + b" HTTP/1.1", *header_lines, b"", b""])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(head)

    # The parser's callbacks, in order.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[PRESENCE] = self._presence  # type: ignore[typeddict-unknown-key]
        self.scope["extensions"] = _EXTENSIONS
        self.deadline_s = self.loop.time() + self._limits.head_s
        self._body_bytes = 0

    def on_headers_complete(self) -> None:
        self._is_body_due = True
        self._received_bytes = 0
        if self.parser.should_upgrade():
            self._upgrade_headers = self.headers
            return
        self.deadline_s += self._limits.body_s
        self._connections.idle.pop(self, None)
        super().on_headers_complete()
        # What comes now are trailers, which must not be added to the headers that were checked.
        self.headers = []

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, WholeAnswers(app, cycle))

    def on_body(self, body: bytes) -> None:
        size = len(body)
        self._body_bytes += size
        if self._upgrade_headers is not None:
            return
        if not self.cycle.response_complete:
            self._held_bytes += size
            self._connections.bodies_bytes += size
            if self._connections.bodies_bytes > self._limits.bodies_bytes_max:
                self._refuse(_busy())
                return
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_body_due = False
        self._received_bytes = 0
        if self._upgrade_headers is not None:
            return
        self.deadline_s = _NEVER
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self._connections.idle[self] = None
            self._release()
        if self._is_body_due:
            self.deadline_s = self.loop.time() + _LINGER_S
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_bytes = self.transport.get_write_buffer_size()
        self.read_deadline_s = self.loop.time() + self._limits.stall_s

    def resume_writing(self) -> None:
        super().resume_writing()
        self.read_deadline_s = _NEVER

    def on_deadline(self, now_s: float) -> None:
        """A deadline has passed."""
        if self.read_deadline_s < now_s:
            unread_bytes = self.transport.get_write_buffer_size()
            if self._unread_bytes - unread_bytes < _READ_BYTES_PER_SECOND_MIN * self._limits.stall_s:
                self._connections.count_end("unread")
                self.transport.abort()
                return
            self._unread_bytes, self.read_deadline_s = unread_bytes, now_s + self._limits.stall_s
        if self.deadline_s >= now_s:
            return
        if self._is_body_due:
            self.end("body")
        elif self in self._connections.idle:
            self.end("head")
        else:  # the next request has begun while a call is served, which must not suffer
            self.deadline_s = now_s + _CHECK_INTERVAL_S

    def end(self, reason: str) -> None:
        """Close the connection, with an explanation if the client is waiting for an answer."""
        if reason == "body" or (reason == "head" and self._received_bytes):
            self._refuse(BadRequest("The request did not arrive in time.", status=408, code="request_timeout"))
            return
        self._connections.count_end(reason)
        self.deadline_s = _NEVER
        self._close()

    def _refuse(self, error: GatewayError) -> None:
        """Answer instead of the application, unless it has begun to answer, and close the connection."""
        self._connections.count_end(error.code)
        self.deadline_s = _NEVER
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not (self.cycle.response_started or self.pipeline):
            self.transport.write(_answer(error, self._connections.new_id()))
        self._close()

    def _close(self) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            self._presence.end()
        self.transport.close()
        # The client may never read what is still in the buffer.
        self._unread_bytes = self.transport.get_write_buffer_size()
        self.read_deadline_s = self.loop.time() + self._limits.stall_s

    def _release(self) -> None:
        self._connections.bodies_bytes -= self._held_bytes
        self._held_bytes = 0


def _busy() -> GatewayError:
    message = "The gateway holds as many bytes of requests as it may."
    return Overloaded(message, status=503, code="gateway_busy", headers={"retry-after": "1"})


_UPGRADE_HEADER_NAMES: Final = frozenset({b"upgrade", b"connection", b"http2-settings"})


def _answer(error: GatewayError, request_id: str) -> bytes:
    error.metadata["request_id"] = request_id
    body = error_body(error)
    lines = [f"HTTP/1.1 {error.status} {_PHRASES[error.status]}", "content-type: application/json"]
    lines += [
        f"content-length: {len(body)}",
        "connection: close",
        f"x-request-id: {request_id}",
        *(f"{name}: {value}" for name, value in error.headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


_PHRASES: Final = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def connections_possible(requested: int) -> int:
    """How many of `requested` connections this process has file descriptors for, after raising its limit as far as allowed.

    Each call needs a second one for its provider.
    """
    if sys.platform == "win32":
        return requested
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * requested + _OWN_DESCRIPTORS
    allowed = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return requested if soft == resource.RLIM_INFINITY else max(16, min(requested, (soft - _OWN_DESCRIPTORS) // 2))
