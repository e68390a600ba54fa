"""The Redis ledger as the contract suites see it: on one server, and on a cluster of three.

Servers are started once for the whole test session and flushed before each test.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.ledger.redis import RedisLedger
from tests.redis_server import RedisCluster, RedisServer

# The machine that runs the tests may be busy: what a deadline does is tested in tests/faults, with a proxy that is slow for sure.
PATIENT_MS = 10_000


@functools.cache
def server() -> RedisServer:
    started = RedisServer("--appendfsync", "no")
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
    target = _started(server)
    target.command("FLUSHALL")
    async with _ledger(target.url) as under_test:
        yield under_test


@asynccontextmanager
async def redis_cluster(folder: Path) -> AsyncIterator[Any]:
    target = _started(cluster)
    for node in target.nodes:
        node.command("FLUSHALL")
    async with _ledger(target.url) as under_test:
        yield under_test


def _started(start: Any) -> Any:
    try:
        return start()
    except FileNotFoundError as lacking:
        pytest.skip(str(lacking))


@asynccontextmanager
async def _ledger(url: str) -> AsyncIterator[Any]:
    # Here and not above: the registry imports this module.
    from tests.contracts.engines import LedgerUnderTest, ManualClock

    clock = ManualClock()
    ledger = RedisLedger(url, deadline_ms=PATIENT_MS, clock_ms=clock)
    await ledger.open()
    try:
        yield LedgerUnderTest(ledger, clock.advance, keeps_after_close=True)
    finally:
        await ledger.close()
