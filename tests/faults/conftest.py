"""A Redis server, and what stands before it in the fault tests of the Redis ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.ledger.outage import OutageLedger
from gateway.ledger.redis import RedisLedger
from tests.faults.chaos_proxy import ChaosProxy, chaos
from tests.faults.redis_ledgers import gateway_at, ledger_at
from tests.redis_server import RedisServer, running_server


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


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[ChaosProxy]:
    async with chaos(server.port) as started:
        yield started


@pytest.fixture
async def gateway(proxy: ChaosProxy, tmp_path: Path) -> AsyncIterator[OutageLedger]:
    async with gateway_at(proxy.url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def direct_ledger(server: RedisServer) -> AsyncIterator[RedisLedger]:
    """The same Redis, without the proxy."""
    async with ledger_at(server.url) as opened:
        yield opened
