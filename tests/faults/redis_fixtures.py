"""Servers for the fault tests of the Redis ledger, and shorthand for its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from gateway.ledger.port import LedgerUnavailable, Reserve
from gateway.ledger.redis import RedisLedger
from policies.amounts import Amount, Limit
from policies.reservation import Demand, Hold
from tests.redis_server import RedisServer, running_server

T = TypeVar("T")

# For operations that have to succeed on a busy machine. Tests of the deadline itself set their own.
LONG_DEADLINE_MS = 10_000


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    try:
        with running_server() as server:
            yield server
    except FileNotFoundError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """Flushed, and with the settings it was started with."""
    shared_server.command("FLUSHALL")
    shared_server.command("SCRIPT", "FLUSH")
    return shared_server


@asynccontextmanager
async def ledger_at(url: str, *, deadline_ms: int = LONG_DEADLINE_MS, **named: object) -> AsyncIterator[RedisLedger]:
    ledger = RedisLedger(url, deadline_ms=deadline_ms, **named)  # type: ignore[arg-type]
    try:
        await ledger.open()
        yield ledger
    finally:
        await ledger.close()


def reserve_request(
    name: str, count: int = 10, *, limit: int | None = 100, account: str = "run:r", ttl_ms: int = 60_000
) -> Reserve:
    """A reservation of `count` tokens on one account."""
    hold = Hold(account, Limit(tokens=limit))
    return Reserve(name, "gateway-1", (hold,), Demand(0, count, count, requests=0), ttl_ms, b'{"model":"mock"}')


def tokens(count: int) -> Amount:
    return Amount(tokens=count)


async def settled_and_reserved(ledger: RedisLedger, account: str = "run:r", project: str = "p") -> tuple[int, int]:
    """(settled, reserved) tokens of an account."""
    (balance,) = await ledger.balances(project, [account])
    return balance.settled.tokens, balance.reserved.tokens


async def retry_until_available(operation: Callable[[], Awaitable[T]], within_s: float = 20.0) -> T:
    """The result of the first attempt at which the ledger is available."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await operation()
            except LedgerUnavailable:
                await asyncio.sleep(0.05)
