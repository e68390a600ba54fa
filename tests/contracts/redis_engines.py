"""The Redis ledger for the contract suites: on one server, and on a cluster of three.

Servers are started once for the whole test session and flushed before each test. `TEST_REDIS_URL` names a database (not 0)
of a running server to be used, and flushed, instead of one of our own.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.ledger.outage import OutageLedger
from gateway.ledger.redis import RedisLedger
from gateway.ledger.redis_topology import make_topology, parse_url
from gateway.ledger.spool import Spool
from tests.redis_server import RedisCluster, RedisServer, oldest_binary

# Long, because the machine that runs the tests may be busy. Deadlines themselves are tested in tests/faults, with a slow proxy.
LONG_DEADLINE_MS = 10_000


@functools.cache
def server() -> RedisServer:
    started = RedisServer()
    atexit.register(started.remove)
    started.start()
    return started


@functools.cache
def oldest_server() -> RedisServer:
    started = RedisServer(program=oldest_binary())
    atexit.register(started.remove)
    started.start()
    return started


@functools.cache
def cluster() -> RedisCluster:
    started = RedisCluster()
    atexit.register(started.remove)
    started.start()
    return started


@asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[Any]:
    async with _ledger(await empty_server()) as under_test:
        yield under_test


@asynccontextmanager
async def redis_oldest(folder: Path) -> AsyncIterator[Any]:
    async with _ledger(empty_oldest_server()) as under_test:
        yield under_test


@asynccontextmanager
async def redis_cluster(folder: Path) -> AsyncIterator[Any]:
    async with _ledger(empty_cluster()) as under_test:
        yield under_test


@asynccontextmanager
async def redis_behind_outage_ledger(folder: Path) -> AsyncIterator[Any]:
    """Behind the outage wrapper, which must not be noticeable while there is no outage."""

    def with_outage_ledger(engine: RedisLedger) -> OutageLedger:
        return OutageLedger(engine, Spool(folder, "outage"), slow_ms=LONG_DEADLINE_MS)

    async with _ledger(await empty_server(), with_outage_ledger) as under_test:
        yield under_test


async def empty_server() -> str:
    """The URL of a server of our own, or of the database that `TEST_REDIS_URL` names; flushed in either case."""
    named = os.environ.get("TEST_REDIS_URL")
    if named is None:
        target = _started(server)
        target.command("FLUSHALL")
        return str(target.url)
    parsed = parse_url(named)
    if parsed.credentials.database == 0:
        pytest.fail("TEST_REDIS_URL must name a database other than 0, because the tests flush it")
    topology = make_topology(parsed, LONG_DEADLINE_MS)
    await topology.call("", "FLUSHDB")
    await topology.close()
    return named


def empty_oldest_server() -> str:
    """Redis 6.2, whose script errors are worded differently and whose scripts have no flags."""
    target = _started(oldest_server)
    target.command("FLUSHALL")
    return str(target.url)


def empty_cluster() -> str:
    target = _started(cluster)
    for node in target.nodes:
        node.command("FLUSHALL")
    return str(target.url)


def _started(start: Any) -> Any:
    try:
        return start()
    except FileNotFoundError as lacking:
        pytest.skip(str(lacking))


@asynccontextmanager
async def _ledger(url: str, wrapped: Callable[[RedisLedger], Any] = lambda engine: engine) -> AsyncIterator[Any]:
    # Not at the top, because `engines` imports this module.
    from tests.contracts.engines import LedgerUnderTest, ManualClock

    clock = ManualClock()
    ledger = wrapped(RedisLedger(url, deadline_ms=LONG_DEADLINE_MS, clock_ms=clock))
    await ledger.open()
    try:
        yield LedgerUnderTest(ledger, clock.advance, is_durable=True)
    finally:
        await ledger.close()
