"""Complete answers: status line, headers and body in one write.

ASGI gives a server the head of an answer first and its body later, and uvicorn writes each separately, with two system calls
and two regular expressions per header. A sender that already has the complete answer uses a single message, `WHOLE_ANSWER`,
which `Exchange` knows.
"""

from __future__ import annotations

import string
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gateway.pipeline.exchange import WHOLE_ANSWER, Message

# Up to this size, appending the body to the head is cheaper than a vectored write.
_COPIED_BYTES_MAX: Final = 32 * 1024
# The characters of names and values (RFC 9110). A line break in either would start another header or answer.
_NAME_CHARACTERS: Final = (string.ascii_lowercase + string.digits + "!#$%&'*+-.^_`|~").encode()
_VALUE_CHARACTERS: Final = bytes([*b"\t", *range(0x20, 0x7F), *range(0x80, 0x100)])
# These say where an answer ends, so only the server may set them.
_FRAMING: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})


class WholeAnswers:
    """Runs `application` for the request of `cycle`, accepting complete answers besides the messages that uvicorn knows."""

    __slots__ = ("_application", "_cycle")

    def __init__(self, application: Any, cycle: RequestResponseCycle) -> None:
        self._application = application
        self._cycle = cycle

    def __call__(self, scope: Any, receive: Any, _: Any) -> Awaitable[None]:
        served: Awaitable[None] = self._application(scope, receive, self._send)
        return served

    def _send(self, message: Any) -> Awaitable[None]:
        return self._answer(message) if message["type"] == WHOLE_ANSWER else self._cycle.send(message)

    async def _answer(self, message: Message) -> None:
        """Does what uvicorn's `send` does for a head and then a body."""
        cycle, body = self._cycle, message["body"]
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        if cycle.response_started or not is_plain(message["headers"]):
            await self._answer_in_two(message)
            return
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        head = _head(message["status"], [*cycle.default_headers, *message["headers"]], len(body), cycle.keep_alive)
        if cycle.scope["method"] == "HEAD":
            cycle.transport.write(head)
        elif len(body) <= _COPIED_BYTES_MAX:
            cycle.transport.write(head + body)
        else:
            cycle.transport.writelines((head, body))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    async def _answer_in_two(self, message: Message) -> None:
        """Leave it to uvicorn, which raises for an invalid answer."""
        body = message["body"]
        headers = [*message["headers"], (b"content-length", b"%d" % len(body))]
        await self._cycle.send({"type": "http.response.start", "status": message["status"], "headers": headers})
        await self._cycle.send({"type": "http.response.body", "body": body, "more_body": False})


def is_plain(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the headers can be written unchanged: none contains a line break, or says where the answer ends."""
    names = [name for name, _ in headers]
    values = [value for _, value in headers]
    if b"".join(names).translate(None, _NAME_CHARACTERS) or b"".join(values).translate(None, _VALUE_CHARACTERS):
        return False
    return _FRAMING.isdisjoint(names)


def _head(status: int, headers: Sequence[tuple[bytes, bytes]], body_bytes: int, keep_alive: bool) -> bytes:
    lines = [name + b": " + value for name, value in headers]
    lines.append(b"content-length: %d" % body_bytes)
    if not keep_alive:
        lines.append(b"connection: close")
    return STATUS_LINE[status] + b"\r\n".join(lines) + b"\r\n\r\n"
