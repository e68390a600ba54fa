"""A response body as it arrives, piece by piece, with an idle timeout, a total deadline and bounded memory."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Final, Protocol

from gateway.upstream.http_client import HttpAnswer, HttpError
from gateway.upstream.port import UpstreamBroken, UpstreamError, UpstreamTimeout

_DECOMPRESSED_PIECE_BYTES: Final = 256 * 1024
_WINDOW_BITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class ByteReader(Protocol):
    async def readany(self) -> bytes:
        """The bytes received so far, waiting if there are none; empty at the end."""


class DecompressingReader:
    """Decompresses an answer that is compressed although we asked for identity, in pieces of bounded size."""

    def __init__(self, content: ByteReader, encoding: str) -> None:
        bits = _WINDOW_BITS.get(encoding)
        if bits is None:
            raise UpstreamBroken(
                f"The provider sent {encoding!r} content, which was not asked for.", bytes_received=True
            )
        self._content = content
        self._decompressor = zlib.decompressobj(bits)

    async def readany(self) -> bytes:
        # Read nothing after the end: zlib would keep it all, and copy what it has kept for every further piece.
        while not self._decompressor.eof:
            compressed = self._decompressor.unconsumed_tail or await self._content.readany()
            try:
                piece = self._decompressor.decompress(compressed, _DECOMPRESSED_PIECE_BYTES)
            except zlib.error as error:
                raise _damaged_error() from error
            if piece:
                return piece
            if not compressed:
                raise _damaged_error()
        return b""


def _damaged_error() -> UpstreamBroken:
    return UpstreamBroken("The provider's compressed answer is damaged.", bytes_received=True)


class Watchdog:
    """Two deadlines on one timer: the end of the answer, and the longest silence while we wait for bytes.

    Resetting a timer for every piece would cost more than the piece. Instead the timer fires at the earliest time at which
    a deadline can have passed, and checks then.
    """

    __slots__ = ("_deadline_s", "_handle", "_idle_s", "_loop", "_on_expiry", "_waiting_since_s", "expired")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, idle_s: float, deadline_s: float, on_expiry: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._idle_s = idle_s
        self._deadline_s = deadline_s
        self._on_expiry = on_expiry
        self._waiting_since_s: float | None = None
        self.expired: str | None = None
        self._handle = loop.call_at(min(loop.time() + idle_s, deadline_s), self._check)

    def start_waiting(self) -> None:
        self._waiting_since_s = self._loop.time()

    def stop_waiting(self) -> None:
        self._waiting_since_s = None

    def stop(self) -> None:
        self._handle.cancel()

    def _check(self) -> None:
        now_s = self._loop.time()
        since_s = self._waiting_since_s
        # Only time spent waiting counts: a slow client of ours does not make the provider silent.
        if since_s is not None and now_s >= since_s + self._idle_s:
            self.expired = "no byte of the answer came within the idle timeout"
        elif now_s >= self._deadline_s:
            self.expired = "the answer did not end within the total timeout"
        if self.expired:
            self._on_expiry()
            return
        self._handle = self._loop.call_at(min((since_s or now_s) + self._idle_s, self._deadline_s), self._check)


class AnswerStream:
    """The pieces of one answer. Ends with StopAsyncIteration, or raises `UpstreamError` with `bytes_received`."""

    __slots__ = ("_closed", "_reader", "_response", "_watchdog")

    def __init__(
        self, response: HttpAnswer, *, loop: asyncio.AbstractEventLoop, idle_s: float, deadline_s: float
    ) -> None:
        """`deadline_s` is on the loop's clock."""
        encoding = encoding_of(response)
        self._reader: ByteReader = response if encoding is None else DecompressingReader(response, encoding)
        self._response = response
        self._closed = False
        self._watchdog = Watchdog(loop, idle_s, deadline_s, response.close)

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> bytes:
        if self._closed:
            raise StopAsyncIteration
        self._watchdog.start_waiting()
        try:
            piece = await self._reader.readany()
        except HttpError as error:
            self.close_now()
            raise self._stream_error(error) from error
        except UpstreamError:
            self.close_now()
            raise
        self._watchdog.stop_waiting()
        if not piece:
            self.close_now()
            if self._watchdog.expired:
                raise UpstreamTimeout(f"The provider fell silent: {self._watchdog.expired}.", bytes_received=True)
            raise StopAsyncIteration
        return piece

    def close_now(self) -> None:
        """Drop the connection, unless the answer has ended and the connection is back in the pool. Idempotent."""
        self._closed = True
        self._watchdog.stop()
        self._response.close()

    async def close(self) -> None:
        self.close_now()

    def _stream_error(self, error: Exception) -> UpstreamError:
        if self._watchdog.expired:
            return UpstreamTimeout(f"The provider fell silent: {self._watchdog.expired}.", bytes_received=True)
        return UpstreamBroken(f"The provider broke off its answer ({error}).", bytes_received=True)


def encoding_of(response: HttpAnswer) -> str | None:
    """How the body is compressed; None if it is not."""
    header = response.header(b"content-encoding")
    encoding = "" if header is None else header.decode("latin-1").strip().lower()
    return encoding if encoding not in ("", "identity") else None


async def read_whole(stream: AnswerStream, bytes_max: int) -> bytes:
    """The whole of a buffered answer. Raises `UpstreamBroken` beyond `bytes_max`, without holding more than that."""
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in stream:
            size += len(piece)
            if size > bytes_max:
                raise UpstreamBroken(f"The answer is larger than {bytes_max:,} bytes.", bytes_received=True)
            pieces.append(piece)
    finally:
        stream.close_now()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
