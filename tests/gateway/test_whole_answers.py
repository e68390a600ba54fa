"""A whole answer in one write: the same bytes that uvicorn sends for the same answer in two messages."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import uvloop

from gateway.pipeline.exchange import WHOLE_ANSWER, Exchange
from gateway.server.whole_answers import is_plain
from tests.attacks.raw_http import RawReply, connect, read_reply, request
from tests.bare_server import bare_server

BODY = b'{"answer": "a ferry leaves at 9:40"}'
HEADERS = [(b"content-type", b"application/json"), (b"x-request-id", b"r-1"), (b"x-note", b"tab\tand \xe9")]
LARGE = b"x" * 1_000_000
UNREAD = b"x" * 6_000_000  # more than the buffers of both sockets hold
CLOSE = b"connection: close"
Application = Callable[[Any, Any, Any], Awaitable[None]]


def answering(
    body: bytes = BODY, headers: Sequence[tuple[bytes, bytes]] = HEADERS, status: int = 200, *, in_two: bool = False
) -> Application:
    """Reads the request, and answers it in one message or, as any other ASGI application, in two."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange({**scope, "extensions": {}} if in_two else scope, receive, send)
        await exchange.read_body(1_000_000)
        await exchange.answer(status, headers, body)

    return application


async def reply_to(application: Application, sent: bytes, seconds: float = 5.0) -> RawReply:
    """The reply to `sent`, sent at once; its last request should ask to close the connection."""

    def talk(url: str) -> RawReply:
        with connect(url) as connection:
            connection.sendall(sent)
            return read_reply(connection, seconds)

    async with bare_server(application) as url:
        return await asyncio.to_thread(talk, url)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes sent by each system call of the event loop; the clients of these tests use `sendall` instead."""
    sent: list[int] = []
    send = socket.socket.send

    def counted(sender: socket.socket, data: Any, *flags: int) -> int:
        size = send(sender, data, *flags)
        if sender.family == socket.AF_INET:  # other sockets wake the loop up
            sent.append(size)
        return size

    monkeypatch.setattr(socket.socket, "send", counted)
    return sent


async def test_answer_is_sent_in_one_write(writes: list[int]) -> None:
    reply = await reply_to(answering(), request(headers=[CLOSE]))
    assert writes == [len(reply.raw)]
    writes.clear()
    reply = await reply_to(answering(in_two=True), request(headers=[CLOSE]))
    assert len(writes) == 2, "the fixture counts writes"


@pytest.mark.parametrize(
    "sent",
    [
        request(headers=[CLOSE]),
        request(version=b"HTTP/1.0"),
        request(b"HEAD", headers=[CLOSE], body=b"", length=False),
        request(headers=[CLOSE, b"expect: 100-continue"]),
        request() + request(b"GET", b"/other", body=b"", length=False) + request(headers=[CLOSE]),
    ],
    ids=["close", "http-1.0", "head", "100-continue", "pipelined"],
)
@pytest.mark.parametrize("status", [200, 402, 503])
async def test_bytes_are_the_same_as_from_uvicorn(sent: bytes, status: int) -> None:
    whole = await reply_to(answering(status=status), sent)
    in_two = await reply_to(answering(status=status, in_two=True), sent)
    assert whole.raw == in_two.raw
    assert whole.is_closed
    assert in_two.is_closed
    assert set(whole.statuses) == {status}


@pytest.mark.parametrize("body", [b"", b"x" * 32_768, b"x" * 32_769, LARGE], ids=len)
async def test_body_of_any_size_arrives_whole(body: bytes) -> None:
    reply = await reply_to(answering(body), request() + request(headers=[CLOSE]))
    assert [answer.body == body for answer in reply.answers] == [True, True]
    assert reply.is_closed


@pytest.mark.parametrize("header", [(b"connection", b"close"), (b"content-length", b"36"), (b"X-Upper", b"1")])
async def test_headers_with_meaning_to_uvicorn_give_the_same_bytes(header: tuple[bytes, bytes]) -> None:
    whole = await reply_to(answering(headers=[header]), request(headers=[CLOSE]))
    in_two = await reply_to(answering(headers=[header], in_two=True), request(headers=[CLOSE]))
    assert whole.raw == in_two.raw
    assert whole.statuses == [200]


@pytest.mark.parametrize(
    "header",
    [
        (b"x-tag", b"a\r\nset-cookie: b=c"),
        (b"x-tag", b"a\nset-cookie: b=c"),
        (b"x-tag", b"a\rb"),
        (b"x-tag", b"a\x00b"),
        (b"x-tag", b"a\x7fb"),
        (b"x-tag", b"\r\n\r\nHTTP/1.1 200 OK"),
        (b"x-tag: b\r\nx-other", b"a"),
        (b"x tag", b"a"),
        (b"x-tag:", b"a"),
    ],
)
async def test_header_injection_is_never_sent(header: tuple[bytes, bytes]) -> None:
    assert not is_plain([*HEADERS, header])
    reply = await reply_to(answering(headers=[*HEADERS, header]), request())
    assert reply.raw == b"", "as with uvicorn, the connection ends without an answer"
    assert reply.is_closed


def test_header_value_may_contain_any_byte_but_control_characters() -> None:
    plain = [value for value in range(256) if is_plain([(b"x-a", bytes([value]))])]
    assert plain == [0x09, *range(0x20, 0x7F), *range(0x80, 0x100)]


def test_header_name_must_be_a_lower_case_token() -> None:
    plain = bytes(value for value in range(256) if is_plain([(b"x" + bytes([value]), b"")]))
    assert plain == b"!#$%&'*+-.0123456789^_`abcdefghijklmnopqrstuvwxyz|~"


async def test_receive_returns_disconnect_once_answered() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope, receive, send)
        await exchange.read_body(1000)
        listening = asyncio.create_task(receive())
        await asyncio.sleep(0)
        await exchange.answer(200, HEADERS, BODY)
        received.append(await asyncio.wait_for(listening, 0.3))

    received: list[Any] = []
    await reply_to(application, request(), 0.5)
    assert received == [{"type": "http.disconnect"}], "while the connection is still open"


async def test_answer_without_reading_the_body_sends_no_100_continue() -> None:
    async def refuse_unread(scope: Any, receive: Any, send: Any) -> None:
        await Exchange(scope, receive, send).answer(413, HEADERS, BODY)
        assert await receive() == {"type": "http.disconnect"}

    sent = request(headers=[b"expect: 100-continue", b"content-length: 1000"], body=b"", length=False)
    reply = await reply_to(refuse_unread, sent, 0.5)
    assert reply.raw.startswith(b"HTTP/1.1 413 ")
    assert reply.raw.endswith(BODY)


def test_next_pipelined_answer_waits_until_the_last_one_was_read() -> None:
    """Otherwise a client that sends requests without reading answers would fill our memory.

    Tested on the gateway's event loop: asyncio's own forgets to wait in Python before 3.12.9 and 3.13.2 (CVE-2024-12254).
    """
    answers = Counter[str]()
    begun = threading.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        answers["begun"] += 1
        if answers["begun"] == 2:
            begun.set()
        await answering(UNREAD)(scope, receive, send)
        answers["given"] += 1

    def talk(url: str) -> RawReply:
        with connect(url) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            connection.sendall(request() * 2 + request(headers=[CLOSE]))
            assert begun.wait(5.0)
            time.sleep(0.2)
            assert answers == {"begun": 2, "given": 1}
            return read_reply(connection, 60.0)

    async def serve_and_talk() -> RawReply:
        async with bare_server(application) as url:
            return await asyncio.to_thread(talk, url)

    reply = uvloop.run(serve_and_talk())
    assert [len(answer.body) for answer in reply.answers] == [len(UNREAD)] * 3
    assert answers == {"begun": 3, "given": 3}


async def test_nothing_is_sent_to_a_disconnected_client(writes: list[int]) -> None:
    gone = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope, receive, send)
        await exchange.read_body(1000)
        while (await receive())["type"] != "http.disconnect":
            pass
        await exchange.answer(200, HEADERS, BODY)
        gone.set()

    def leave(url: str) -> None:
        with connect(url) as connection:
            connection.sendall(request())

    async with bare_server(application) as url:
        await asyncio.to_thread(leave, url)
        await asyncio.wait_for(gone.wait(), 5.0)
    assert writes == []


async def test_second_answer_raises_and_is_not_sent() -> None:
    caught: list[Exception] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        message = {"type": WHOLE_ANSWER, "status": 200, "headers": HEADERS, "body": BODY}
        await send(message)
        try:
            await send(message)
        except RuntimeError as error:
            caught.append(error)

    reply = await reply_to(application, request(headers=[CLOSE]))
    assert reply.statuses == [200]
    assert len(caught) == 1
