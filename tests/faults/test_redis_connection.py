"""The shared connection on a bad network: deadlines, lost replies, cancelled callers, invalid replies."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from gateway.ledger.port import LedgerUnavailable
from gateway.ledger.redis_connection import Address, ConnectionLost, Credentials, RedisConnection, RedisReplyError
from tests.faults.chaos_proxy import ChaosProxy, chaos
from tests.faults.redis_ledgers import LONG_DEADLINE_MS, retry_until_available
from tests.ports import free_port
from tests.redis_server import RedisServer


@asynccontextmanager
async def connection_to(port: int, *, deadline_ms: int = LONG_DEADLINE_MS) -> AsyncIterator[RedisConnection]:
    async def locate() -> Address:
        return "127.0.0.1", port

    connection = RedisConnection(locate, Credentials(), deadline_ms=deadline_ms)
    try:
        yield connection
    finally:
        await connection.close()


async def wait_until_connected(connection: RedisConnection) -> None:
    assert await retry_until_available(lambda: connection.call("PING")) == b"PONG"


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_event_loop_blocked_while_connecting_is_not_a_timeout(
    server: RedisServer, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """As at a start: the connection was accepted long before the event loop can see it."""

    async def connect() -> object:
        async with connection_to(server.port, deadline_ms=100) as connection:
            calling = asyncio.create_task(connection.call("PING"))
            for _ in range(3):
                await asyncio.sleep(0)
            time.sleep(0.3)
            return await calling

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(connect()) == b"PONG"


async def test_10000_replies_reach_their_callers_despite_cancellations(server: RedisServer) -> None:
    """10,000 commands, a third of them cancelled at a random moment: no caller ever gets the reply of another."""
    chance = random.Random(7)
    async with connection_to(server.port) as connection:
        await connection.call("PING")

        async def reply_to(number: int) -> bool:
            return bool(await connection.call("ECHO", f"n{number}") == f"n{number}".encode())

        tasks: list[asyncio.Task[bool]] = []
        for number in range(10_000):
            task = asyncio.create_task(reply_to(number))
            if chance.random() < 1 / 3:
                asyncio.get_running_loop().call_later(chance.random() / 100, task.cancel)
            tasks.append(task)
            if number % 100 == 0:
                await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        given_up = sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert 0 < given_up < 5_000
        assert all(outcome is True for outcome in outcomes if not isinstance(outcome, asyncio.CancelledError))
        assert await connection.call("ECHO", "last") == b"last"


async def test_stalled_server_costs_500_callers_one_deadline(proxy: ChaosProxy) -> None:
    async with connection_to(proxy.port, deadline_ms=100) as connection:
        await wait_until_connected(connection)
        proxy.stall()
        started = time.monotonic()
        outcomes = await asyncio.gather(*(connection.call("PING") for _ in range(500)), return_exceptions=True)
        assert all(isinstance(outcome, LedgerUnavailable) for outcome in outcomes)
        # 100 ms for all of them at once; the rest of the second is for a busy machine.
        assert time.monotonic() - started < 1.1


async def test_stalled_connection_is_replaced(proxy: ChaosProxy) -> None:
    async with connection_to(proxy.port, deadline_ms=200) as connection:
        proxy.stall()
        async with asyncio.timeout(10):
            while proxy.accepted < 2:
                with pytest.raises(LedgerUnavailable):
                    await connection.call("PING")
        proxy.resume()
        await wait_until_connected(connection)


async def test_calls_in_flight_on_a_broken_connection_raise_connection_lost(proxy: ChaosProxy) -> None:
    async with connection_to(proxy.port) as connection:
        await connection.call("PING")
        proxy.stall()
        waiting = [asyncio.create_task(connection.call("PING")) for _ in range(10)]
        await asyncio.sleep(0.05)
        proxy.cut()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, ConnectionLost) for outcome in outcomes)
        proxy.resume()
        assert await connection.call("PING") == b"PONG"


async def test_error_reply_reaches_only_its_caller(server: RedisServer) -> None:
    async with connection_to(server.port) as connection:
        good, bad = await asyncio.gather(
            connection.call("PING"), connection.call("NOSUCHCOMMAND"), return_exceptions=True
        )
        assert good == b"PONG"
        assert isinstance(bad, RedisReplyError)
        assert bad.code == "ERR"


async def test_closed_port_is_unavailable(server: RedisServer) -> None:
    async with connection_to(free_port()) as connection:
        with pytest.raises(LedgerUnavailable, match="cannot be reached"):
            await connection.call("PING")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another-protocol"),
        pytest.param(b"+PONG\r\n+PONG\r\n", id="more-replies-than-commands"),
    ],
)
async def test_connection_with_invalid_replies_is_abandoned(answer: bytes) -> None:
    greeted = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        greeted += 1
        await reader.read(100)
        writer.write(answer)
        await writer.drain()
        # Until the other side closes the connection.
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listener, connection_to(listener.sockets[0].getsockname()[1]) as connection:
        for _ in range(3):
            (outcome,) = await asyncio.gather(connection.call("PING"), return_exceptions=True)
            assert outcome == b"PONG" or isinstance(outcome, ConnectionLost)
            # The excess reply is read in a turn of its own.
            await asyncio.sleep(0.05)
    assert greeted == 3


async def test_commands_of_one_loop_iteration_are_sent_in_one_write(server: RedisServer) -> None:
    async with connection_to(server.port) as connection:
        await connection.call("PING")
        protocol = connection._protocol
        assert protocol is not None
        assert protocol._transport is not None
        writes: list[bytes] = []
        original = protocol._transport

        class Counting:
            def write(self, data: bytes) -> None:
                writes.append(data)
                original.write(data)

            def abort(self) -> None:
                original.abort()

        protocol._transport = Counting()  # type: ignore[assignment]
        await asyncio.gather(*(connection.call("PING") for _ in range(64)))
        assert len(writes) == 1


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_replies_read_after_a_blocked_event_loop_are_in_time(
    server: RedisServer, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    """The replies have arrived when the event loop runs again; they count, on either event loop."""

    async def story() -> None:
        async with connection_to(server.port, deadline_ms=300) as connection:
            await wait_until_connected(connection)
            waiting = [asyncio.create_task(connection.call("ECHO", str(number))) for number in range(50)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.6)
            assert await asyncio.gather(*waiting) == [str(number).encode() for number in range(50)]

    run(story())


def test_commands_with_close_deadlines_all_time_out_on_uvloop(server: RedisServer) -> None:
    """On uvloop a timer that is due almost at once is a handle of another kind."""

    async def story() -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        async with chaos(server.port) as proxy, connection_to(proxy.port, deadline_ms=300) as connection:
            await wait_until_connected(connection)
            proxy.stall()
            waiting = []
            for _ in range(300):
                waiting.append(asyncio.create_task(connection.call("PING")))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                time.sleep(0.0003)
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(outcome, LedgerUnavailable) for outcome in outcomes)
        assert faults == []

    uvloop.run(story())
