"""One HTTP exchange over ASGI: request bytes in, response bytes out, and the notice that the client has disconnected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from time import perf_counter_ns
from typing import Any, Final

from gateway.errors import BadRequest
from policies.values import value_class

Message = MutableMapping[str, Any]


@value_class
class SentAnswer:
    """A whole response as it was sent; for a stream, all of its events."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


# A longer stream is not kept, because it would stay in memory until its end. No text answer of a model comes near this.
KEPT_BYTES_MAX: Final = 16 * 1024 * 1024
Keeper = Callable[[SentAnswer], Awaitable[None]]


class ClientDisconnected(Exception):
    """The client closed the connection before the request was read."""


# The scope key under which our own server (gateway/server/connections.py) puts the `ClientPresence` of the connection.
PRESENCE: Final = "farebox.presence"
# An ASGI message that carries a whole response: status, headers and body. A server that accepts it lists it in its extensions.
WHOLE_ANSWER: Final = "farebox.response.whole"


class ClientPresence:
    """The client of one connection, as the server sees it. At most one exchange at a time listens for its disconnect (`on_disconnect`)."""

    __slots__ = ("is_over", "on_disconnect")

    def __init__(self) -> None:
        self.is_over = False
        self.on_disconnect: Callable[[], None] | None = None

    def end(self) -> None:
        is_first, self.is_over = not self.is_over, True
        if is_first and self.on_disconnect is not None:
            self.on_disconnect()


class Exchange:
    """Headers are decoded once, with lower-case names. The first of a repeated header counts; the guard refuses repeated credentials."""

    def __init__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        self.began_ns = perf_counter_ns()
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        # httptools keeps trailing whitespace, which is not part of the value (RFC 9110).
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1").rstrip(" \t") for name, value in reversed(scope["headers"])
        }
        self.is_answered = False
        self.sent_answer: SentAnswer | None = None  # None for streams
        self.is_client_gone = False
        self._outlives_client = False
        self._keepers: list[Keeper] = []
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._head: tuple[int, tuple[tuple[bytes, bytes], ...]] = (0, ())
        self._receive = receive
        self._send = send
        self._answers_whole = WHOLE_ANSWER in scope.get("extensions", ())
        self._presence: ClientPresence | None = scope.get(PRESENCE)
        self._on_disconnect: Callable[[], None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def read_body(self, bytes_max: int) -> bytes:
        """Raises `BadRequest` (413) as soon as the body is larger than `bytes_max`."""
        if self.headers.get("content-encoding", "identity") != "identity":
            raise BadRequest("Send the body without content-encoding.", status=415, code="unsupported_encoding")
        content_length = self.headers.get("content-length", "")
        if content_length.isdigit() and int(content_length) > bytes_max:
            raise BadRequest.too_large(bytes_max)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > bytes_max:
                raise BadRequest.too_large(bytes_max)
            more = bool(message.get("more_body"))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def keep_answer(self, keeper: Keeper) -> None:
        """`keeper` gets the whole answer before the client has received all of it, so that even an immediate retry finds it."""
        self._keepers.append(keeper)

    def outlive_client(self) -> None:
        """Do not cancel the call when the client disconnects: its answer will be asked for again."""
        self._outlives_client = True

    def watch(self, task: asyncio.Task[Any]) -> None:
        """From now on, cancel `task` when the client disconnects; `is_client_gone` tells it why."""
        if self._outlives_client:
            return

        def cancel_call() -> None:
            self.is_client_gone = True
            task.cancel()

        presence = self._presence
        if presence is None:  # not our own server: a disconnect only shows when we read on
            self._watcher = asyncio.create_task(self._wait_for_disconnect(cancel_call))
        elif presence.is_over:
            cancel_call()
        else:
            self._on_disconnect = presence.on_disconnect = cancel_call

    def unwatch(self) -> None:
        # This exchange may still be closing its upstream while the next request on the connection is already watched.
        if self._presence is not None and self._presence.on_disconnect is self._on_disconnect:
            self._presence.on_disconnect = None
        self._on_disconnect = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _wait_for_disconnect(self, cancel_call: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        cancel_call()

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.is_answered = True
        header_list = list(headers)
        if self._keepers:
            self._head = (status, tuple(header_list))
        await self._send({"type": "http.response.start", "status": status, "headers": header_list})

    async def write(self, data: bytes, more: bool = True) -> None:
        if self._keepers:
            self._pieces.append(data)
            self._pieces_bytes += len(data)
            if self._pieces_bytes > KEPT_BYTES_MAX:
                self._keepers.clear()
                self._pieces.clear()
            elif not more:
                await self._keep(SentAnswer(*self._head, b"".join(self._pieces)))
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def abort(self, data: bytes) -> None:
        """Write the last bytes of an answer that failed, which is not kept."""
        self._keepers.clear()
        await self.write(data, more=False)

    async def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        sent = SentAnswer(status, tuple(headers), body)
        if self._keepers:
            await self._keep(sent)
        if self._answers_whole:
            self.is_answered = True
            await self._send({"type": WHOLE_ANSWER, "status": status, "headers": sent.headers, "body": body})
        else:
            await self.start(status, [*sent.headers, (b"content-length", str(len(body)).encode())])
            await self.write(body, more=False)
        self.sent_answer = sent

    async def _keep(self, sent: SentAnswer) -> None:
        keepers, self._keepers = self._keepers, []
        for keeper in keepers:
            await keeper(sent)
