"""One exchange over ASGI: the size of the body is limited while it is read, and a disconnect is noticed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.pipeline.exchange import KEPT_BYTES_MAX, PRESENCE, ClientDisconnected, ClientPresence, Exchange, SentAnswer


class Client:
    """Plays the server's side of ASGI: `messages` come in, `sent` went out."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.sent: list[dict[str, Any]] = []
        self.received = 0
        self.leaves = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if self.messages:
            self.received += 1
            return self.messages.pop(0)
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def exchange(self, *headers: tuple[bytes, bytes]) -> Exchange:
        return Exchange({"path": "/x", "query_string": b"a=1", "headers": list(headers)}, self.receive, self.send)


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_body_is_joined_from_its_parts() -> None:
    assert await Client(part(b"abc", False)).exchange().read_body(3) == b"abc"
    client = Client(part(b"ab", True), part(b"", True), part(b"c", False))
    assert await client.exchange().read_body(3) == b"abc"
    assert await Client(part(b"", False)).exchange().read_body(3) == b""


async def test_body_with_too_large_content_length_is_413_and_not_read() -> None:
    client = Client(part(b"x" * 10, False))
    with pytest.raises(BadRequest) as caught:
        await client.exchange((b"content-length", b"10")).read_body(9)
    assert (caught.value.status, client.received) == (413, 0)


@pytest.mark.parametrize("messages", [[part(b"x" * 10, False)], [part(b"x" * 5, True), part(b"x" * 5, True)]])
async def test_body_above_the_limit_without_content_length_is_413(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(BadRequest) as caught:
        await Client(*messages).exchange().read_body(9)
    assert caught.value.status == 413


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"identity, gzip"])
async def test_compressed_body_is_415(encoding: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        await Client(part(b"x", False)).exchange((b"content-encoding", encoding)).read_body(9)
    assert caught.value.status == 415
    identity = Client(part(b"x", False)).exchange((b"content-encoding", b"identity"))
    assert await identity.read_body(9) == b"x"


async def test_disconnect_while_reading_the_body_raises_client_gone() -> None:
    for messages in ([{"type": "http.disconnect"}], [part(b"a", True), {"type": "http.disconnect"}]):
        with pytest.raises(ClientDisconnected):
            await Client(*messages).exchange().read_body(9)


async def test_disconnect_while_waiting_cancels_the_call() -> None:
    client = Client(part(b"", False))
    exchange = client.exchange()
    work = asyncio.create_task(asyncio.sleep(60))
    exchange.watch(work)
    await asyncio.sleep(0)
    assert not work.done()
    client.leaves.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert exchange.is_client_gone


async def test_disconnect_after_unwatch_does_not_cancel() -> None:
    client = Client(part(b"", False))
    exchange = client.exchange()
    work = asyncio.create_task(asyncio.sleep(0.02))
    exchange.watch(work)
    exchange.unwatch()
    client.leaves.set()
    await work
    assert not exchange.is_client_gone


def on_connection(presence: ClientPresence) -> Exchange:
    return Exchange({"path": "/x", "headers": [], PRESENCE: presence}, None, None)


async def test_presence_reports_a_disconnect_before_and_after_watching() -> None:
    presence = ClientPresence()
    exchange = on_connection(presence)
    work = asyncio.create_task(asyncio.sleep(60))
    exchange.watch(work)
    presence.end()
    with pytest.raises(asyncio.CancelledError):
        await work
    late = asyncio.create_task(asyncio.sleep(60))
    on_connection(presence).watch(late)
    with pytest.raises(asyncio.CancelledError):
        await late
    assert exchange.is_client_gone


async def test_late_unwatch_keeps_the_next_request_of_the_connection_watched() -> None:
    presence = ClientPresence()
    first, second = on_connection(presence), on_connection(presence)
    done, work = (asyncio.create_task(asyncio.sleep(seconds)) for seconds in (0, 60))
    first.watch(done)
    second.watch(work)
    first.unwatch()
    presence.end()
    with pytest.raises(asyncio.CancelledError):
        await work
    await done
    assert (first.is_client_gone, second.is_client_gone) == (False, True)
    second.unwatch()
    assert presence.on_disconnect is None


async def test_trailing_whitespace_of_a_header_is_stripped() -> None:
    exchange = Client().exchange((b"x-workflow-intent", b"summarize \t"), (b"x-workflow-step", b"a b "))
    assert exchange.headers == {"x-workflow-intent": "summarize", "x-workflow-step": "a b"}


async def test_answer_sets_content_length_and_the_first_of_repeated_headers_wins() -> None:
    client = Client()
    exchange = client.exchange((b"x-a", b"1"), (b"x-a", b"2"), (b"x-b", b"\xe9"))
    assert exchange.headers == {"x-a": "1", "x-b": "é"}
    assert (exchange.path, exchange.query, exchange.is_answered) == ("/x", b"a=1", False)
    await exchange.answer(404, [(b"a", b"b")], b"body")
    assert exchange.is_answered
    assert client.sent == [
        {"type": "http.response.start", "status": 404, "headers": [(b"a", b"b"), (b"content-length", b"4")]},
        {"type": "http.response.body", "body": b"body", "more_body": False},
    ]


async def streamed(exchange: Exchange, *pieces: bytes, broken: bool = False) -> list[SentAnswer]:
    """The answers kept after a stream of these pieces."""
    kept_answers: list[SentAnswer] = []

    async def keep(answered: SentAnswer) -> None:
        kept_answers.append(answered)

    exchange.keep_answer(keep)
    await exchange.start(200, [(b"content-type", b"text/event-stream")])
    for piece in pieces:
        await exchange.write(piece)
    await (exchange.abort(b"end") if broken else exchange.write(b"end", more=False))
    return kept_answers


async def test_stream_is_kept_whole_unless_broken_or_too_large() -> None:
    client = Client()
    kept_answers = await streamed(client.exchange(), b"a", b"b")
    assert [answer.body for answer in kept_answers] == [b"abend"]
    assert kept_answers[0].headers == ((b"content-type", b"text/event-stream"),)
    assert await streamed(Client().exchange(), b"a", broken=True) == []
    endless = Client()
    assert await streamed(endless.exchange(), b"x" * KEPT_BYTES_MAX, b"y") == []
    assert sum(len(message.get("body", b"")) for message in endless.sent) == KEPT_BYTES_MAX + 4


async def test_call_that_outlives_its_client_is_not_cancelled() -> None:
    client = Client(part(b"", False))
    exchange = client.exchange()
    await exchange.read_body(1)
    exchange.outlive_client()
    task = asyncio.current_task()
    assert task is not None
    exchange.watch(task)
    client.leaves.set()
    await asyncio.sleep(0.01)
    assert not exchange.is_client_gone
