"""An HTTP/1.1 client for the direct lane: POSTs over a pooled connection, and yields the answer in the pieces in which it arrives.

Whatever else a general client does (redirects, cookies, proxies, compression, retries) must not happen here, and what is left
costs a third of aiohttp's CPU (docs/decisions.md). Answers are parsed by httptools, like incoming requests.

A connection serves one call at a time:

    connecting ─▶ asking ─▶ answering ─▶ idle (in the pool) ─▶ asking …
                     └──────────┴──── closed: a fault, a limit, or the rest is not wanted
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httptools

from gateway.upstream.http_request import Address, request_of

Header = tuple[bytes, bytes]
# Back-pressure: with this many unread bytes buffered, stop reading from the provider.
_BUFFER_BYTES_MAX: Final = 256 * 1024
_HEAD_BYTES_MAX: Final = 64 * 1024
_HEADERS_MAX: Final = 200


class HttpError(Exception):
    """The root of all errors of this module.

    HttpError
    ├── ConnectFailed     no connection: DNS, network, TLS, or a timeout
    ├── Disconnected      the connection ended before the answer began
    ├── AnswerTimeout     the answer did not begin in time
    └── AnswerBroken      the answer is not HTTP, or broke off
    """


class ConnectFailed(HttpError):
    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


class Disconnected(HttpError):
    pass


class AnswerTimeout(HttpError):
    pass


class AnswerBroken(HttpError):
    pass


@dataclass(frozen=True, slots=True)
class ClientLimits:
    connections: int = 1_000  # at the same time, over all origins; further calls wait for one
    keepalive_s: float = 15.0  # how long an idle connection may be reused


class HttpAnswer:
    """An answer's status and headers, and its body as it arrives."""

    __slots__ = (
        "_connection",
        "_error",
        "_is_paused",
        "_pieces",
        "_size",
        "_waiter",
        "headers",
        "is_complete",
        "status",
    )

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: HttpError | None = None
        self._is_paused = False
        self.status = 0
        self.headers: list[Header] = []  # names in lower case
        self.is_complete = False  # all of it has arrived, though it may not have been read yet

    def header(self, name: bytes) -> bytes | None:
        """The first header of this name, given in lower case."""
        return next((value for header_name, value in self.headers if header_name == name), None)

    def read_if_complete(self) -> bytes | None:
        """The whole body if all of it has arrived, as with most buffered answers. None otherwise."""
        return self._take_pieces() if self.is_complete else None

    async def readany(self) -> bytes:
        """The bytes received so far, waiting if there are none; empty at the end. Raises `AnswerBroken`."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self.is_complete:
                return b""
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._take_pieces()

    def close(self) -> None:
        """Drop the rest of the answer, and its connection. After a whole answer the connection is already in the pool and stays."""
        if not self.is_complete:
            self._connection.abort(AnswerBroken("the rest was not wanted"))

    # Called by the connection.

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _BUFFER_BYTES_MAX and not self._is_paused:
            self._is_paused = True
            self._connection.pause()
        self._wake()

    def end(self, error: HttpError | None = None) -> None:
        self._error = error
        self.is_complete = error is None
        self._resume()
        self._wake()

    def _take_pieces(self) -> bytes:
        pieces, self._pieces, self._size = self._pieces, [], 0
        self._resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._connection.resume()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class HttpClient:
    """All connections of one event loop."""

    def __init__(self, limits: ClientLimits = ClientLimits()) -> None:
        self._limits = limits
        self._idle: dict[tuple[str, int, bool], deque[_Connection]] = {}
        self._open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._tls_context: ssl.SSLContext | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None

    async def post(
        self,
        address: Address,
        headers: Mapping[str, str],
        body: bytes,
        *,
        connect_s: float,
        answer_s: float,
        before_send: Callable[[], Awaitable[None] | None] | None = None,
    ) -> HttpAnswer:
        """Returns once the answer's head has arrived, within `answer_s` overall and `connect_s` for a new connection.

        `before_send` is called once there is a connection but nothing has been sent on it; what it returns is awaited before sending.

        Raises `HttpError`, or ValueError for a header that HTTP cannot carry.
        """
        request = request_of(address, headers, body)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + answer_s
        connection = await self._acquire(address, loop, connect_s, deadline_s)
        if before_send is not None:
            try:
                notified = before_send()
                if notified is not None:
                    await notified
            except BaseException:
                connection.discard()
                raise
            if connection.is_closing():  # the provider closed it in the meantime, but nothing has been sent yet
                connection = await self._acquire(address, loop, connect_s, deadline_s)
        return await connection.send(request, deadline_s)

    async def close(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.discard()
        self._idle.clear()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None

    async def _acquire(
        self, address: Address, loop: asyncio.AbstractEventLoop, connect_s: float, deadline_s: float
    ) -> _Connection:
        """A connection for one call: an idle one, a new one, or the next that becomes free."""
        while (connection := self._reusable(address.origin, loop.time())) is None:
            if self._open < self._limits.connections or self._drop_idle():
                return await self._connect(address, loop, connect_s, deadline_s)
            await self._wait_for_connection(loop, deadline_s)
        return connection

    def _reusable(self, origin: tuple[str, int, bool], now_s: float) -> _Connection | None:
        """The most recently used idle connection, so that the others can time out."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_usable(now_s - self._limits.keepalive_s):
                return connection
            connection.discard()
        return None

    async def _connect(
        self, address: Address, loop: asyncio.AbstractEventLoop, connect_s: float, deadline_s: float
    ) -> _Connection:
        self._open += 1
        connection = _Connection(self, address.origin, loop)
        try:
            async with asyncio.timeout_at(min(loop.time() + connect_s, deadline_s)):
                await loop.create_connection(
                    lambda: connection,
                    address.host,
                    address.port,
                    ssl=self._ensure_tls_context() if address.is_tls else None,
                )
        except TimeoutError as error:
            raise ConnectFailed("timed out", timed_out=True) from error
        except OSError as error:  # ssl.SSLError is one
            raise ConnectFailed(reason_of(error)) from error
        finally:
            if not connection.is_connected:  # otherwise `connection_lost` does this
                self.connection_closed()
        return connection

    async def _wait_for_connection(self, loop: asyncio.AbstractEventLoop, deadline_s: float) -> None:
        """Wait until a connection becomes free or is closed."""
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout_at(deadline_s):
                await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if not waiter.cancelled():
                self._wake()  # we had already been woken: pass the turn on
            if isinstance(error, TimeoutError):
                raise AnswerTimeout("no connection to it became free") from error
            raise

    def _drop_idle(self) -> bool:
        """Close an idle connection to make room for a new one. False if there is none."""
        for idle in self._idle.values():
            while idle:
                connection = idle.popleft()
                makes_room = connection.is_usable(0.0)  # a lost one no longer counts as open
                connection.discard()
                if makes_room:
                    return True
        return False

    def _ensure_tls_context(self) -> ssl.SSLContext:
        if self._tls_context is None:
            self._tls_context = ssl.create_default_context()
            self._tls_context.set_alpn_protocols(["http/1.1"])
        return self._tls_context

    # Called by connections.

    def release(self, connection: _Connection) -> None:
        """Return a connection to the pool after a whole answer."""
        self._idle.setdefault(connection.origin, deque()).append(connection)
        if self._sweep_timer is None:
            self._sweep_timer = connection.loop.call_later(self._limits.keepalive_s, self._sweep, connection.loop)
        self._wake()

    def connection_closed(self) -> None:
        self._open -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close connections that have been idle for too long."""
        since_s = loop.time() - self._limits.keepalive_s
        for origin, idle in list(self._idle.items()):
            while idle and not idle[0].is_usable(since_s):
                idle.popleft().discard()
            if not idle:
                del self._idle[origin]
        is_empty = not self._idle
        self._sweep_timer = None if is_empty else loop.call_later(self._limits.keepalive_s, self._sweep, loop)


class _Connection(asyncio.Protocol):
    """One connection: sends a request, and turns the bytes that come back into an `HttpAnswer`."""

    def __init__(self, client: HttpClient, origin: tuple[str, int, bool], loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self.loop = loop
        self.is_connected = False
        self._client = client
        self._transport: Any = None
        self._idle_since_s: float | None = None
        self._answer: HttpAnswer | None = None  # of the current call, if any
        self._head: asyncio.Future[HttpAnswer] | None = None
        self._headers_bytes = 0
        self._overhead_bytes = 0  # bytes since the last body byte: heads, trailers, chunk headers
        self._parser: Any = None
        self._ends_with_connection = False

    def is_usable(self, since_s: float) -> bool:
        return self._idle_since_s is not None and self._idle_since_s > since_s and not self.is_closing()

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    async def send(self, request: list[bytes], deadline_s: float) -> HttpAnswer:
        """Send the request, and wait for the answer's head. Cancelling the wait closes the connection."""
        self._idle_since_s = None
        answer = self._answer = HttpAnswer(self)
        head: asyncio.Future[HttpAnswer] = self.loop.create_future()
        self._head = head
        self._overhead_bytes = self._headers_bytes = 0
        self._parser = httptools.HttpResponseParser(self)
        if self.is_closing():
            self.abort(Disconnected("closed before it was asked"))
        else:
            self._transport.writelines(request)
        timer = self.loop.call_at(deadline_s, self._expire, head)
        try:
            return await head
        except asyncio.CancelledError:
            answer.close()  # not the connection, which may already serve another call if the answer is whole
            raise
        finally:
            timer.cancel()

    def _expire(self, head: asyncio.Future[HttpAnswer]) -> None:
        if not head.done():
            self.abort(AnswerTimeout("the answer did not begin in time"))

    def abort(self, error: HttpError) -> None:
        self._fail(error)
        self._transport.abort()

    def discard(self) -> None:
        """Close an idle connection that is no longer needed."""
        self._idle_since_s = None
        self._transport.close()

    def pause(self) -> None:
        self._transport.pause_reading()

    def resume(self) -> None:
        # The answer may have ended in the meantime, and the connection with it.
        if not self.is_closing():
            self._transport.resume_reading()

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.is_connected = True

    def connection_lost(self, exc: Exception | None) -> None:
        answer = self._answer
        if exc is None and answer is not None and self._head is None and self._ends_with_connection:
            self._answer = None
            answer.end()
        elif answer is not None and answer.status:
            self._fail(AnswerBroken("the connection ended in the middle of the answer"))
        else:
            self._fail(Disconnected("the connection ended before the answer"))
        self._idle_since_s = None
        self._client.connection_closed()

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # data without a request
            self._transport.abort()
            return
        self._overhead_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort(AnswerBroken("this is not HTTP"))
            return
        # The parser buffers an incomplete header or trailer, so its size is checked here. `on_header` measures complete headers.
        if self._overhead_bytes > _HEAD_BYTES_MAX:
            self.abort(AnswerBroken("too much of the answer is headers, trailers or chunk framing"))

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._answer is None:
            raise httptools.HttpParserError("an answer that nobody asked for")
        self._ends_with_connection = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is None or self._answer is None:
            return  # a trailer
        self._headers_bytes += len(name) + len(value)
        if len(self._answer.headers) >= _HEADERS_MAX or self._headers_bytes > _HEAD_BYTES_MAX:
            raise httptools.HttpParserError("the answer's head is too large")
        lower = name.lower()
        if lower in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False
        self._answer.headers.append((lower, value))

    def on_headers_complete(self) -> None:
        answer, head = self._answer, self._head
        if answer is None or head is None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            return
        answer.status = status
        if status in (204, 304):
            self._ends_with_connection = False
        self._head = None
        if not head.done():
            head.set_result(answer)

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes = 0
        if self._answer is not None:
            self._answer.feed(body)

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None:
            return
        if not answer.status:  # 100 Continue, 103 Early Hints: the real answer is still to come
            answer.headers.clear()
            return
        self._answer = None
        answer.end()
        if self._transport.get_write_buffer_size():  # answered early: it may never read the rest
            self._transport.abort()
        elif self._parser.should_keep_alive() and not self.is_closing():
            self._idle_since_s = self.loop.time()
            self._client.release(self)
        else:
            self._transport.close()

    def _fail(self, error: HttpError) -> None:
        answer, head = self._answer, self._head
        self._answer = self._head = None
        if head is not None and not head.done():
            head.set_exception(error)
        elif answer is not None:
            answer.end(error)


def reason_of(error: OSError) -> str:
    """Why no connection was made, without the address: where a model is hosted is not the client's business."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message.partition(',')[0]}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or 'no reason given').replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return "its host name cannot be resolved"
    return os.strerror(error.errno).lower() if error.errno else "no address of its host accepts connections"
