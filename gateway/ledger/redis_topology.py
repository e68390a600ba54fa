"""Where a project's keys are: on one server, on the primary that Sentinel names, or on one of a cluster's primaries.

redis://[user:password@]host[:port][/database]          rediss:// the same over TLS
redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/database]
redis+cluster://[user:password@]host[:port][,host[:port]…]         rediss+sentinel, rediss+cluster: over TLS
over TLS, `?ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…` may follow (`redis_tls.py`); other parameters are ignored
unix sockets are not supported, because a ledger for several processes is reached over the network
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import parse_qsl, unquote

from gateway.ledger.port import LedgerError, LedgerUnavailable
from gateway.ledger.redis_connection import Address, Argument, Credentials, RedisConnection, RedisReplyError, Reply
from gateway.ledger.redis_tls import parse_tls
from gateway.tasks import cancel

SLOTS: Final = 16_384
_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26_379
# A moved slot answers MOVED once, and ASK while it is moving; after more hops than this the nodes disagree.
_REDIRECTIONS_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """The parts of a ledger URL. `service` is Sentinel's name of the primary."""

    mode: str  # single, sentinel or cluster
    nodes: tuple[Address, ...]
    credentials: Credentials = field(repr=False)
    service: str = ""


def parse_url(url: str) -> RedisTarget:
    """Parse a ledger URL. Raises `LedgerError`, which says what is wrong but never shows the password."""
    scheme, separator, rest = url.partition("://")
    base, _, mode = scheme.partition("+")
    if not separator or base not in ("redis", "rediss") or mode not in ("", "sentinel", "cluster"):
        raise LedgerError("a Redis ledger URL starts with redis://, rediss://, redis+sentinel:// or redis+cluster://")
    authority, slash, path = rest.partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    hosts, mark, query = hosts.partition("?")
    if mark:  # without a path, so that any slash belongs to the query
        path, query = "", query + slash + path
    else:
        path, _, query = path.partition("?")
    username, _, password = userinfo.partition(":")
    default_port = _SENTINEL_PORT if mode == "sentinel" else _REDIS_PORT
    nodes = tuple(_address(host, default_port) for host in (hosts or "127.0.0.1").split(","))
    words = [word for word in path.split("/") if word]
    service = words.pop(0) if mode == "sentinel" and words else ""
    if mode == "sentinel" and not service:
        raise LedgerError(
            "a redis+sentinel:// URL ends with the name of the primary: redis+sentinel://host:26379/mymaster"
        )
    if len(nodes) > 1 and not mode:
        raise LedgerError("several hosts need redis+sentinel:// or redis+cluster://")
    tls = parse_tls(dict(parse_qsl(query)), is_tls=base == "rediss")
    credentials = Credentials(unquote(username), unquote(password), _database(words, mode), tls, mode == "sentinel")
    return RedisTarget(mode or "single", nodes, credentials, service)


def _address(text: str, default_port: int) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text.strip("[]"), default_port
    if not port.isdigit():
        raise LedgerError(f"{port!r} is not a port number")
    return host.strip("[]"), int(port)


def _database(words: list[str], mode: str) -> int:
    if not words:
        return 0
    if len(words) > 1 or not words[0].isdigit():
        raise LedgerError(f"{'/'.join(words)!r} is not the number of a Redis database")
    if mode == "cluster" and words[0] != "0":
        raise LedgerError("a Redis Cluster has only database 0")
    return int(words[0])


class Topology(Protocol):
    """Sends a command to the server that owns a key."""

    async def call(self, key: str, *arguments: Argument) -> Reply:
        """Raises `RedisReplyError` for an error other than a redirection, `LedgerUnavailable` if there is no reply in time."""

    async def call_all_primaries(self, *arguments: Argument) -> list[Reply]:
        """The replies of all primaries."""

    async def close(self) -> None: ...


def make_topology(target: RedisTarget, deadline_ms: int) -> Topology:
    if target.mode == "cluster":
        return Cluster(target, deadline_ms)
    locate = sentinel_locator(target, deadline_ms) if target.mode == "sentinel" else _fixed_locator(target.nodes[0])
    return SingleServer(RedisConnection(locate, target.credentials, deadline_ms=deadline_ms))


def _fixed_locator(address: Address) -> Callable[[], Awaitable[Address]]:
    async def locate() -> Address:
        return address

    return locate


def sentinel_locator(target: RedisTarget, deadline_ms: int) -> Callable[[], Awaitable[Address]]:
    """Asks the Sentinels in turn for the primary, whenever a socket is opened."""

    async def locate() -> Address:
        for node in target.nodes:
            sentinel = RedisConnection(
                _fixed_locator(node), Credentials(tls=target.credentials.tls), deadline_ms=deadline_ms
            )
            try:
                address = await sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service)
            except LedgerUnavailable:
                continue
            finally:
                await sentinel.close()
            if address:
                return address[0].decode(), int(address[1])
        raise LedgerUnavailable(f"no Sentinel knows the primary {target.service!r}")

    return locate


