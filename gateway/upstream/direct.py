"""The direct lane: sends the client's request to a provider that speaks the client's protocol, and returns its bytes.

Each call in flight uses one pooled connection, to the deployment's own origin and nowhere else: no redirects, no proxies
from the environment, no cookies, no compression.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.errors import BadRequest
from gateway.upstream.answer_headers import answer_headers
from gateway.upstream.answer_stream import AnswerStream, encoding_of, read_whole
from gateway.upstream.buffered_as_stream import events_of
from gateway.upstream.credentials import redact, secrets_of
from gateway.upstream.error_bodies import convert_error
from gateway.upstream.http_client import (
    AnswerTimeout,
    ClientLimits,
    ConnectFailed,
    Disconnected,
    HttpAnswer,
    HttpClient,
    HttpError,
)
from gateway.upstream.http_request import Address
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
from gateway.upstream.providers import api_base, credential, url_of
from gateway.upstream.request import request_body, request_headers
from gateway.upstream.timeouts import effective_timeouts

_URLS_MAX: Final = 4_096
# Passed on, these statuses would look like an empty answer.
_BODYLESS_STATUSES: Final = frozenset({204, 205})
_EVENTS: Final = "text/event-stream"
_NOT_JSON: Final = frozenset({"speech", "transcriptions"})  # audio, and transcripts as plain text


@dataclass(frozen=True, slots=True)
class DirectLimits:
    """Bounds of the lane. The defaults allow 1,000 calls in flight, and keep any single answer from filling the memory."""

    connections: int = 1_000  # at the same time, over all providers
    keepalive_s: float = 15.0  # shorter than providers' usual idle timeout, so that they do not close first
    answer_bytes_max: int = 128 * 2**20  # enough for 2,048 embeddings of 3,072 dimensions as text
    error_bytes_max: int = 2**20


class DirectLane:
    """`environment` holds the providers' variables (OPENAI_API_KEY, …)."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        limits: DirectLimits = DirectLimits(),
    ) -> None:
        self._environment = environment
        self._limits = limits
        self._client = HttpClient(ClientLimits(limits.connections, limits.keepalive_s))
        self._addresses: dict[str, Address] = {}

    async def send(self, deployment: Deployment, call: UpstreamCall) -> UpstreamAnswer:
        """One attempt. Raises `UpstreamError`."""
        timeouts = effective_timeouts(deployment, call)
        key = credential(deployment, self._environment, call.client_credential)
        response = await self._open(deployment, call, timeouts, key)
        try:
            return await self._answer(response, deployment, call, timeouts, key)
        except BaseException:
            # However the wait ends, even by cancellation, no connection with half an answer may return to the pool.
            response.close()
            raise

    async def close(self) -> None:
        await self._client.close()

    # ── opening ──

    async def _open(
        self, deployment: Deployment, call: UpstreamCall, timeouts: Timeouts, key: str | None
    ) -> HttpAnswer:
        address = self._address(deployment, call.protocol)
        headers = request_headers(deployment, call, key)
        body = _payload(deployment, call, headers)
        send_observer = call.send_observer
        if send_observer is not None:
            send_observer.on_waiting()
        try:
            return await self._client.post(
                address,
                headers,
                body,
                connect_s=timeouts.connect_ms / 1000,
                answer_s=timeouts.first_byte_ms / 1000,
                before_send=None if send_observer is None else send_observer.before_send,
            )
        except ConnectFailed as error:
            if error.timed_out:
                raise UpstreamTimeout(f"No connection to the provider within {timeouts.connect_ms} ms.") from error
            raise UpstreamUnreachable(f"The provider could not be reached ({error}).") from error
        except AnswerTimeout as error:
            raise UpstreamTimeout(
                f"The provider did not answer within {timeouts.first_byte_ms} ms: {error}."
            ) from error
        except Disconnected as error:
            raise UpstreamBroken("The provider closed the connection before it answered.") from error
        except HttpError as error:
            raise UpstreamBroken(f"The provider's answer is not proper HTTP ({error}).", bytes_received=True) from error
        except ValueError as error:
            raise UpstreamUnreachable(f"The request to model {deployment.name!r} cannot be sent: {error}.") from error

    def _address(self, deployment: Deployment, protocol: ProtocolName) -> Address:
        base = api_base(deployment, self._environment)
        if base is None:
            raise UpstreamUnreachable(
                f"Model {deployment.name!r} has no api_base, and {deployment.provider} no known one."
            )
        url = url_of(base, protocol)
        address = self._addresses.get(url)
        if address is None:
            try:
                address = Address.of(url)
            except ValueError:
                # Do not show the address: where a model is hosted is not the client's business.
                message = f"The api_base of model {deployment.name!r} is not an http(s) address."
                raise UpstreamUnreachable(message) from None
            if len(self._addresses) >= _URLS_MAX:
                self._addresses.clear()
            self._addresses[url] = address
        return address

    # ── answering ──

    async def _answer(
        self,
        response: HttpAnswer,
        deployment: Deployment,
        call: UpstreamCall,
        timeouts: Timeouts,
        key: str | None,
    ) -> UpstreamAnswer:
        def clean(text: str) -> str:
            return redact(text, secrets_of(deployment, key))

        status = response.status
        if status < 200 or 300 <= status < 400:
            response.close()
            raise UpstreamBroken(f"The provider answered {status}; redirects are never followed.")
        if status > 599:  # HTTP has no such status, and our own server cannot send one
            response.close()
            raise UpstreamBroken(f"The provider answered {status}, which is not a status of HTTP.", bytes_received=True)
        if status in _BODYLESS_STATUSES:
            response.close()
            raise UpstreamBroken(f"The provider answered {status}, which has no answer in it.", bytes_received=True)
        headers = answer_headers(response.headers)
        is_stream = status < 400 and call.stream
        if is_stream and not _content_type(response).endswith(("json", "html")):
            stream = _open_stream(response, timeouts, timeouts.idle_ms / 1000)
            headers.setdefault("content-type", _EVENTS)
            return UpstreamAnswer(status, headers, deployment, "direct", pieces=stream, close=stream.close, clean=clean)
        body = await self._body(response, timeouts, is_error=status >= 400)
        if status >= 400:
            headers["content-type"] = "application/json"
            body = clean(convert_error(call.protocol, status, body).decode(errors="replace")).encode()
        elif call.protocol not in _NOT_JSON and body.lstrip()[:1] not in (b"{", b"["):
            message = f"The provider answered {status} with something that is not JSON."
            raise UpstreamBroken(message, bytes_received=True)
        if is_stream:
            headers["content-type"] = _EVENTS
            pieces = _single_piece(events_of(call.protocol, body))
            return UpstreamAnswer(status, headers, deployment, "direct", pieces=pieces, clean=clean)
        return UpstreamAnswer(status, headers, deployment, "direct", body=body, clean=clean)

    async def _body(self, response: HttpAnswer, timeouts: Timeouts, *, is_error: bool) -> bytes:
        bytes_max = self._limits.error_bytes_max if is_error else self._limits.answer_bytes_max
        body = response.read_if_complete() if encoding_of(response) is None else None
        if body is not None:
            if len(body) <= bytes_max:
                return body
            if is_error:
                return b""
            raise UpstreamBroken(f"The answer is larger than {bytes_max:,} bytes.", bytes_received=True)
        # A model may think before it answers, and its provider may send the headers before that.
        idle_s = max(timeouts.idle_ms, timeouts.first_byte_ms) / 1000
        stream = _open_stream(response, timeouts, idle_s)
        try:
            return await read_whole(stream, bytes_max)
        except UpstreamError:
            if is_error:
                return b""  # the error status stands even if its body breaks off
            raise


