"""Two proxies between a gateway and its Postgres: one whose connections can be cut, and a pooler.

`PostgresProxy` relays bytes and can be cut, at any time or at the moment of a COMMIT. `TransactionPooler` does what pgbouncer
does in transaction mode: a client has a server connection only for the length of a transaction, and the next transaction
gets another one, so whatever was left on a connection is gone or in the way.
"""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from sqlalchemy.engine import URL, make_url

SOCKET = ".s.PGSQL.5432"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(url: URL) -> Streams:
    host = url.query.get("host") or url.host or "localhost"
    assert isinstance(host, str)
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/{SOCKET}")
    return await asyncio.open_connection(host, url.port or 5432)


def url_through(url: URL, folder: str) -> str:
    """The same database, reached by a socket in `folder`."""
    return f"postgresql://{url.username or 'postgres'}@/{url.database}?host={folder}"


class PostgresProxy:
    """A proxy to a Postgres server whose connections can be cut and restored."""

    def __init__(self, url: str, folder: str) -> None:
        self._server_url = make_url(url)
        self.url = url_through(self._server_url, folder)
        self._open: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self.commits_seen = 0
        self.cut_at_commit: Literal["before", "after"] | None = None

    def cut(self) -> None:
        """Break every connection, and take no new one."""
        self._is_cut = True
        self._break()

    def restore(self) -> None:
        self._is_cut = False

    def _break(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        server_reader, server_writer = await connect(self._server_url)
        self._open |= {writer, server_writer}
        commit = asyncio.Event()
        try:
            await asyncio.gather(
                self._relay_to_server(reader, server_writer, commit),
                self._relay_to_client(server_reader, writer, commit),
            )
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            for connection in (writer, server_writer):
                connection.transport.abort()
                self._open.discard(connection)

    async def _relay_to_server(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, commit: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            if b"COMMIT" in data:
                self.commits_seen += 1
                if self.cut_at_commit == "before":
                    self.cut_at_commit = None
                    raise ConnectionError
                if self.cut_at_commit == "after":
                    commit.set()
            server.write(data)
            await server.drain()
        raise ConnectionError

    async def _relay_to_client(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, commit: asyncio.Event
    ) -> None:
        while data := await server.read(65536):
            if commit.is_set():  # the server has committed, and the client does not learn of it
                self.cut_at_commit = None
                raise ConnectionError
            writer.write(data)
            await writer.drain()
        raise ConnectionError


@asynccontextmanager
async def postgres_proxy(url: str) -> AsyncIterator[PostgresProxy]:
    with tempfile.TemporaryDirectory(prefix="farebox-proxy-") as folder:
        proxy = PostgresProxy(url, folder)
        server = await asyncio.start_unix_server(proxy.serve, Path(folder) / SOCKET)
        try:
            yield proxy
        finally:
            server.close()
            proxy.cut()
            await asyncio.sleep(0.05)  # the relays see that their streams are gone


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One message of the protocol: a byte of type, four of length, the rest."""
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)


class TransactionPooler:
    """Many clients on few server connections, by transaction. Servers without a password only."""

    def __init__(self, url: str, folder: str, servers: int) -> None:
        self._server_url = make_url(url)
        self.url = url_through(self._server_url, folder)
        self._servers = servers
        self._free: deque[Streams] = deque()
        self._available = asyncio.Semaphore(0)
        self._greeting = b""
        self._clients: set[asyncio.StreamWriter] = set()
        self.transactions = 0

    async def open(self) -> None:
        for _ in range(self._servers):
            reader, writer = await connect(self._server_url)
            values = (
                f"user\0{self._server_url.username or 'postgres'}\0database\0{self._server_url.database}\0\0".encode()
            )
            writer.write(struct.pack("!II", len(values) + 8, 196608) + values)
            message = greeting = b""
            while message[:1] != b"Z":
                message = await _message(reader)
                greeting += message
            self._greeting = greeting
            self._give_back((reader, writer))

    def close(self) -> None:
        for writer in [*self._clients, *(writer for _, writer in self._free)]:
            writer.transport.abort()

    def _give_back(self, server: Streams) -> None:
        self._free.append(server)
        self._available.release()

    async def _take(self) -> Streams:
        """The connection that was free for the longest time: the next transaction of a client never gets its last one."""
        await self._available.acquire()
        self.transactions += 1
        return self._free.popleft()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            size = struct.unpack("!I", await reader.readexactly(4))[0]
            await reader.readexactly(size - 4)
            writer.write(self._greeting)
            while True:
                first = await _message(reader)
                if first[:1] == b"X":
                    return
                await self._transaction(first, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._clients.discard(writer)
            writer.transport.abort()

    async def _transaction(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await self._take()
        server_writer.write(first)
        relaying = asyncio.create_task(self._relay_up(reader, server_writer))
        try:
            while True:
                message = await _message(server_reader)
                writer.write(message)
                if message[:1] == b"Z" and message[5:6] == b"I":
                    return
        finally:
            # Between transactions a client waits for our ReadyForQuery, so nothing of its next message is read yet.
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
            self._give_back((server_reader, server_writer))

    @staticmethod
    async def _relay_up(reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while True:
            server.write(await _message(reader))


@asynccontextmanager
async def transaction_pooler(url: str, servers: int = 3) -> AsyncIterator[TransactionPooler]:
    with tempfile.TemporaryDirectory(prefix="farebox-pooler-") as folder:
        pooler = TransactionPooler(url, folder, servers)
        await pooler.open()
        server = await asyncio.start_unix_server(pooler.serve, Path(folder) / SOCKET)
        try:
            yield pooler
        finally:
            server.close()
            pooler.close()
            await asyncio.sleep(0.05)