class SingleServer:
    """One server: a fixed one, or the current primary."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    async def call(self, key: str, *arguments: Argument) -> Reply:
        try:
            return await self._connection.call(*arguments)
        except RedisReplyError as reply_error:
            if reply_error.code == "READONLY":
                # The primary was demoted while we were connected: find the new one.
                self._connection.drop()
            raise

    async def call_all_primaries(self, *arguments: Argument) -> list[Reply]:
        return [await self._connection.call(*arguments)]

    async def close(self) -> None:
        await self._connection.close()


def slot_of(key: str) -> int:
    """The slot of a key: CRC-16/XMODEM of its hash tag (the part between the first braces, if any), modulo 16,384."""
    start = key.find("{")
    end = key.find("}", start + 1)
    tag = key[start + 1 : end] if start >= 0 and end > start + 1 else key
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


class Cluster:
    """A Redis Cluster: one connection per primary, and a table of slots that redirections update."""

    def __init__(self, target: RedisTarget, deadline_ms: int) -> None:
        self._target = target
        self._deadline_ms = deadline_ms
        self._connections: dict[Address, RedisConnection] = {}
        self._owners: list[Address | None] = [None] * SLOTS
        self._is_stale = True
        self._slot_refresh: asyncio.Task[None] | None = None

    async def call(self, key: str, *arguments: Argument) -> Reply:
        if self._is_stale:
            await self._read_slots()
        slot = slot_of(key)
        owner = self._owners[slot]
        if owner is None:
            self._is_stale = True
            raise LedgerUnavailable(f"no node of the Redis Cluster owns slot {slot}")
        try:
            return await self._connection(owner).call(*arguments)
        except RedisReplyError as reply_error:
            if reply_error.code not in ("MOVED", "ASK"):
                raise
            return await self._follow_redirection(slot, reply_error, arguments)
        except LedgerUnavailable:
            # The node may be gone, and a replica promoted instead: find out before the next call.
            self._is_stale = True
            raise

    async def _follow_redirection(
        self, slot: int, reply_error: RedisReplyError, arguments: tuple[Argument, ...]
    ) -> Reply:
        try:
            async with asyncio.timeout(self._deadline_ms / 1000):
                for _ in range(_REDIRECTIONS_MAX):
                    address = _address(reply_error.detail.split(" ")[-1], _REDIS_PORT)
                    connection = self._connection(address)
                    try:
                        if reply_error.code == "ASK":
                            return await connection.call_asking(*arguments)
                        self._owners[slot] = address
                        self._is_stale = True
                        return await connection.call(*arguments)
                    except RedisReplyError as next_reply_error:
                        if next_reply_error.code not in ("MOVED", "ASK"):
                            raise
                        reply_error = next_reply_error
        except TimeoutError:
            pass
        raise LedgerUnavailable("the nodes of the Redis Cluster disagree about who owns a slot")

    async def call_all_primaries(self, *arguments: Argument) -> list[Reply]:
        await self._read_slots()
        return [await self._connection(owner).call(*arguments) for owner in sorted(self._primaries())]

    async def close(self) -> None:
        await cancel(self._slot_refresh)
        for connection in self._connections.values():
            await connection.close()
        self._connections.clear()

    def _connection(self, address: Address) -> RedisConnection:
        connection = self._connections.get(address)
        if connection is None:
            connection = RedisConnection(
                _fixed_locator(address), self._target.credentials, deadline_ms=self._deadline_ms
            )
            self._connections[address] = connection
        return connection

    def _primaries(self) -> set[Address]:
        return {owner for owner in self._owners if owner is not None}

    async def _read_slots(self) -> None:
        """Read the table of slots; concurrent callers share one query."""
        if self._slot_refresh is None or self._slot_refresh.done():
            self._slot_refresh = asyncio.create_task(self._fetch_slots())
            self._slot_refresh.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with asyncio.timeout(self._deadline_ms / 1000):
                await asyncio.shield(self._slot_refresh)
        except TimeoutError:
            raise LedgerUnavailable("no node of the Redis Cluster answered in time") from None

    async def _fetch_slots(self) -> None:
        reason = "no node is known"
        for address in [*sorted(self._primaries()), *self._target.nodes]:
            try:
                ranges = await self._connection(address).call("CLUSTER", "SLOTS")
            except LedgerError as error:
                reason = str(error)
                continue
            self._update_slots(ranges, address[0])
            return
        raise LedgerUnavailable(f"no node of the Redis Cluster answers: {reason}")

    def _update_slots(self, ranges: Reply, asked_host: str) -> None:
        owners: list[Address | None] = [None] * SLOTS
        for first, last, primary, *_ in ranges:
            # A node that does not know its own address leaves it empty: it is the node that answered.
            host = primary[0].decode() if primary[0] else asked_host
            owners[first : last + 1] = [(host, int(primary[1]))] * (last + 1 - first)
        self._owners = owners
        self._is_stale = False
        for address in set(self._connections) - self._primaries() - set(self._target.nodes):
            self._connections.pop(address).drop()
