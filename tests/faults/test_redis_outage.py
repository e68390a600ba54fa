"""The ledger while Redis is out of reach, slow or stalled, and when it recovers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from gateway.ledger.outage import OutageLedger
from gateway.ledger.port import EntryKind, LedgerError, LedgerUnavailable, OutboxEntry, Restore, UnsavedEntries
from gateway.ledger.redis import RedisLedger
from gateway.ledger.spool import Spool
from policies.amounts import ZERO
from policies.reservation import Granted
from tests.faults.chaos_proxy import ChaosProxy
from tests.faults.redis_ledgers import (
    PROBE_S,
    bring_back,
    gateway_at,
    ledger_at,
    reserve_request,
    settled_and_reserved,
    take_down,
    tokens,
)
from tests.redis_server import RedisServer
from tests.waiting import eventually


async def stall_request_for(proxy: ChaosProxy, request: bytes, seconds: float) -> None:
    """Delay the first request with these bytes, and all after it, for so long."""
    proxy.stall_at = request
    await eventually(lambda: proxy.is_stalled)
    proxy.stall_at = b""
    await asyncio.sleep(seconds)
    proxy.resume()


async def test_200_enforced_calls_are_refused_within_a_second(proxy: ChaosProxy, gateway: OutageLedger) -> None:
    await take_down(proxy, gateway)
    started = time.monotonic()
    for number in range(200):
        with pytest.raises(LedgerUnavailable):
            await gateway.reserve("p", reserve_request(f"c{number}"))
    # The limit is 5 ms each; they take microseconds.
    assert time.monotonic() - started < 1.0
    assert gateway.health.reason != ""


async def test_full_redis_recovers_once_the_outbox_is_flushed(server: RedisServer, gateway: OutageLedger) -> None:
    events = [
        OutboxEntry("", f"e{number}", EntryKind.RECORDED, "p", ZERO, 0, b'"%5000d"' % number) for number in range(300)
    ]
    await gateway.record("p", events)
    used = int(server.command("INFO", "memory").split("used_memory:")[1].split("\r")[0])
    server.command("CONFIG", "SET", "maxmemory", used - 500_000)
    try:
        async with asyncio.timeout(20):
            while gateway.health.is_available:
                with contextlib.suppress(LedgerUnavailable):
                    await gateway.reserve("p", reserve_request("c1"))
        moved = await gateway.outbox_read("flusher")
        await gateway.outbox_acknowledge(moved)
        assert len(moved) == 300
        await eventually(lambda: gateway.health.is_available)
    finally:
        server.command("CONFIG", "SET", "maxmemory", 0)


async def test_ledger_recovers_without_a_restart(proxy: ChaosProxy, gateway: OutageLedger) -> None:
    await gateway.reserve("p", reserve_request("c1"))
    await take_down(proxy, gateway)
    await bring_back(proxy, gateway)
    assert isinstance(await gateway.reserve("p", reserve_request("c2")), Granted)
    assert gateway.health.times_opened == 1


async def test_stalled_redis_opens_the_breaker_and_calls_do_not_pile_up(proxy: ChaosProxy, tmp_path: Path) -> None:
    async with gateway_at(proxy.url, tmp_path, deadline_ms=100, slow_ms=80) as gateway:
        proxy.stall()
        slowest = 0.0
        while gateway.health.is_available:
            started = time.monotonic()
            await asyncio.gather(
                *(gateway.reserve("p", reserve_request(f"c{number}")) for number in range(50)),
                return_exceptions=True,
            )
            slowest = max(slowest, time.monotonic() - started)
        # 100 ms; the rest is for a busy machine.
        assert slowest < 1.0
        proxy.resume()
        await eventually(lambda: gateway.health.is_available)


async def test_slow_replies_open_the_breaker(proxy: ChaosProxy, tmp_path: Path) -> None:
    async with gateway_at(proxy.url, tmp_path, slow_ms=100) as gateway:
        await eventually(lambda: gateway.health.is_available)
        proxy.latency_s = 0.15
        for number in range(5):
            if gateway.health.is_available:
                assert isinstance(await gateway.reserve("p", reserve_request(f"c{number}", 1)), Granted)
        assert not gateway.health.is_available
        assert "too slowly" in gateway.health.reason
        await asyncio.sleep(3 * PROBE_S)
        assert not gateway.health.is_available
        proxy.latency_s = 0.0
        await eventually(lambda: gateway.health.is_available)


async def test_blocked_event_loop_does_not_open_the_breaker(server: RedisServer, tmp_path: Path) -> None:
    """Many calls at once to a process that has just started block its event loop for longer than any deadline."""
    async with gateway_at(server.url, tmp_path, deadline_ms=100, slow_ms=80) as gateway:
        await eventually(lambda: gateway.health.is_available)
        await gateway.reserve("p", reserve_request("first", 1))
        granted = 0
        for number in range(10):
            call = asyncio.create_task(gateway.reserve("p", reserve_request(f"c{number}", 1)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.15)
            # On a busy machine Redis itself may really be late for some calls.
            with contextlib.suppress(LedgerUnavailable):
                granted += isinstance(await call, Granted)
        assert granted >= 7
        assert gateway.health.is_available


async def test_600_calls_over_a_slow_connection_queue_and_are_all_granted(proxy: ChaosProxy, tmp_path: Path) -> None:
    """Together the calls take longer than the deadline of each."""
    async with gateway_at(proxy.url, tmp_path, deadline_ms=1_000, slow_ms=800) as gateway:
        await eventually(lambda: gateway.health.is_available)
        await gateway.reserve("p", reserve_request("first", 1, limit=None))
        proxy.bytes_per_s = 150_000
        started = time.monotonic()
        crowd = [gateway.reserve("p", reserve_request(f"c{number}", 1, limit=None)) for number in range(600)]
        decisions = await asyncio.gather(*crowd)
        assert time.monotonic() - started > 1.0
        assert all(isinstance(decision, Granted) for decision in decisions)
        assert gateway.health.times_opened == 0


async def test_600_queued_calls_to_a_stalled_redis_are_refused_together(proxy: ChaosProxy, tmp_path: Path) -> None:
    """The calls in flight find out about the stall: no queued call waits for a deadline of its own."""
    async with gateway_at(proxy.url, tmp_path, deadline_ms=500, slow_ms=400) as gateway:
        await eventually(lambda: gateway.health.is_available)
        await gateway.reserve("p", reserve_request("first", 1))
        proxy.stall()
        started = time.monotonic()
        crowd = [gateway.reserve("p", reserve_request(f"c{number}", 1)) for number in range(600)]
        outcomes = await asyncio.gather(*crowd, return_exceptions=True)
        assert all(isinstance(outcome, LedgerUnavailable) for outcome in outcomes)
        # Two deadlines; the rest is for a busy machine. One deadline after the other, 32 calls at a time, would take 19.
        assert time.monotonic() - started < 5.0
        assert not gateway.health.is_available
        proxy.resume()
        await eventually(lambda: gateway.health.is_available)


async def test_calls_waiting_for_a_rebuild_neither_block_others_nor_open_the_breaker(
    server: RedisServer, tmp_path: Path
) -> None:
    restored = asyncio.Event()

    async def rebuild(project: str, restore: Restore, unsaved: UnsavedEntries) -> None:
        if project == "new":
            await restored.wait()

    engine = RedisLedger(server.url, deadline_ms=2_000, rebuild=rebuild)
    gateway = OutageLedger(engine, Spool(tmp_path, "one"), slow_ms=100, probe_s=PROBE_S)
    await gateway.open()
    try:
        crowd = [asyncio.create_task(gateway.reserve("new", reserve_request(f"c{number}", 1))) for number in range(50)]
        await asyncio.sleep(0.3)
        assert isinstance(await gateway.reserve("other", reserve_request("c1")), Granted)
        restored.set()
        assert all(isinstance(decision, Granted) for decision in await asyncio.gather(*crowd))
        assert gateway.health.times_opened == 0
    finally:
        await gateway.close()


async def test_call_cancelled_in_the_queue_is_never_sent(
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
) -> None:
    await gateway.reserve("p", reserve_request("first", 1, limit=None))
    proxy.stall()
    crowd = [
        asyncio.create_task(gateway.reserve("p", reserve_request(f"c{number}", 1, limit=None))) for number in range(100)
    ]
    await asyncio.sleep(0.05)
    for call in crowd[50:]:
        call.cancel()
    proxy.resume()
    await asyncio.gather(*crowd, return_exceptions=True)
    assert await settled_and_reserved(direct_ledger) == (0, 51)


async def test_settlement_cancelled_in_the_queue_can_be_repeated(
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger, server: RedisServer
) -> None:
    await gateway.reserve("p", reserve_request("c1"))
    proxy.stall()
    crowd = [asyncio.create_task(gateway.balances("p", ["run:r"])) for _ in range(100)]
    await asyncio.sleep(0.05)
    settling = asyncio.create_task(gateway.settle("p", "c1", tokens(6), b"{}"))
    await asyncio.sleep(0.05)
    settling.cancel()
    await asyncio.gather(settling, return_exceptions=True)
    await take_down(proxy, gateway)
    await asyncio.gather(*crowd, return_exceptions=True)
    # The caller asks again. This process must still know the hold, because Redis loses it meanwhile.
    await gateway.settle("p", "c1", tokens(6), b"{}")
    server.command("FLUSHALL")
    proxy.resume()
    await bring_back(proxy, gateway)
    assert await settled_and_reserved(direct_ledger) == (6, 0)


async def test_calls_never_sent_are_not_voided_after_recovery(
    proxy: ChaosProxy, gateway: OutageLedger, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.outage._VOID_UNWANTED_AFTER_S", 0.0)
    await take_down(proxy, gateway)
    for number in range(500):
        with pytest.raises(LedgerUnavailable):
            await gateway.reserve("p", reserve_request(f"c{number}"))
        # As the path of a refused call does.
        await gateway.void("p", f"c{number}")
    server.command("CONFIG", "RESETSTAT")
    await bring_back(proxy, gateway)
    command_stats = server.command("INFO", "commandstats")
    assert "cmdstat_hget:" not in command_stats, "the accounts of a hold were looked up to void it"


async def test_gateway_starts_before_its_redis_and_recovers(proxy: ChaosProxy, tmp_path: Path) -> None:
    await proxy.refuse()
    async with gateway_at(proxy.url, tmp_path) as gateway:
        assert "cannot be reached" in gateway.health.reason
        with pytest.raises(LedgerUnavailable):
            await gateway.reserve("p", reserve_request("c1"))
        await bring_back(proxy, gateway)
        assert isinstance(await gateway.reserve("p", reserve_request("c1")), Granted)


async def test_slow_first_reply_does_not_open_the_breaker(proxy: ChaosProxy, tmp_path: Path) -> None:
    """The first connection, and the first call of a project, take longer than later ones."""
    stalling = asyncio.create_task(stall_request_for(proxy, b"INFO", 0.6))
    async with gateway_at(proxy.url, tmp_path, deadline_ms=400, slow_ms=300) as gateway:
        await stalling
        assert gateway.health.is_available
        stalling = asyncio.create_task(stall_request_for(proxy, b"HGET", 0.6))
        assert isinstance(await gateway.reserve("p", reserve_request("c1")), Granted)
        await stalling
        assert gateway.health.times_opened == 0


async def test_eviction_policy_fails_the_start_instead_of_opening_the_breaker(
    server: RedisServer, tmp_path: Path
) -> None:
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(LedgerError, match="Set it to noeviction"):
            async with gateway_at(server.url, tmp_path):
                pass
    finally:
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_processes_are_counted(server: RedisServer) -> None:
    async with ledger_at(server.url) as first, ledger_at(server.url) as second:
        assert await first.processes() == 1
        assert await second.processes() == 2
        assert await first.processes() == 2
