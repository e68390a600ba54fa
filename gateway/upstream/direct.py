"""The direct lane: the client's own request to a provider that speaks the client's protocol, and its bytes back.

One pooled connection per call in flight, to the deployment's own origin and nowhere else: no redirects, no proxies from
the environment, no cookies, no compression.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson
from aiohttp.connector import Connection
from yarl import URL

from gateway.upstream.answer_headers import answer_headers
from gateway.upstream.answer_stream import AnswerStream, read_at_once, read_whole
from gateway.upstream.error_bodies import error_body, shaped, without_secret
from gateway.upstream.port import (
    Departure,
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
from gateway.upstream.providers import api_base, credential, url_of
from gateway.upstream.request import HOPS_HEADER, hops_of, request_body, request_headers
from gateway.upstream.timeouts import effective_timeouts

# Whose request the task is about to send.
_DEPARTING: Final[ContextVar[Departure | None]] = ContextVar("departing", default=None)
_URLS_MAX: Final = 4_096
# aiohttp warns that larger bytes block the loop while they are written; a file object is written piece by piece.
_BYTES_AT_ONCE: Final = 2**20
_EVENTS: Final = "text/event-stream"
_NOT_JSON: Final = frozenset({"speech", "transcriptions"})  # sound, and subtitles as plain text


@dataclass(frozen=True, slots=True)
class DirectLimits:
    """Bounds of the lane. The defaults hold 1,000 calls in flight, and no answer can fill the memory."""

    connections: int = 1_000  # at one time, over all providers
    keepalive_s: float = 15.0  # shorter than the usual idle timeout of providers, so that they do not hang up first
    answer_bytes_max: int = 128 * 2**20  # 2,048 embeddings of 3,072 dimensions, as text
    error_bytes_max: int = 2**20
    event_bytes_max: int = 16 * 2**20  # an image in base64 fits
    hops_max: int = 8  # gateways in a row, after which it is a ring


class _Connector(aiohttp.TCPConnector):
    """Says when a call has its connection, be it a new one or one that was waited for: then its request leaves."""

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        departure = _DEPARTING.get()
        told = None if departure is None else departure.leaves()
        if told is not None:
            try:
                await told
            except BaseException:
                connection.close()
                raise
        return connection


class DirectLane:
    """Sends calls with aiohttp. `environment` is where providers' variables (OPENAI_API_KEY, …) are looked up."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        limits: DirectLimits = DirectLimits(),
        user_agent: str = "farebox",
    ) -> None:
        self._environment = environment
        self._limits = limits
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._client_timeouts: dict[int, aiohttp.ClientTimeout] = {}

    async def send(self, deployment: Deployment, call: UpstreamCall) -> UpstreamAnswer:
        """One attempt. Raises `UpstreamError`."""
        if hops_of(call.headers) >= self._limits.hops_max:
            return _loop_detected(deployment, call.protocol)
        timeouts = effective_timeouts(deployment, call)
        key = credential(deployment, self._environment, call.client_credential)
        response = await self._open(deployment, call, timeouts, key)
        try:
            return await self._answer(response, deployment, call, timeouts, key)
        except BaseException:
            # Whatever ends the wait (cancellation too) must not leave a connection with half an answer in the pool.
            response.close()
            raise

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # ── opening ──

    async def _open(
        self, deployment: Deployment, call: UpstreamCall, timeouts: Timeouts, key: str | None
    ) -> aiohttp.ClientResponse:
        url = self._url(deployment, call.protocol)
        headers = request_headers(deployment, call, key, self._user_agent)
        data = self._payload(deployment, call, headers)
        if call.departure is not None:
            call.departure.waits()
        _DEPARTING.set(call.departure)
        try:
            async with asyncio.timeout(timeouts.first_byte_ms / 1000):
                return await self._session_of_loop().post(
                    url, data=data, headers=headers, allow_redirects=False, timeout=self._client_timeout(timeouts)
                )
        except aiohttp.ConnectionTimeoutError as error:
            raise UpstreamTimeout(f"No connection to the provider within {timeouts.connect_ms} ms.") from error
        except TimeoutError as error:
            raise UpstreamTimeout(f"The provider did not answer within {timeouts.first_byte_ms} ms.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _failed(error) from error

    def _payload(self, deployment: Deployment, call: UpstreamCall, headers: dict[str, str]) -> Any:
        body = request_body(deployment, call)
        if call.protocol == "transcriptions":
            del headers["content-type"]  # aiohttp writes it, with the boundary of the form
            return _form(body)
        data = orjson.dumps(body)
        return data if len(data) <= _BYTES_AT_ONCE else io.BytesIO(data)

    def _url(self, deployment: Deployment, protocol: ProtocolName) -> URL:
        base = api_base(deployment, self._environment)
        if base is None:
            raise UpstreamUnreachable(
                f"Model {deployment.name!r} has no api_base, and {deployment.provider} no known one."
            )
        address = url_of(base, protocol)
        url = self._urls.get(address)
        if url is None:
            url = URL(address)
            if url.scheme not in ("http", "https") or not url.host:
                raise UpstreamUnreachable(f"The api_base of model {deployment.name!r} is not an http(s) address.")
            if len(self._urls) >= _URLS_MAX:
                self._urls.clear()
            self._urls[address] = url
        return url

    def _client_timeout(self, timeouts: Timeouts) -> aiohttp.ClientTimeout:
        # Only the connection is aiohttp's to time: its read timer would be moved at every packet.
        found = self._client_timeouts.get(timeouts.connect_ms)
        if found is None:
            found = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_ms / 1000)
            if len(self._client_timeouts) < _URLS_MAX:
                self._client_timeouts[timeouts.connect_ms] = found
        return found

    def _session_of_loop(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = _Connector(
                limit=self._limits.connections, keepalive_timeout=self._limits.keepalive_s, ttl_dns_cache=30
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            )
        return self._session

    # ── answering ──

    async def _answer(
        self,
        response: aiohttp.ClientResponse,
        deployment: Deployment,
        call: UpstreamCall,
        timeouts: Timeouts,
        key: str | None,
    ) -> UpstreamAnswer:
        status = response.status
        if status < 200 or 300 <= status < 400:
            response.close()
            raise UpstreamBroken(f"The provider answered {status}; redirects are never followed.", bytes_received=True)
        headers = answer_headers(response.raw_headers)
        if status < 400 and call.stream and not response.content_type.endswith(("json", "html")):
            idle_s = timeouts.idle_ms / 1000
            stream = self._reading(response, timeouts, idle_s, event_bytes_max=self._limits.event_bytes_max)
            headers.setdefault("content-type", _EVENTS)
            return UpstreamAnswer(status, headers, deployment, "direct", pieces=stream, close=stream.close)
        body = await self._body(response, timeouts, is_error=status >= 400)
        if status >= 400:
            headers["content-type"] = "application/json"
            body = without_secret(shaped(call.protocol, status, body), key)
        elif call.protocol not in _NOT_JSON and body.lstrip()[:1] not in (b"{", b"["):
            message = f"The provider answered {status} with something that is not JSON."
            raise UpstreamBroken(message, bytes_received=True)
        return UpstreamAnswer(status, headers, deployment, "direct", body=body)

    async def _body(self, response: aiohttp.ClientResponse, timeouts: Timeouts, *, is_error: bool) -> bytes:
        bytes_max = self._limits.error_bytes_max if is_error else self._limits.answer_bytes_max
        body = read_at_once(response)
        if body is not None and len(body) <= bytes_max:
            return body
        # A provider that thinks before it answers may do so after its headers as well.
        idle_s = max(timeouts.idle_ms, timeouts.first_byte_ms) / 1000
        stream = self._reading(response, timeouts, idle_s, event_bytes_max=None)
        try:
            return await read_whole(stream, bytes_max)
        except UpstreamError:
            if is_error:
                return b""  # an error that breaks off is still that error
            raise

    def _reading(
        self, response: aiohttp.ClientResponse, timeouts: Timeouts, idle_s: float, *, event_bytes_max: int | None
    ) -> AnswerStream:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeouts.total_ms / 1000
        return AnswerStream(response, loop=loop, idle_s=idle_s, deadline_s=deadline_s, event_bytes_max=event_bytes_max)


def _failed(error: Exception) -> UpstreamError:
    """No address in the message: where a model lives is not the client's business."""
    kind = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError):
        return UpstreamUnreachable(f"The provider could not be reached ({kind}).")
    if isinstance(error, aiohttp.ServerDisconnectedError | OSError):
        return UpstreamBroken(f"The provider closed the connection before it answered ({kind}).")
    return UpstreamBroken(f"The provider's answer is not proper HTTP ({kind}).", bytes_received=True)


def _loop_detected(deployment: Deployment, protocol: ProtocolName) -> UpstreamAnswer:
    message = f"The call passed too many gateways ({HOPS_HEADER}): the model's api_base leads back to this one."
    body = error_body(protocol, 508, message, code="loop_detected")
    return UpstreamAnswer(508, {"content-type": "application/json"}, deployment, "direct", body=body)


def _form(body: Mapping[str, Any]) -> aiohttp.FormData:
    """A transcription request as a form. `file` is (name, content, content type); lists repeat their field."""
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in body.items():
        if name == "file":
            file_name, content, content_type = value
            form.add_field("file", content, filename=file_name, content_type=content_type)
            continue
        for item in value if isinstance(value, list) else [value]:
            text = item if isinstance(item, str) else orjson.dumps(item).decode()
            form.add_field(f"{name}[]" if isinstance(value, list) else name, text)
    return form
