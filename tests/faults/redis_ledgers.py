"""Ledgers on Redis for the fault tests, and shorthand for their calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from gateway.ledger.outage import OutageLedger
from gateway.ledger.port import LedgerUnavailable, Reserve
from gateway.ledger.redis import RedisLedger
from gateway.ledger.spool import Spool
from policies.amounts import Amount, Limit
from policies.reservation import Demand, Hold
from tests.faults.chaos_proxy import ChaosProxy
from tests.waiting import eventually

T = TypeVar("T")

# For operations that have to succeed on a busy machine. Tests of the deadline itself set their own.
LONG_DEADLINE_MS = 10_000
# How often a ledger that is out of reach is tried again: more often than in production, to keep the tests quick.
PROBE_S = 0.1


@asynccontextmanager
async def ledger_at(url: str, *, deadline_ms: int = LONG_DEADLINE_MS, **options: object) -> AsyncIterator[RedisLedger]:
    ledger = RedisLedger(url, deadline_ms=deadline_ms, **options)  # type: ignore[arg-type]
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


@asynccontextmanager
async def gateway_at(
    url: str, folder: Path, *, name: str = "one", deadline_ms: int = 2_000, slow_ms: int = 1_500, processes: int = 1
) -> AsyncIterator[OutageLedger]:
    """A gateway's ledger that probes often, with a long deadline, because the machine may be busy."""
    engine = RedisLedger(url, deadline_ms=deadline_ms)
    ledger = OutageLedger(
        engine, Spool(folder, name), slow_ms=slow_ms, processes_hint=processes, probe_s=PROBE_S, sweep_grace_s=0.0
    )
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def take_down(proxy: ChaosProxy, gateway: OutageLedger) -> None:
    """Redis becomes unreachable, and the gateway has noticed."""
    await proxy.refuse()
    async with asyncio.timeout(20):
        while gateway.health.is_available:
            try:
                await gateway.now_ms()
            except LedgerUnavailable:
                continue


async def bring_back(proxy: ChaosProxy, gateway: OutageLedger) -> None:
    await proxy.start()
    await eventually(lambda: gateway.health.is_available)
