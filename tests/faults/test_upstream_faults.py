"""A provider that misbehaves: each fault is an error answer or one typed exception, in bounded time and memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.upstream.direct import DirectLane, DirectLimits
from gateway.upstream.port import (
    Deployment,
    ProtocolName,
    Timeouts,
    UpstreamAnswer,
    UpstreamBroken,
    UpstreamCall,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.fake_provider import FakeProvider
from tests.ports import free_port

KEY = "sk-canary-0123456789"


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as running:
        yield running


@pytest.fixture
async def lane() -> AsyncIterator[DirectLane]:
    direct_lane = DirectLane(environment={}, limits=DirectLimits(answer_bytes_max=1_000_000))
    yield direct_lane
    await direct_lane.close()


def deployment(base: str, protocol: ProtocolName = "chat") -> Deployment:
    name = "anthropic" if protocol == "messages" else "openai"
    return Deployment("m/0", "m", name, "gpt-x", "auto", {"api_base": base, "api_key": KEY}, {})


def call(protocol: ProtocolName = "chat", *, stream: bool = False, **timeouts: int) -> UpstreamCall:
    body = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
    return UpstreamCall(protocol, body, stream, timeouts=Timeouts(**timeouts))


async def read(answer: UpstreamAnswer) -> bytes:
    assert answer.pieces is not None
    return b"".join([piece async for piece in answer.pieces])


STATUSES = [400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503, 529]


@pytest.mark.parametrize("protocol", ["chat", "messages"])
@pytest.mark.parametrize("form", ["json", "none", "html", "text", "string", "detail"])
@pytest.mark.parametrize("status", STATUSES)
async def test_provider_error_is_returned_in_the_shape_of_the_protocol(
    provider: FakeProvider, lane: DirectLane, status: int, form: Any, protocol: ProtocolName
) -> None:
    provider.script(status=status, body=form, message="the cause", retry_after="7")
    answer = await lane.send(deployment(provider.url, protocol), call(protocol))
    assert answer.status == status
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-upstream-request-id"] == "req_1"
    body = json.loads(answer.body)
    assert (body.get("type") == "error") == (protocol == "messages")
    assert isinstance(body["error"]["type"], str)
    message = body["error"]["message"]
    assert "the cause" in message or (form in ("none", "html") and str(status) in message)
    assert "<" not in message


async def test_provider_error_of_the_same_protocol_is_unchanged(provider: FakeProvider, lane: DirectLane) -> None:
    provider.script(status=400, message="prompt is too long: 9 tokens > 8 maximum", code="context_length_exceeded")
    answer = await lane.send(deployment(provider.openai_url), call(stream=True))
    assert answer.pieces is None
    assert json.loads(answer.body) == {
        "error": {
            "message": "prompt is too long: 9 tokens > 8 maximum",
            "type": "invalid_request_error",
            "param": None,
            "code": "context_length_exceeded",
        }
    }


async def test_provider_key_is_removed_from_error_messages(provider: FakeProvider, lane: DirectLane) -> None:
    provider.script(status=401, message=f"Incorrect API key provided: {KEY}")
    answer = await lane.send(deployment(provider.openai_url), call())
    assert KEY not in answer.body.decode()
    assert json.loads(answer.body)["error"]["message"] == "Incorrect API key provided: ***"


@pytest.mark.parametrize(
    ("script", "stream"),
    [
        ({"reset": "before_headers"}, False),
        ({"reset": "before_headers"}, True),
        ({"raw": ""}, False),
        ({"raw": "HTTP/1.1 200"}, False),
    ],
)
async def test_connection_lost_before_the_answer_raises_broken_without_bytes(
    provider: FakeProvider, lane: DirectLane, script: dict[str, Any], stream: bool
) -> None:
    provider.script(**script)
    with pytest.raises(UpstreamBroken) as caught:
        await lane.send(deployment(provider.openai_url), call(stream=stream))
    assert not caught.value.bytes_received


@pytest.mark.parametrize(
    "script",
    [
        {"cut_after": 10},
        {"reset_after": 10},
        {"content_length": 10_000},
        {"raw": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"},
        {"raw": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n"},
        {"raw": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello  "},
        {"raw": "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhello"},
        {"raw": "SSH-2.0-OpenSSH_9.6\r\n"},
        {"header_flood": 100_000},
        {"header_bytes": 1_000_000},
        {"gzip_bomb_bytes": 200_000_000},
        {"raw": "HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 5\r\n\r\nhello"},
        {"raw": "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"},
        {"raw": "HTTP/1.1 204 No Content\r\n\r\n"},
        {"raw": "HTTP/1.1 600 Beyond\r\nContent-Length: 2\r\n\r\n{}"},
        {"raw": "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>log in</h>"},
        {"text": "x" * 1_100_000},
    ],
    ids=lambda script: "-".join(f"{name}={str(value)[:60]!r}" for name, value in script.items()),
)
async def test_malformed_answer_raises_broken(provider: FakeProvider, lane: DirectLane, script: dict[str, Any]) -> None:
    provider.script(**script)
    with pytest.raises(UpstreamBroken) as caught:
        await lane.send(deployment(provider.openai_url), call())
    assert caught.value.bytes_received
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize("status", ["204 No Content", "205 Reset Content"])
async def test_stream_with_a_no_content_status_raises_broken(
    provider: FakeProvider, lane: DirectLane, status: str
) -> None:
    provider.script(raw=f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(UpstreamBroken, match="no answer in it") as caught:
        await lane.send(deployment(provider.openai_url), call(stream=True))
    assert caught.value.bytes_received


async def test_gzip_bomb_takes_less_than_20_mb_of_memory(provider: FakeProvider, lane: DirectLane) -> None:
    provider.script(gzip_bomb_bytes=200_000_000)
    tracemalloc.start()
    with pytest.raises(UpstreamBroken, match="larger than"):
        await lane.send(deployment(provider.openai_url), call())
    _now, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20_000_000


async def test_unrequested_gzip_answer_is_decompressed(provider: FakeProvider, lane: DirectLane) -> None:
    provider.script(gzip=True)
    answer = await lane.send(deployment(provider.openai_url), call())
    assert json.loads(answer.body)["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error":' * 900 + '"x"' + "}" * 900, "The provider answered 500 Internal Server Error."),
        ("<" * 100_000, "The provider answered 500 Internal Server Error. It said: <<<"),
        ("<title>Down</title>" + "<script>" * 50_000, "The provider answered 500 Internal Server Error. It said: Down"),
    ],
    ids=["nested", "open", "scripts"],
)
async def test_malformed_error_body_yields_a_readable_message(
    provider: FakeProvider, lane: DirectLane, body: str, message: str
) -> None:
    head = f"HTTP/1.1 500 Internal Server Error\r\nContent-Length: {len(body)}\r\n\r\n"
    provider.script(raw=head + body)
    answer = await lane.send(deployment(provider.openai_url), call())
    assert answer.status == 500
    assert json.loads(answer.body)["error"]["message"].startswith(message)


def gzip_reply(body: bytes, length: int) -> str:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n"
    return head + body.decode("latin-1")


async def test_bytes_after_the_end_of_a_gzip_answer_are_ignored(provider: FakeProvider, lane: DirectLane) -> None:
    provider.script(raw=gzip_reply(gzip.compress(b'{"id": "m"}') + b"and on" * 10_000, 10_000_000))
    assert (await lane.send(deployment(provider.openai_url), call())).body == b'{"id": "m"}'


async def test_truncated_gzip_answer_raises_broken(provider: FakeProvider, lane: DirectLane) -> None:
    part = gzip.compress(b'{"id": "m"}')[:-8]
    provider.script(raw=gzip_reply(part, len(part)))
    with pytest.raises(UpstreamBroken, match="damaged"):
        await lane.send(deployment(provider.openai_url), call())


@pytest.mark.parametrize(
    ("script", "begins"),
    [
        ({"cut_after": 2, "tokens": 5}, True),
        ({"reset_after": 2, "tokens": 5, "chunk_delay_ms": 5}, True),
        ({"cut_after": 0, "tokens": 5}, True),
        ({"reset": "after_headers"}, False),
    ],
)
async def test_broken_stream_yields_what_arrived_and_then_raises(
    provider: FakeProvider, lane: DirectLane, script: dict[str, Any], begins: bool
) -> None:
    provider.script(**script)
    came = b""
    with pytest.raises(UpstreamBroken) as caught:  # noqa: PT012 - the pieces before the fault are part of what is tested
        answer = await lane.send(deployment(provider.openai_url), call(stream=True))
        assert answer.pieces is not None
        async for piece in answer.pieces:
            came += piece
    assert caught.value.bytes_received
    assert came.startswith(b"data: ") or not begins
    assert b"[DONE]" not in came


@pytest.mark.parametrize("script", [{"garbage_after": 1}, {"no_done": True}])
async def test_stream_with_invalid_events_is_passed_on(
    provider: FakeProvider, lane: DirectLane, script: dict[str, Any]
) -> None:
    provider.script(**script)
    answer = await lane.send(deployment(provider.openai_url), call(stream=True))
    assert (await read(answer)).startswith(b"data: ")


async def test_redirects_are_not_followed(provider: FakeProvider, lane: DirectLane) -> None:
    async with FakeProvider() as elsewhere:
        provider.script(redirect=f"{elsewhere.url}/v1/chat/completions")
        with pytest.raises(UpstreamBroken, match="never followed"):
            await lane.send(deployment(provider.openai_url), call())
        assert elsewhere.requests == []


async def test_proxy_environment_variables_are_ignored(
    provider: FakeProvider, lane: DirectLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await lane.send(deployment(provider.openai_url), call())).status == 200


# ── timeouts ──


@pytest.mark.parametrize(
    "base",
    [f"http://127.0.0.1:{free_port()}/v1", "http://no-such-host.invalid/v1", "ftp://127.0.0.1/v1", "nonsense"],
    ids=["closed", "unknown", "ftp", "nonsense"],  # the port is another in every process that collects the tests
)
async def test_failed_connection_raises_unreachable_without_address_or_key(lane: DirectLane, base: str) -> None:
    with pytest.raises(UpstreamUnreachable) as caught:
        await lane.send(deployment(base), call())
    assert not caught.value.bytes_received
    assert "127.0.0.1" not in str(caught.value)
    assert KEY not in str(caught.value)


async def test_tls_to_a_plain_server_raises_unreachable(provider: FakeProvider, lane: DirectLane) -> None:
    with pytest.raises(UpstreamUnreachable):
        await lane.send(deployment(provider.openai_url.replace("http://", "https://")), call())


async def test_missing_first_byte_raises_timeout_and_disconnects(provider: FakeProvider, lane: DirectLane) -> None:
    provider.script(delay_ms=60_000)
    with pytest.raises(UpstreamTimeout) as caught:
        await lane.send(deployment(provider.openai_url), call(first_byte_ms=80))
    assert (caught.value.status, caught.value.bytes_received) == (504, False)
    await provider.until(lambda: provider.last.disconnected_s is not None)


@pytest.mark.parametrize("timeouts", [{"idle_ms": 80}, {"total_ms": 200}])
async def test_stalled_stream_raises_timeout_and_disconnects(
    provider: FakeProvider, lane: DirectLane, timeouts: dict[str, Any]
) -> None:
    provider.script(stall_after=2, tokens=5)
    answer = await lane.send(deployment(provider.openai_url), call(stream=True, **timeouts))
    with pytest.raises(UpstreamTimeout) as caught:
        await read(answer)
    assert caught.value.bytes_received
    await provider.until(lambda: provider.last.disconnected_s is not None)


async def test_stalled_buffered_answer_raises_timeout(provider: FakeProvider, lane: DirectLane) -> None:
    provider.script(stall_after=20)
    with pytest.raises(UpstreamTimeout):
        await lane.send(deployment(provider.openai_url), call(total_ms=100))


async def test_slow_stream_within_the_idle_timeout_completes(provider: FakeProvider, lane: DirectLane) -> None:
    provider.script(tokens=6, chunk_delay_ms=60)
    answer = await lane.send(deployment(provider.openai_url), call(stream=True, idle_ms=300))
    assert b"[DONE]" in await read(answer)


async def test_slow_reader_causes_backpressure_and_no_idle_timeout(provider: FakeProvider, lane: DirectLane) -> None:
    # 80 MB, far more than the buffers of both kernels and ours hold together
    provider.script(text=" ".join(["x" * 20_000] * 4_000), ignore_max=True)
    answer = await lane.send(deployment(provider.openai_url), call(stream=True, idle_ms=100))
    assert answer.pieces is not None
    await anext(answer.pieces)
    before = -1
    while provider.last.content_events != before:
        before = provider.last.content_events
        await asyncio.sleep(0.3)  # three times the idle timeout, in which nobody waits for bytes
    assert before < 4_000
    await anext(answer.pieces)
    assert answer.close is not None
    await answer.close()


# ── closing and cancelling ──


async def test_closing_an_answer_closes_the_connection_within_a_second(
    provider: FakeProvider, lane: DirectLane
) -> None:
    provider.script(tokens=1_000, ignore_max=True, chunk_delay_ms=5)
    answer = await lane.send(deployment(provider.openai_url), call(stream=True))
    assert answer.pieces is not None
    assert answer.close is not None
    await anext(answer.pieces)
    left_s = asyncio.get_running_loop().time()
    await answer.close()
    await answer.close()
    with pytest.raises(StopAsyncIteration):
        await anext(answer.pieces)
    await provider.until(lambda: provider.last.disconnected_s is not None)
    assert provider.last.disconnected_s is not None
    assert provider.last.disconnected_s - left_s < 1.0


@pytest.mark.parametrize("script", [{"delay_ms": 60_000}, {"stall_after": 10}])
async def test_cancelling_a_call_closes_the_connection(
    provider: FakeProvider, lane: DirectLane, script: dict[str, Any]
) -> None:
    provider.script(**script)
    sending = asyncio.create_task(lane.send(deployment(provider.openai_url), call()))
    await provider.until(lambda: provider.concurrent == 1)
    await asyncio.sleep(0.05)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await provider.until(lambda: provider.concurrent == 0)
    assert (await lane.send(deployment(provider.openai_url), call())).status == 200


async def test_no_connection_is_left_open_after_any_outcome(provider: FakeProvider, lane: DirectLane) -> None:
    for script in ({"cut_after": 1}, {"status": 500}, {"reset": "before_headers"}, {}, {"delay_ms": 300}):
        for stream in (False, True):
            provider.script(**script)
            try:
                answer = await lane.send(deployment(provider.openai_url), call(stream=stream, first_byte_ms=100))
                if answer.pieces is not None:
                    await read(answer)
            except UpstreamError:
                continue
    await provider.until(lambda: provider.concurrent == 0)
