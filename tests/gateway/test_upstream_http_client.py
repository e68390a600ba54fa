"""The direct lane's HTTP client against a server of raw bytes: requests, answers, and the reuse of connections."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.upstream.http_client import (
    AnswerBroken,
    AnswerTimeout,
    ClientLimits,
    ConnectFailed,
    Disconnected,
    HttpAnswer,
    HttpClient,
    reason_of,
)
from gateway.upstream.http_request import Address
from tests.ports import free_port

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Provider:
    """Answers each request of a connection with the next of `answers`; keeps what it was sent."""

    def __init__(self, *answers: bytes, hangs_up: bool = False) -> None:
        self.answers = list(answers)
        self.hangs_up = hangs_up
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0) if self.answers else OK
                writer.write(answer)
                await writer.drain()
                if self.hangs_up:
                    break
        writer.close()
        self.closed.set()


@contextlib.asynccontextmanager
async def running(provider: Provider, serve: Serve | None = None) -> AsyncIterator[Address]:
    serving: set[asyncio.Task[None]] = set()

    async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await (serve or provider.serve)(reader, writer)
        except asyncio.CancelledError:
            writer.close()

    server = await asyncio.start_server(tracked, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield Address.of(f"http://{host}:{port}/v1/chat/completions?a=1")
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    http_client = HttpClient(ClientLimits(connections=2, keepalive_s=5.0))
    yield http_client
    await http_client.close()


async def post(client: HttpClient, address: Address, body: bytes = b"{}", answer_s: float = 10.0) -> HttpAnswer:
    return await client.post(address, {"content-type": "application/json"}, body, connect_s=5.0, answer_s=answer_s)


async def whole(answer: HttpAnswer) -> bytes:
    return b"".join([piece async for piece in pieces_of(answer)])


async def pieces_of(answer: HttpAnswer) -> AsyncIterator[bytes]:
    while piece := await answer.readany():
        yield piece


async def test_request_bytes_are_minimal_http(client: HttpClient) -> None:
    provider = Provider()
    async with running(provider) as address:
        answer = await post(client, address, b'{"a": 1}')
        assert (answer.status, await whole(answer)) == (200, b"ok")
    host = f"host: 127.0.0.1:{address.port}".encode()
    assert provider.requests == [
        b"POST /v1/chat/completions?a=1 HTTP/1.1\r\n" + host + b"\r\ncontent-type: application/json\r\n"
        b'content-length: 8\r\n\r\n{"a": 1}'
    ]


async def test_connection_is_reused_after_a_complete_answer(client: HttpClient) -> None:
    provider = Provider()
    async with running(provider) as address:
        for _ in range(3):
            assert await whole(await post(client, address)) == b"ok"
    assert (provider.connections, len(provider.requests)) == (1, 3)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok, and more than it said",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_connection_is_not_reused_after_close_extra_bytes_or_http_1_0(client: HttpClient, answer: bytes) -> None:
    provider = Provider(answer)
    async with running(provider) as address:
        assert await whole(await post(client, address)) == b"ok"
        assert await whole(await post(client, address)) == b"ok"
    assert provider.connections == 2


async def test_idle_connection_closed_by_the_provider_is_not_reused(client: HttpClient) -> None:
    provider = Provider(hangs_up=True)
    async with running(provider) as address:
        await whole(await post(client, address))
        await provider.closed.wait()
        await asyncio.sleep(0.05)
        assert await whole(await post(client, address)) == b"ok"
    assert provider.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK,
    ],
)
async def test_chunks_trailers_and_informational_answers_are_read(client: HttpClient, answer: bytes) -> None:
    async with running(Provider(answer)) as address:
        response = await post(client, address)
        assert (response.status, await whole(response)) == (200, b"ok")
        assert not {b"link", b"x-trailer"} & {name for name, _ in response.headers}


@pytest.mark.parametrize(
    ("framing", "endless"),
    [
        (b"0\r\nx-trailer: ", b"a" * 10_000),
        (b"0\r\n", b"x-trailer: a\r\n" * 1_000),
        (b"0\r\n", b"n" * 10_000),
        (b"3;", b"extension" * 1_000),
    ],
)
async def test_chunk_framing_and_trailers_are_bounded(client: HttpClient, framing: bytes, endless: bytes) -> None:
    """The parser buffers a trailer until it is complete."""

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n" + framing)
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(endless)
                await writer.drain()
        writer.close()

    async with running(Provider(), pour) as address:
        answer = await post(client, address)
        with pytest.raises(AnswerBroken, match="chunk framing"):
            await whole(answer)
        assert await settled(client)


async def test_answer_before_the_request_was_fully_sent_closes_the_connection(client: HttpClient) -> None:
    """The provider may never read the rest of the request, which would block the next one on the connection."""
    connections = 0

    async def refuse_unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.Event().wait()

    async with running(Provider(), refuse_unread) as address:
        for _ in range(2):
            answer = await post(client, address, b"x" * 20_000_000)
            assert (answer.status, await whole(answer)) == (413, b"no")
        assert connections == 2
        assert await settled(client)


async def test_answer_without_length_ends_with_its_connection(client: HttpClient) -> None:
    async with running(Provider(b"HTTP/1.1 200 OK\r\n\r\nok", hangs_up=True)) as address:
        assert await whole(await post(client, address)) == b"ok"


async def test_answer_shorter_than_its_length_is_broken(client: HttpClient) -> None:
    async with running(Provider(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", hangs_up=True)) as address:
        answer = await post(client, address)
        with pytest.raises(AnswerBroken, match="middle"):
            await whole(answer)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", Disconnected),
        (b"HTTP/1.1 200 OK\r\ncontent-le", Disconnected),
        (b"garbage\r\n\r\n", AnswerBroken),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", AnswerBroken),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok", AnswerBroken),
        (b"HTTP/1.1 200 OK\r\nx-big: " + b"a" * 100_000 + b"\r\n\r\n", AnswerBroken),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1_000 + b"\r\n", AnswerBroken),
    ],
)
async def test_malformed_or_missing_answer_is_an_error(
    client: HttpClient, answer: bytes, error: type[Exception]
) -> None:
    async with running(Provider(answer, hangs_up=True)) as address:
        with pytest.raises(error):
            await post(client, address)
        assert client._open == 0 or await settled(client)


async def settled(client: HttpClient) -> bool:
    await asyncio.sleep(0.05)
    return client._open == 0


async def test_answer_that_does_not_start_in_time_is_a_timeout(client: HttpClient) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with running(Provider(), silent) as address:
        with pytest.raises(AnswerTimeout):
            await post(client, address, answer_s=0.05)
        assert await settled(client)


async def test_refused_connection_is_a_connect_failure() -> None:
    client = HttpClient()
    async with running(Provider()) as address:
        pass
    with pytest.raises(ConnectFailed):
        await post(client, address)
    assert client._open == 0


async def test_failed_connect_says_why_without_the_address(client: HttpClient) -> None:
    for url, why in {
        f"http://127.0.0.1:{free_port()}/": "connection refused",
        "http://no-such-host.invalid/": "its host name cannot be resolved",
    }.items():
        with pytest.raises(ConnectFailed) as caught:
            await post(client, Address.of(url))
        assert str(caught.value) == why


def test_refused_certificate_is_named_without_the_host() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "Hostname mismatch, certificate is not valid for 'models.internal'."
    assert reason_of(error) == "its certificate is not accepted: Hostname mismatch"


async def test_failed_tls_handshake_is_a_connect_failure_and_certificates_are_verified(client: HttpClient) -> None:
    async with running(Provider()) as address:
        with pytest.raises(ConnectFailed):  # the server does not speak TLS
            await post(client, Address.of(f"https://127.0.0.1:{address.port}/"), answer_s=5.0)
    assert client._ensure_tls_context().verify_mode is ssl.CERT_REQUIRED
    assert client._ensure_tls_context().check_hostname
    assert await settled(client)


async def test_calls_above_the_connection_limit_wait_and_reuse_connections(client: HttpClient) -> None:
    provider = Provider()
    async with running(provider) as address:

        async def call() -> bytes:
            return await whole(await post(client, address))

        assert await asyncio.gather(*(call() for _ in range(20))) == [b"ok"] * 20
    assert provider.connections <= 2


async def test_idle_connection_to_another_origin_is_closed_to_make_room() -> None:
    client = HttpClient(ClientLimits(connections=1))
    async with running(Provider()) as first, running(Provider()) as second:
        assert await whole(await post(client, first)) == b"ok"
        assert await whole(await post(client, second)) == b"ok"
    await client.close()


async def test_timed_out_or_cancelled_waiter_does_not_block_others() -> None:
    client, held = HttpClient(ClientLimits(connections=1)), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        await held.wait()
        writer.write(OK)
        await reader.read()
        writer.close()

    async with running(Provider(), slow) as address:
        first = asyncio.ensure_future(post(client, address))
        await asyncio.sleep(0.02)
        second, third = (asyncio.ensure_future(post(client, address)) for _ in range(2))
        with pytest.raises(AnswerTimeout, match="free"):
            await post(client, address, answer_s=0.02)
        second.cancel()
        held.set()
        assert await whole(await first) == b"ok"
        third.cancel()
        await asyncio.gather(second, third, return_exceptions=True)
        assert (second.cancelled(), third.cancelled()) == (True, True)
        await client.close()


async def test_waiter_whose_time_is_up_as_its_turn_comes_passes_the_turn_on() -> None:
    client, loop = HttpClient(ClientLimits(connections=1)), asyncio.get_running_loop()
    async with running(Provider()) as address:
        busy = await client._acquire(address, loop, 5.0, loop.time() + 5.0)
        due_s = loop.time() + 0.05
        late = asyncio.create_task(client._acquire(address, loop, 5.0, due_s))
        await asyncio.sleep(0)
        next_in_line = asyncio.create_task(client._acquire(address, loop, 5.0, due_s + 5.0))
        await asyncio.sleep(0)
        busy._idle_since_s = loop.time()
        loop.call_at(due_s - 0.01, client.release, busy)
        time.sleep(0.1)  # so that the loop finds the turn and the end of the time together
        with pytest.raises(AnswerTimeout):
            await late
        assert await asyncio.wait_for(next_in_line, 1) is busy
        await client.close()


async def test_unread_answer_applies_backpressure_to_the_provider(client: HttpClient) -> None:
    """Unread bytes stay with the provider instead of filling our memory."""
    written = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 64000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                writer.write(b"x" * 64_000)
                await writer.drain()
                written += 64_000
        writer.close()

    async with running(Provider(), pour) as address:
        answer = await post(client, address)
        await asyncio.sleep(0.3)
        paused_at = written
        await asyncio.sleep(0.2)
        assert written == paused_at < 32_000_000
        assert len(await whole(answer)) == 64_000_000


async def test_cancelled_call_closes_its_connection(client: HttpClient) -> None:
    provider = Provider(b"")
    async with running(provider) as address:
        call = asyncio.ensure_future(post(client, address))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await settled(client)


async def test_cancelled_caller_does_not_close_a_connection_already_reused(client: HttpClient) -> None:
    """In one turn of the event loop, an answer is complete, another call takes the connection, and the first caller is cancelled."""
    async with running(Provider()) as address:
        await whole(await post(client, address))
        [connection] = client._idle[address.origin]
        is_free = asyncio.get_running_loop().create_future()

        async def next_call() -> bytes:
            await is_free
            return await whole(await post(client, address))

        following = asyncio.ensure_future(next_call())
        first = asyncio.ensure_future(post(client, address))
        received = connection.data_received

        def all_at_once(data: bytes) -> None:
            connection.data_received = received  # type: ignore[method-assign]
            is_free.set_result(None)
            received(data)
            first.cancel()

        connection.data_received = all_at_once  # type: ignore[method-assign]
        assert await following == b"ok"
        assert first.cancelled()


def forbid_now() -> None:
    raise RuntimeError("not now")


async def forbid_later() -> None:
    forbid_now()


@pytest.mark.parametrize("forbid", [forbid_now, forbid_later])
async def test_before_send_callback_can_prevent_sending(
    client: HttpClient, forbid: Callable[[], Awaitable[None] | None]
) -> None:
    provider = Provider()
    async with running(provider) as address:
        with pytest.raises(RuntimeError):
            await client.post(address, {}, b"{}", connect_s=5.0, answer_s=5.0, before_send=forbid)
        assert provider.requests == []
        assert await settled(client)
        await whole(await client.post(address, {}, b"{}", connect_s=5.0, answer_s=5.0, before_send=lambda: None))
    assert len(provider.requests) == 1


async def test_hang_up_during_the_before_send_callback_reconnects(client: HttpClient) -> None:
    provider = Provider(hangs_up=True)

    async def tell() -> None:
        await provider.closed.wait()
        await asyncio.sleep(0.05)

    async def hang_up_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        provider.connections += 1
        await reader.readuntil(b"{}")
        writer.write(OK)
        if provider.connections == 1:
            await leaving.wait()
            writer.close()
            provider.closed.set()
        await reader.read()

    leaving = asyncio.Event()
    async with running(provider, hang_up_late) as address:
        await whole(await post(client, address))
        leaving.set()
        answer = await client.post(address, {}, b"{}", connect_s=5.0, answer_s=5.0, before_send=tell)
        assert await whole(answer) == b"ok"
    assert provider.connections == 2


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\rb", "a\0b"])
async def test_header_value_with_a_line_break_is_refused(client: HttpClient, value: str) -> None:
    provider = Provider()
    async with running(provider) as address:
        with pytest.raises(ValueError, match="line break"):
            await client.post(address, {"x-a": value}, b"{}", connect_s=5.0, answer_s=5.0)
    assert provider.connections == 0


@pytest.mark.parametrize(
    ("url", "authority", "target"),
    [
        ("http://h/v1", "h", "/v1"),
        ("https://h:8443/v1?api-version=2", "h:8443", "/v1?api-version=2"),
        ("https://h", "h", "/"),
        ("http://[::1]:9/x", "[::1]:9", "/x"),
    ],
)
def test_url_gives_authority_and_target(url: str, authority: str, target: str) -> None:
    address = Address.of(url)
    assert (address.authority, address.target) == (authority, target)


@pytest.mark.parametrize("url", ["", "h/v1", "ftp://h/", "http://", "http://u:p@h/", "http://h/a b", "http://h:99999/"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"address|range"):
        Address.of(url)
