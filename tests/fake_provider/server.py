"""The fake provider: OpenAI's and Anthropic's endpoints on a real socket, correct until it is told to misbehave.

async with FakeProvider() as provider:
    provider.script(status=503, times=2)
    … call provider.openai_url or provider.anthropic_url …
    assert provider.last.body["max_tokens"] == 20
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from aiohttp import web

from tests.fake_provider import faults
from tests.fake_provider.answer import Answer, Count, answer, count_words, usage_of
from tests.fake_provider.directive import Directive, changed, of_request
from tests.fake_provider.protocols import ENDS_WITH_DONE, FORMS, count_tokens_whole, embeddings_whole
from tests.fake_provider.received import Received

BODY_BYTES_MAX = 256 * 1024 * 1024
Predicate = Callable[[Received], bool]
_Response = TypeVar("_Response", bound=web.StreamResponse)


@dataclass(slots=True)
class _Script:
    directive: Directive
    left: int | None  # None: for ever
    when: Predicate | None


class FakeProvider:
    """A provider to call. `requests` and `peak` say what it saw; `script` says what it shall do next."""

    def __init__(self, *, port: int = 0, host: str = "127.0.0.1", count: Count = count_words) -> None:
        self.requests: list[Received] = []
        self.concurrent = 0
        self.peak = 0  # the most requests that were open at one time
        self.models = ["fake-model", "fake-small"]
        self._scripts: list[_Script] = []
        self._count = count
        self._host = host
        self._port = port
        self._changed = asyncio.Event()
        self._released = asyncio.Event()
        self._runner: web.AppRunner | None = None

    # ── life ──

    async def start(self) -> FakeProvider:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("GET", "/__requests", self._show_requests)
        app.router.add_route("DELETE", "/__requests", self._forget)
        app.router.add_route("POST", "/__script", self._take_script)
        app.router.add_route("*", "/{path:.*}", self._serve)
        # A handler that is cancelled when its client leaves is how a disconnect is noticed at once.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        assert site._server is not None
        self._port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        return self

    async def stop(self) -> None:
        self._released.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> FakeProvider:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ── what tests use ──

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    @property
    def openai_url(self) -> str:
        """As `api_base` of an OpenAI model."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        """As `api_base` of an Anthropic model."""
        return self.url

    @property
    def last(self) -> Received:
        return self.requests[-1]

    def script(
        self,
        directive: Directive | None = None,
        /,
        *,
        times: int | None = 1,
        when: Predicate | None = None,
        **fields: Any,
    ) -> None:
        """Tell what to do with the next `times` requests (None: all) for which `when` holds. Scripts are used in order."""
        self._scripts.append(_Script(changed(directive or Directive(), fields), times, when))

    def clear(self) -> None:
        """Forget what was scripted and seen."""
        self.requests.clear()
        self._scripts.clear()
        self.peak = self.concurrent

    async def until(self, holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Wait until something that this provider sees is so: a request came, a client left."""
        async with asyncio.timeout(timeout_s):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    # ── serving ──

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        received, directive = await self._receive(request)
        self.concurrent += 1
        self.peak = max(self.peak, self.concurrent)
        try:
            return await self._answer(request, received, directive)
        except (asyncio.CancelledError, ConnectionError):
            received.disconnected_s = asyncio.get_running_loop().time()
            raise
        finally:
            self.concurrent -= 1
            self._changed.set()

    async def _receive(self, request: web.Request) -> tuple[Received, Directive]:
        raw = await request.read()
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            body = {}
        peer = request.transport.get_extra_info("peername") if request.transport else None
        received = Received(
            method=request.method,
            path=request.path,
            query=request.query_string,
            headers={name.lower(): value for name, value in request.headers.items()},
            raw=raw,
            body=body if isinstance(body, dict) else {},
            model="",
            at_s=asyncio.get_running_loop().time(),
            peer=peer,
        )
        self.requests.append(received)
        self._changed.set()
        directive, received.model = of_request(self._scripted(received), received.headers, received.body)
        return received, directive

    def _scripted(self, received: Received) -> Directive:
        for script in self._scripts:
            if script.left != 0 and (script.when is None or script.when(received)):
                if script.left is not None:
                    script.left -= 1
                return script.directive
        return Directive()

    async def _answer(self, request: web.Request, received: Received, directive: Directive) -> web.StreamResponse:
        await asyncio.sleep(directive.delay_ms / 1000)
        endpoint = request.path.removeprefix("/").removeprefix("v1/")
        if directive.reset == "before_headers":
            faults.reset(request)
            return web.Response()
        if directive.raw is not None:
            await faults.send_raw(request, directive.raw)
            return web.Response()
        if directive.redirect is not None:
            return web.Response(status=307, headers={"location": directive.redirect})
        if directive.status >= 400:
            response = faults.error_response(directive, anthropic="messages" in endpoint)
            response.headers.update(self._headers(directive))
            return self._answered(response, received)
        if endpoint not in FORMS:
            return self._answered(self._other(endpoint, directive, received), received)
        provider_answer = answer(directive, received.model, received.body, self._count)
        received.output_tokens = provider_answer.output_tokens
        if received.body.get("stream") and not directive.ignore_stream:
            return await self._stream(request, received, directive, endpoint, provider_answer)
        return await self._whole(request, received, directive, FORMS[endpoint].whole(provider_answer, directive))

    def _other(self, endpoint: str, directive: Directive, received: Received) -> web.Response:
        headers = self._headers(directive)
        if endpoint == "embeddings":
            whole = embeddings_whole(directive, received.body, received.model, self._count)
        elif endpoint == "messages/count_tokens":
            whole = count_tokens_whole(received.body, self._count)
        elif endpoint == "models":
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in self.models]
            whole = {"object": "list", "data": data}
        elif endpoint == "audio/speech":
            return web.Response(body=b"ID3" + b"\0" * 500, content_type="audio/mpeg", headers=headers)
        elif endpoint == "audio/transcriptions":
            whole = {"text": "the time of people"}
        elif endpoint == "images/generations":
            usage = usage_of(directive, {"input_tokens": 3, "output_tokens": 7})
            whole = {"created": 0, "data": [{"b64_json": "aGVsbG8="}], **({"usage": usage} if usage else {})}
        elif endpoint == "moderations":
            whole = {"id": "modr-fake", "model": received.model, "results": [{"flagged": False, "categories": {}}]}
        elif endpoint == "rerank":
            whole = {"id": "rr-fake", "results": [{"index": 0, "relevance_score": 0.9}], "meta": {}}
        else:
            error = {"error": {"message": f"unknown path {endpoint}", "type": "invalid_request_error"}}
            return web.json_response(error, status=404)
        return web.json_response(whole, headers=headers)

    async def _whole(
        self, request: web.Request, received: Received, directive: Directive, whole: dict[str, Any]
    ) -> web.StreamResponse:
        data = json.dumps(whole, ensure_ascii=False).encode()
        headers = self._headers(directive)
        headers["content-type"] = directive.content_type or "application/json"
        if directive.gzip_bomb_bytes or directive.gzip:
            headers["content-encoding"] = "gzip"
            bomb = (
                faults.gzip_bomb(directive.gzip_bomb_bytes)
                if directive.gzip_bomb_bytes
                else iter([gzip.compress(data)])
            )
            return await self._write_all(request, received, headers, bomb)
        limits = [directive.cut_after, directive.reset_after, directive.stall_after]
        if directive.content_length is None and directive.reset is None and limits == [None, None, None]:
            return self._answered(web.Response(body=data, headers=headers), received)
        headers["content-length"] = str(directive.content_length or len(data))
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(data[: min((limit for limit in limits if limit is not None), default=0)])
        await self._break(request, directive, stall=directive.stall_after is not None)
        return response

    async def _write_all(
        self, request: web.Request, received: Received, headers: dict[str, str], pieces: Iterator[bytes]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for piece in pieces:
            if piece:
                await response.write(piece)
                await asyncio.sleep(0)
        await response.write_eof()
        return self._answered(response, received)

    async def _stream(
        self, request: web.Request, received: Received, directive: Directive, endpoint: str, provider_answer: Answer
    ) -> web.StreamResponse:
        headers = self._headers(directive)
        headers["content-type"] = directive.content_type or "text/event-stream; charset=utf-8"
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if directive.reset == "after_headers":
            faults.reset(request)
            return response
        await asyncio.sleep(directive.first_chunk_delay_ms / 1000)
        for is_content, event in FORMS[endpoint].events(provider_answer, directive, received.body):
            if is_content and await self._disturb(request, received, directive, response):
                return response
            await self._write_event(response, directive, event)
            if is_content:
                received.content_events += 1
                await asyncio.sleep(directive.chunk_delay_ms / 1000)
        if endpoint in ENDS_WITH_DONE and not directive.no_done:
            await self._write_event(response, directive, "data: [DONE]")
        await response.write_eof()
        return self._answered(response, received)

    async def _disturb(
        self, request: web.Request, received: Received, directive: Directive, response: web.StreamResponse
    ) -> bool:
        """The faults that come before the next content event. True: the answer is over."""
        sent = received.content_events
        if sent == 0 and directive.big_event_bytes:
            await self._write_event(response, directive, 'data: {"x": "' + "x" * directive.big_event_bytes + '"}')
        if sent == directive.garbage_after:
            await self._write_event(response, directive, 'data: {"choices": [{"delta": {"content": "cut he')
        if sent == directive.error_after:
            anthropic = "messages" in request.path
            event = json.dumps(faults.error_object(changed(directive, {"status": 529}), anthropic))
            await self._write_event(response, directive, ("event: error\n" if anthropic else "") + "data: " + event)
            await response.write_eof()
            return True
        if sent in (directive.cut_after, directive.reset_after, directive.stall_after):
            await self._break(request, directive, stall=sent == directive.stall_after)
            return True
        return False

    async def _break(self, request: web.Request, directive: Directive, *, stall: bool) -> None:
        if stall:
            await self._released.wait()
        if directive.reset_after is not None:
            faults.reset(request)
        elif request.transport is not None:
            request.transport.close()

    async def _write_event(self, response: web.StreamResponse, directive: Directive, event: str) -> None:
        end = "\r\n\r\n" if directive.crlf else "\n\n"
        data = (event.replace("\n", "\r\n") if directive.crlf else event).encode() + end.encode()
        if not directive.split_bytes:
            await response.write(data)
            return
        for start in range(0, len(data), directive.split_bytes):
            await response.write(data[start : start + directive.split_bytes])
            await asyncio.sleep(0.001)  # long enough for the piece to leave as a packet of its own

    def _headers(self, directive: Directive) -> dict[str, str]:
        headers = {
            "x-request-id": f"req_{len(self.requests)}",
            "openai-processing-ms": "12",
            "openai-organization": "fake-org",
            "x-ratelimit-remaining-requests": "99",
            "x-ratelimit-remaining-tokens": "9999",
        }
        if directive.retry_after and directive.status < 400:
            headers["retry-after"] = directive.retry_after
        if directive.cookie:
            headers.update({"set-cookie": "session=secret; Path=/", "x-accel-buffering": "no", "x-internal": "1"})
        headers.update({f"x-flood-{i}": "y" for i in range(directive.header_flood)})
        if directive.header_bytes:
            headers["x-big"] = "z" * directive.header_bytes
        return headers

    def _answered(self, response: _Response, received: Received) -> _Response:
        received.answered_s = asyncio.get_running_loop().time()
        return response

    # ── told by another process ──

    async def _show_requests(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"peak": self.peak, "open": self.concurrent, "requests": [item.as_json() for item in self.requests]}
        )

    async def _forget(self, _request: web.Request) -> web.Response:
        self.clear()
        return web.json_response({})

    async def _take_script(self, request: web.Request) -> web.Response:
        """`{"times": 1, "model": "only this model", …directive}`; `times` null: for ever."""
        script = await request.json()
        times = script.pop("times", 1)
        model = script.pop("model_is", None)
        self.script(times=times, when=(lambda item: item.body.get("model") == model) if model else None, **script)
        return web.json_response({})
