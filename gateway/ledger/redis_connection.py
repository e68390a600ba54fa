"""One connection to Redis, shared by all callers of this process.

Commands of the same turn of the event loop are sent in one write, and replies are matched in order (Redis answers in order).
So it needs no pool, no lock and no timer per command: measured at a quarter of the CPU of a pooled client. A caller that
gives up leaves its place in the queue; its late reply is read and dropped, and never goes to another caller.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import hiredis

from gateway.ledger.port import LedgerError, LedgerUnavailable
from gateway.ledger.redis_tls import Tls
from gateway.tasks import cancel

Argument = bytes | str | int
Reply = Any  # what RESP2 knows: bytes, int, None, or a list of these
Address = tuple[str, int]

# With more commands in flight Redis must be stuck: refuse at once instead of piling up.
_IN_FLIGHT_MAX: Final = 20_000
# A connection without any reply for this long is considered dead (half-open, or a stalled server).
_SILENCE_MAX_MS: Final = 1_000
# A timer that fires later than this was delayed by this process, which then gets a moment to read what has arrived. The
# moment is long enough for a Redis on the same machine, which had no CPU time either.
_LATE_TIMER_S: Final = 0.02
_LATE_GRACE_S: Final = 0.05
_INCOMPLETE: Final = object()
# What Redis puts before the text of an error that a script raised, or that a command in a script returned.
_SCRIPT_ERROR_PREFIX: Final = re.compile(
    r"^ERR (?:(?=FAREBOX_)|Error running script \(call to f_\w+\): (?:@?user_script: ?\d+: )*-?(?=[A-Z]+[A-Z_]* ))"
)


def pack(arguments: tuple[Argument, ...]) -> bytes:
    """One command in RESP."""
    return hiredis.pack_command(arguments)  # type: ignore[arg-type,no-any-return]  # its stub says a tuple of exactly one


class ConnectionLost(LedgerUnavailable):
    """The connection broke while commands were in flight: they may or may not have run. Repeat them with the same ids."""


class RedisReplyError(LedgerError):
    """Redis returned an error. `code` is its first word, such as `NOSCRIPT`, `MOVED` or `OOM`.

    For an error inside a script it is the first word of that error; the prefix that Redis adds differs between versions.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("ERR "):
            message = _SCRIPT_ERROR_PREFIX.sub("", message)
        super().__init__(message)
        self.code, _, self.detail = message.partition(" ")


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to authenticate with a server. An empty password is not sent."""

    username: str = ""
    password: str = ""
    database: int = 0
    tls: Tls | None = None
    # Behind Sentinel: a replica that answers at the old address must not be used.
    must_be_primary: bool = False


class _RedisProtocol(asyncio.Protocol):
    """A socket that is, or was, open."""

    def __init__(self, deadline_ms: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline_s = deadline_ms / 1000
        self._silence_s = max(self._deadline_s, _SILENCE_MAX_MS / 1000)
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[tuple[asyncio.Future[Reply], float]] = deque()
        self._unsent: list[tuple[bytes, asyncio.Future[Reply]]] = []
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0
        self._had_grace = False
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # create_connection returns a writable transport; uvloop's class does not declare it.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
        reason = f"the connection to Redis was lost ({exc or 'closed by the server'})"
        for future in [*(future for future, _ in self._waiting), *(future for _, future in self._unsent)]:
            if not future.done():
                future.set_exception(ConnectionLost(reason))
        self._waiting.clear()
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                self._answer(reply)
        except (hiredis.ProtocolError, IndexError):
            # This is not RESP, or there are more replies than commands: the other end cannot be trusted.
            self.abort()

    def send(self, packed: bytes) -> asyncio.Future[Reply]:
        """Queue one packed command. The future fails with `LedgerUnavailable` after the deadline, counted from the write."""
        if not self.is_open:
            raise ConnectionLost("the connection to Redis is closed")
        if len(self._waiting) + len(self._unsent) >= _IN_FLIGHT_MAX:
            raise LedgerUnavailable(f"{_IN_FLIGHT_MAX} commands are waiting for Redis")
        future: asyncio.Future[Reply] = self._loop.create_future()
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append((packed, future))
        return future

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        if not self._unsent or self._transport is None:
            return
        self._transport.write(b"".join(packed for packed, _ in self._unsent))
        due_s = self._loop.time() + self._deadline_s
        self._waiting.extend((future, due_s) for _, future in self._unsent)
        self._unsent.clear()
        if self._timer is None:
            self._start_timer(due_s)

    def _answer(self, reply: Reply) -> None:
        future, _ = self._waiting.popleft()
        if future.done():
            return
        if isinstance(reply, hiredis.ReplyError):
            future.set_exception(RedisReplyError(str(reply)))
        else:
            future.set_result(reply)

    def _start_timer(self, when_s: float) -> None:
        # Kept separately: if the time has already passed, uvloop's handle does not have it.
        self._timer_due_s = when_s
        self._timer = self._loop.call_at(when_s, self._fail_overdue)

    def _fail_overdue(self) -> None:
        """Fail what has waited too long. One timer serves all commands: they have the same deadline, so the oldest is due first."""
        self._timer = None
        now_s = self._loop.time()
        if now_s - self._timer_due_s > _LATE_TIMER_S and not self._had_grace:
            # Our own loop was late. The answer may be in the socket's buffer, which is read first now.
            self._had_grace = True
            self._start_timer(now_s + _LATE_GRACE_S)
            return
        self._had_grace = False
        for future, due_s in self._waiting:
            if due_s > now_s:
                self._start_timer(due_s)
                break
            if not future.done():
                future.set_exception(LedgerUnavailable("Redis did not answer in time"))
        if self._waiting and self._waiting[0][1] + self._silence_s - self._deadline_s < now_s:
            self.abort()
        elif self._waiting and self._timer is None:
            self._start_timer(now_s + self._deadline_s)


class RedisConnection:
    """Sends commands to one server, connecting when needed. `locate` finds the server whenever a socket is opened."""

    def __init__(
        self, locate: Callable[[], Awaitable[Address]], credentials: Credentials, *, deadline_ms: int = 100
    ) -> None:
        self._locate = locate
        self._credentials = credentials
        self._deadline_ms = deadline_ms
        self._protocol: _RedisProtocol | None = None
        self._connecting: asyncio.Task[_RedisProtocol] | None = None

    async def call(self, *arguments: Argument) -> Reply:
        """The reply to one command, within the deadline.

        Raises `RedisReplyError` for an error reply and `LedgerUnavailable` without a reply in time.
        """
        return await (await self._ensure_open()).send(pack(arguments))

    async def call_asking(self, *arguments: Argument) -> Reply:
        """Like `call`, on a cluster node that is still importing the key's slot."""
        protocol = await self._ensure_open()
        asking = protocol.send(pack(("ASKING",)))
        reply = protocol.send(pack(arguments))
        await asking
        return await reply

    async def close(self) -> None:
        await cancel(self._connecting)
        self.drop()

    def drop(self) -> None:
        """Close the socket: the next command opens a new one, wherever the server is then."""
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.abort()

    async def _ensure_open(self) -> _RedisProtocol:
        protocol = self._protocol
        if protocol is not None and protocol.is_open:
            return protocol
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
            # The waiting callers read the outcome; if all of them gave up, nobody does.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        connecting = self._connecting
        if not await self._is_done_in_time(connecting):
            raise LedgerUnavailable("Redis did not accept a connection in time")
        self._protocol = connecting.result()
        return self._protocol

    async def _is_done_in_time(self, connecting: asyncio.Task[_RedisProtocol]) -> bool:
        deadline_s, loop = self._deadline_ms / 1000, asyncio.get_running_loop()
        due_s = loop.time() + deadline_s
        done, _ = await asyncio.wait([connecting], timeout=deadline_s)
        if not done and loop.time() - due_s > _LATE_TIMER_S:
            # Our own loop was late, as in `_RedisProtocol._fail_overdue`.
            done, _ = await asyncio.wait([connecting], timeout=_LATE_GRACE_S)
        return bool(done)

    async def _connect(self) -> _RedisProtocol:
        try:
            async with asyncio.timeout(_SILENCE_MAX_MS / 1000):
                host, port = await self._locate()
                context = None if self._credentials.tls is None else self._credentials.tls.context()
                loop = asyncio.get_running_loop()
                _, protocol = await loop.create_connection(
                    lambda: _RedisProtocol(self._deadline_ms), host, port, ssl=context
                )
                await self._handshake(protocol)
                return protocol
        except (OSError, TimeoutError) as error:
            raise LedgerUnavailable(f"Redis cannot be reached: {str(error) or 'no answer'}") from None

    async def _handshake(self, protocol: _RedisProtocol) -> None:
        credentials = self._credentials
        try:
            if credentials.password:
                await protocol.send(
                    pack(("AUTH", *([credentials.username] * bool(credentials.username)), credentials.password))
                )
            if credentials.database:
                await protocol.send(pack(("SELECT", str(credentials.database))))
            if credentials.must_be_primary and (await protocol.send(pack(("ROLE",))))[0] != b"master":
                raise LedgerUnavailable("the server that Sentinel named is not the primary (a failover is under way)")
        except BaseException:
            protocol.abort()
            raise