def _open_stream(response: HttpAnswer, timeouts: Timeouts, idle_s: float) -> AnswerStream:
    loop = asyncio.get_running_loop()
    return AnswerStream(response, loop=loop, idle_s=idle_s, deadline_s=loop.time() + timeouts.total_ms / 1000)


async def _single_piece(events: bytes) -> AsyncIterator[bytes]:
    yield events


def _content_type(response: HttpAnswer) -> str:
    header = response.header(b"content-type") or b"application/octet-stream"
    return header.partition(b";")[0].decode("latin-1").strip().lower()


def _payload(deployment: Deployment, call: UpstreamCall, headers: dict[str, str]) -> bytes:
    body = request_body(deployment, call)
    if call.protocol != "transcriptions":
        try:
            return orjson.dumps(body)
        except orjson.JSONEncodeError:  # it writes 254 levels, and reads 1,024
            raise BadRequest.too_deep() from None
    boundary = secrets.token_hex(16)
    headers["content-type"] = f"multipart/form-data; boundary={boundary}"
    return _multipart_body(body, boundary)


def _multipart_body(body: Mapping[str, Any], boundary: str) -> bytes:
    """A transcription request as a form. `file` is (name, content, content type); lists repeat their field."""
    pieces: list[bytes] = []
    for name, value in body.items():
        if name == "file":
            file_name, content, content_type = value
            pieces += _multipart_part(
                boundary, "file", content, f'; filename="{_quoted_name(file_name)}"', content_type
            )
            continue
        field = f"{name}[]" if isinstance(value, list) else name
        for item in value if isinstance(value, list) else [value]:
            pieces += _multipart_part(boundary, field, item.encode() if isinstance(item, str) else orjson.dumps(item))
    return b"".join([*pieces, f"--{boundary}--\r\n".encode()])


def _multipart_part(
    boundary: str, name: str, content: bytes, extra_parameters: str = "", content_type: str = ""
) -> list[bytes]:
    kind = f"content-type: {content_type}\r\n" if content_type.isprintable() and content_type else ""
    head = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="{_quoted_name(name)}"{extra_parameters}\r\n{kind}\r\n'
    )
    return [head.encode(), content, b"\r\n"]


def _quoted_name(name: str) -> str:
    """Escape a name as browsers do (HTML's `multipart/form-data encoding algorithm`)."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
