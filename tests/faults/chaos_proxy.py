"""A TCP proxy that misbehaves on command: slow, throttled, stalled, cut, or losing replies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ChaosProxy:
    """Between a client and `target_port` on this machine. Its attributes may be changed while connections are open."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0
        self.latency_s = 0.0  # on every piece of a reply
        self.bytes_per_s = 0.0  # of requests; 0: as fast as they come
        self.replies_lost = 0  # so many replies are swallowed, each with its connection
        self.stall_at = b""  # before a request that has these bytes in it
        self.accepted = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Close the port and cut what is open, as a server does that dies."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def stall(self) -> None:
        """Pass nothing on, in neither direction, with all connections left open."""
        self._flowing.clear()

    @property
    def is_stalled(self) -> bool:
        return not self._flowing.is_set()

    def resume(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._connections:
            writer.transport.abort()
        self._connections.clear()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._connections |= {writer, up_writer}
        for task in (
            asyncio.create_task(self._pump(reader, up_writer, is_reply=False)),
            asyncio.create_task(self._pump(up_reader, writer, is_reply=True)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 12 if self.bytes_per_s else 1 << 16):
                if not is_reply and self.stall_at and self.stall_at in data:
                    self.stall()
                await self._flowing.wait()
                if not is_reply and self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                if is_reply and self.latency_s:
                    await asyncio.sleep(self.latency_s)
                if is_reply and self.replies_lost:
                    self.replies_lost -= 1
                    break
                sink.write(data)
                await sink.drain()
        sink.transport.abort()


@asynccontextmanager
async def chaos(target_port: int) -> AsyncIterator[ChaosProxy]:
    proxy = ChaosProxy(target_port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
