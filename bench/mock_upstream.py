"""A provider that costs next to nothing: bytes that were made before, on a bare protocol, so that a measurement in front of it
measures the gateway.

    .venv/bin/python -m bench.mock_upstream --port 9100

The model `bench-NAME` is answered as the path NAME says (bench/paths.py); any GET is answered with a list of models.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from typing import Final

import httptools

from bench.event_loop import run
from bench.paths import PATHS, buffered_answer, streamed_answer

_MODEL: Final = re.compile(rb'"model":\s?"bench-([a-z0-9-]+)"')
_STREAM: Final = re.compile(rb'"stream":\s?true')
_USAGE: Final = re.compile(rb'"include_usage":\s?true')
_LIST: Final = b'{"object":"list","data":[]}'
_LISTED: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_LIST),
    _LIST,
)
_UNKNOWN: Final = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One keep-alive connection. No client here pipelines its requests."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked with isinstance: uvloop's transports do not derive from asyncio's.
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        self._body.append(piece)

    def on_message_complete(self) -> None:
        if self._transport is None:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        if self._parser.get_method() == b"GET":
            self._transport.write(_LISTED)
            return
        match = _MODEL.search(body)
        path = PATHS.get(match[1].decode()) if match else None
        if path is None:
            self._transport.write(_UNKNOWN)
        elif not path.streams or not _STREAM.search(body):
            self._transport.write(buffered_answer(path, len(body) // 1_024))
        else:
            writes = streamed_answer(path, len(body) // 1_024, _USAGE.search(body) is not None)
            self._write(writes, 0, (path.pace_ms or 0.0) / 1000)

    def _write(self, writes: tuple[bytes, ...], position: int, pace_s: float) -> None:
        if self._transport is None:
            return
        self._transport.write(writes[position])
        if position + 1 < len(writes):
            asyncio.get_running_loop().call_later(pace_s, self._write, writes, position + 1, pace_s)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=2_048)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
