"""The ledger is unreachable, slow, or recovers: fast refusals, a bounded local allowance, and no settlement lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.ledger.outage import OutageLedger
from gateway.ledger.port import (
    EntryKind,
    LedgerError,
    LedgerUnavailable,
    OutboxEntry,
    Progress,
    Restore,
    UnsavedEntries,
)
from gateway.ledger.redis import RedisLedger
from gateway.ledger.spool import Spool
from policies.amounts import ZERO, Limit
from policies.reservation import Demand, Gate, Granted, Hold, Refusal, Refused, State
from tests.faults.chaos_proxy import ChaosProxy, chaos
from tests.faults.redis_fixtures import (
    ledger_at,
    reserve_request,
    server,
    settled_and_reserved,
    shared_server,
    tokens,
)
from tests.redis_server import RedisServer
from tests.waiting import eventually

__all__ = ["server", "shared_server"]

PROBE_S = 0.1


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[ChaosProxy]:
    async with chaos(server.port) as started:
        yield started


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


@pytest.fixture
async def gateway(proxy: ChaosProxy, tmp_path: Path) -> AsyncIterator[OutageLedger]:
    async with gateway_at(proxy.url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def direct_ledger(server: RedisServer) -> AsyncIterator[RedisLedger]:
    """The same Redis, without the proxy."""
    async with ledger_at(server.url) as opened:
        yield opened


async def take_down(proxy: ChaosProxy, gateway: OutageLedger) -> None:
    """Redis becomes unreachable, and the gateway has noticed."""
    await proxy.refuse()
    await until_down(gateway)


async def until_down(gateway: OutageLedger) -> None:
    async with asyncio.timeout(20):
        while gateway.health.is_available:
            try:
                await gateway.now_ms()
            except LedgerUnavailable:
                continue


async def bring_back(proxy: ChaosProxy, gateway: OutageLedger) -> None:
    await proxy.start()
    await eventually(lambda: gateway.health.is_available)


async def stall_request_for(proxy: ChaosProxy, request: bytes, seconds: float) -> None:
    """Delay the first request with these bytes, and all after it, for so long."""
    proxy.stall_at = request
    await eventually(lambda: proxy.is_stalled)
    proxy.stall_at = b""
    await asyncio.sleep(seconds)
    proxy.resume()


class TestUnavailable:
    async def test_200_enforced_calls_are_refused_within_a_second(
        self, proxy: ChaosProxy, gateway: OutageLedger
    ) -> None:
        await take_down(proxy, gateway)
        started = time.monotonic()
        for number in range(200):
            with pytest.raises(LedgerUnavailable):
                await gateway.reserve("p", reserve_request(f"c{number}"))
        # The limit is 5 ms each; they take microseconds.
        assert time.monotonic() - started < 1.0
        assert gateway.health.reason != ""

    async def test_full_redis_recovers_once_the_outbox_is_flushed(
        self, server: RedisServer, gateway: OutageLedger
    ) -> None:
        events = [
            OutboxEntry("", f"e{number}", EntryKind.RECORDED, "p", ZERO, 0, b'"%5000d"' % number)
            for number in range(300)
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

    async def test_ledger_recovers_without_a_restart(self, proxy: ChaosProxy, gateway: OutageLedger) -> None:
        await gateway.reserve("p", reserve_request("c1"))
        await take_down(proxy, gateway)
        await bring_back(proxy, gateway)
        assert isinstance(await gateway.reserve("p", reserve_request("c2")), Granted)
        assert gateway.health.times_opened == 1

    async def test_stalled_redis_opens_the_breaker_and_calls_do_not_pile_up(
        self, proxy: ChaosProxy, tmp_path: Path
    ) -> None:
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

    async def test_slow_replies_open_the_breaker(self, proxy: ChaosProxy, tmp_path: Path) -> None:
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

    async def test_blocked_event_loop_does_not_open_the_breaker(self, server: RedisServer, tmp_path: Path) -> None:
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

    async def test_600_calls_over_a_slow_connection_queue_and_are_all_granted(
        self, proxy: ChaosProxy, tmp_path: Path
    ) -> None:
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

    async def test_600_queued_calls_to_a_stalled_redis_are_refused_together(
        self, proxy: ChaosProxy, tmp_path: Path
    ) -> None:
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
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        restored = asyncio.Event()

        async def rebuild(project: str, restore: Restore, unsaved: UnsavedEntries) -> None:
            if project == "new":
                await restored.wait()

        engine = RedisLedger(server.url, deadline_ms=2_000, rebuild=rebuild)
        gateway = OutageLedger(engine, Spool(tmp_path, "one"), slow_ms=100, probe_s=PROBE_S)
        await gateway.open()
        try:
            crowd = [
                asyncio.create_task(gateway.reserve("new", reserve_request(f"c{number}", 1))) for number in range(50)
            ]
            await asyncio.sleep(0.3)
            assert isinstance(await gateway.reserve("other", reserve_request("c1")), Granted)
            restored.set()
            assert all(isinstance(decision, Granted) for decision in await asyncio.gather(*crowd))
            assert gateway.health.times_opened == 0
        finally:
            await gateway.close()

    async def test_call_cancelled_in_the_queue_is_never_sent(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
    ) -> None:
        await gateway.reserve("p", reserve_request("first", 1, limit=None))
        proxy.stall()
        crowd = [
            asyncio.create_task(gateway.reserve("p", reserve_request(f"c{number}", 1, limit=None)))
            for number in range(100)
        ]
        await asyncio.sleep(0.05)
        for call in crowd[50:]:
            call.cancel()
        proxy.resume()
        await asyncio.gather(*crowd, return_exceptions=True)
        assert await settled_and_reserved(direct_ledger) == (0, 51)

    async def test_settlement_cancelled_in_the_queue_can_be_repeated(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger, server: RedisServer
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
        self, proxy: ChaosProxy, gateway: OutageLedger, server: RedisServer, monkeypatch: pytest.MonkeyPatch
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

    async def test_gateway_starts_before_its_redis_and_recovers(self, proxy: ChaosProxy, tmp_path: Path) -> None:
        await proxy.refuse()
        async with gateway_at(proxy.url, tmp_path) as gateway:
            assert "cannot be reached" in gateway.health.reason
            with pytest.raises(LedgerUnavailable):
                await gateway.reserve("p", reserve_request("c1"))
            await bring_back(proxy, gateway)
            assert isinstance(await gateway.reserve("p", reserve_request("c1")), Granted)

    async def test_slow_first_reply_does_not_open_the_breaker(self, proxy: ChaosProxy, tmp_path: Path) -> None:
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
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(LedgerError, match="Set it to noeviction"):
                async with gateway_at(server.url, tmp_path):
                    pass
        finally:
            server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")


class TestSettlements:
    async def test_settlements_during_an_outage_are_booked_after_recovery(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
    ) -> None:
        for number in range(8):
            await gateway.reserve("p", reserve_request(f"c{number}"))
        await take_down(proxy, gateway)
        done = await asyncio.gather(
            *(gateway.settle("p", f"c{number}", tokens(number), b"{}") for number in range(7)),
        )
        assert {(resolution.state, resolution.first) for resolution in done} == {(State.SETTLED, True)}
        assert [resolution.booked.tokens for resolution in done] == list(range(7))
        assert (await gateway.void("p", "c7")).state is State.VOIDED
        assert await settled_and_reserved(direct_ledger) == (0, 80)
        await bring_back(proxy, gateway)
        assert (await settled_and_reserved(direct_ledger))[0] == sum(range(7))
        assert gateway.health.spooled == 0
        assert {entry.id for entry in await direct_ledger.outbox_read("f")} == {f"c{number}" for number in range(7)}

    async def test_overrun_during_an_outage_is_reported_and_booked(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
    ) -> None:
        await gateway.reserve("p", reserve_request("c1", 10))
        await take_down(proxy, gateway)
        assert (await gateway.settle("p", "c1", tokens(13), b"{}")).overrun == tokens(3)
        await bring_back(proxy, gateway)
        assert await settled_and_reserved(direct_ledger) == (13, 0)

    async def test_settlement_whose_reply_was_lost_is_booked_once(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
    ) -> None:
        await gateway.reserve("p", reserve_request("c1"))
        # The replies to it and to every repetition are lost.
        proxy.replies_lost = 1_000
        await gateway.settle("p", "c1", tokens(6), b"{}")
        proxy.replies_lost = 0
        await eventually(lambda: gateway.health.spooled == 0 and gateway.health.is_available)
        assert await settled_and_reserved(direct_ledger) == (6, 0)
        assert await direct_ledger.outbox_size() == 1

    async def test_spooled_settlements_survive_kill_9_of_the_gateway(
        self, proxy: ChaosProxy, direct_ledger: RedisLedger, server: RedisServer, tmp_path: Path
    ) -> None:
        engine = RedisLedger(proxy.url, deadline_ms=2_000)
        dying = OutageLedger(engine, Spool(tmp_path, "dying"), probe_s=PROBE_S)
        await dying.open()
        await dying.reserve("p", reserve_request("c1"))
        await take_down(proxy, dying)
        await dying.settle("p", "c1", tokens(6), b'{"kept":true}')
        # What a kill leaves: the file as it is, without its lock and with a torn last record.
        left = (tmp_path / "dying.spool").read_bytes()
        await dying.close()
        (tmp_path / "dying.spool").write_bytes(left + b"0badc0de {torn")
        async with gateway_at(server.url, tmp_path, name="next") as successor:
            await eventually(lambda: successor.health.is_available)
            assert await settled_and_reserved(direct_ledger) == (6, 0)
        assert not (tmp_path / "dying.spool").exists()

    async def test_settlement_after_a_flush_of_redis_is_booked(
        self, server: RedisServer, gateway: OutageLedger, direct_ledger: RedisLedger
    ) -> None:
        await gateway.reserve("p", reserve_request("c1"))
        server.command("FLUSHALL")
        done = await gateway.settle("p", "c1", tokens(6), b"{}")
        assert (done.state, done.first, done.booked) == (State.SETTLED, True, tokens(6))
        assert await settled_and_reserved(direct_ledger) == (6, 0)

    async def test_settlement_of_another_processes_reservation_is_spooled(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
    ) -> None:
        await direct_ledger.reserve("p", reserve_request("c1"))
        await take_down(proxy, gateway)
        await gateway.settle("p", "c1", tokens(6), b"{}")
        await bring_back(proxy, gateway)
        assert await settled_and_reserved(direct_ledger) == (6, 0)

    async def test_events_recorded_during_an_outage_are_kept(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
    ) -> None:
        await direct_ledger.reserve("p", reserve_request("c0"))
        await take_down(proxy, gateway)
        event = OutboxEntry("", "e1", EntryKind.RECORDED, "p", tokens(3), 0, b'{"untagged":true}')
        await gateway.record("p", [event])
        await bring_back(proxy, gateway)
        (entry,) = await direct_ledger.outbox_read("f")
        assert (entry.id, entry.kind, entry.amount, entry.draft) == ("e1", event.kind, event.amount, event.draft)
        assert entry.at_ms > 0

    async def test_spooled_settlement_that_the_ledger_rejects_is_kept_in_a_file(
        self, proxy: ChaosProxy, server: RedisServer, gateway: OutageLedger, tmp_path: Path
    ) -> None:
        await gateway.reserve("p", reserve_request("c1"))
        await gateway.reserve("q", reserve_request("c2"))
        await take_down(proxy, gateway)
        await gateway.settle("p", "c1", tokens(6), b"{}")
        await gateway.settle("q", "c2", tokens(5), b"{}")
        server.command("HSET", "farebox:{p}:account:run:r", "settled", "nonsense")
        await bring_back(proxy, gateway)
        assert gateway.health.spooled == 0
        rejected = json.loads((tmp_path / "one.rejected").read_bytes().split(b" ", 1)[1])
        assert (rejected["project"], rejected["id"], rejected["used"]) == ("p", "c1", [6, 0, 0])


async def count_local_grants(gateway: OutageLedger) -> int:
    """How many calls of one token the allowance grants before it refuses."""
    for count in range(1_000):
        try:
            await gateway.reserve_locally("p", reserve_request(f"c{count + 1}", 1))
        except LedgerUnavailable:
            return count
    return 1_000


class TestLocalAllowance:
    async def test_allowance_is_the_remaining_budget_divided_by_processes(
        self, proxy: ChaosProxy, tmp_path: Path, direct_ledger: RedisLedger
    ) -> None:
        async with gateway_at(proxy.url, tmp_path, processes=3) as gateway:
            await gateway.reserve("p", reserve_request("c0", 40))
            await take_down(proxy, gateway)
            granted = await count_local_grants(gateway)
            # 100 − 40 are left, divided by three processes.
            assert granted == 20
            for number in range(20):
                await gateway.settle("p", f"c{number + 1}", tokens(1), b"{}")
            await bring_back(proxy, gateway)
            assert await settled_and_reserved(direct_ledger) == (20, 40)

    async def test_unused_allowance_is_released(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
    ) -> None:
        await gateway.reserve("p", reserve_request("c0", 40))
        await take_down(proxy, gateway)
        await gateway.reserve_locally("p", reserve_request("c1", 60))
        with pytest.raises(LedgerUnavailable):
            await gateway.reserve_locally("p", reserve_request("c2", 1))
        await gateway.settle("p", "c1", tokens(25), b"{}")
        await gateway.reserve_locally("p", reserve_request("c3", 35))
        await gateway.void("p", "c3")
        await gateway.reserve_locally("p", reserve_request("c4", 35))
        await bring_back(proxy, gateway)
        assert await settled_and_reserved(direct_ledger) == (25, 40)
        await gateway.settle("p", "c4", tokens(35), b"{}")
        assert await settled_and_reserved(direct_ledger) == (60, 40)

    async def test_scope_never_seen_counts_as_unused(self, proxy: ChaosProxy, tmp_path: Path) -> None:
        async with gateway_at(proxy.url, tmp_path, processes=4) as gateway:
            await take_down(proxy, gateway)
            grant = await gateway.reserve_locally("p", reserve_request("c1", 25, account="run:new"))
            assert isinstance(grant, Granted)
            assert grant.held == tokens(25)
            with pytest.raises(LedgerUnavailable):
                await gateway.reserve_locally("p", reserve_request("c2", 1, account="run:new"))

    async def test_closed_gate_refuses_locally(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
    ) -> None:
        await gateway.reserve("p", reserve_request("c1"))
        await direct_ledger.set_gate("p", "run:r", Gate.CANCELLED)
        await gateway.settle("p", "c1", tokens(1), b"{}")
        await take_down(proxy, gateway)
        refusal = await gateway.reserve_locally("p", reserve_request("c2"))
        assert isinstance(refusal, Refused)
        assert refusal.reason is Refusal.GATE

    async def test_running_call_is_extended_locally(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
    ) -> None:
        holds, more = [Hold("run:r", Limit(tokens=100))], Demand(0, 30, 30, requests=0)
        await gateway.reserve("p", reserve_request("c1", 40))
        await take_down(proxy, gateway)
        grant = await gateway.extend_locally("p", "c1", holds, more)
        assert isinstance(grant, Granted)
        assert (grant.held, grant.output_tokens) == (tokens(70), 70)
        with pytest.raises(LedgerUnavailable, match="used up"):
            await gateway.extend("p", "c1", holds, Demand(0, 31, 31, requests=0))
        done = await gateway.settle("p", "c1", tokens(65), b"{}")
        assert done.overrun == ZERO
        await bring_back(proxy, gateway)
        assert await settled_and_reserved(direct_ledger) == (65, 0)

    async def test_repeated_local_reservation_reserves_once(self, proxy: ChaosProxy, gateway: OutageLedger) -> None:
        await take_down(proxy, gateway)
        first = await gateway.reserve_locally("p", reserve_request("c1", 60))
        second = await gateway.reserve_locally("p", reserve_request("c1", 60))
        assert isinstance(first, Granted)
        assert isinstance(second, Granted)
        assert first.held == second.held

    @pytest.mark.parametrize("is_back", [False, True])
    async def test_cancelled_and_repeated_settlement_is_booked_once(
        self, proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger, is_back: bool
    ) -> None:
        """The ledger does not know a local reservation: only the details of its first settlement can book it."""
        await direct_ledger.reserve("p", reserve_request("c0", 1))
        await take_down(proxy, gateway)
        await gateway.reserve_locally("p", reserve_request("c1", 60))
        if is_back:
            await bring_back(proxy, gateway)
        first = asyncio.create_task(gateway.settle("p", "c1", tokens(25), b"{}"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        again = await gateway.settle("p", "c1", tokens(25), b"{}")
        assert (again.state, again.booked, again.overrun) == (State.SETTLED, tokens(25), ZERO)
        if not is_back:
            await bring_back(proxy, gateway)
        assert await settled_and_reserved(direct_ledger) == (25, 1)
        assert await direct_ledger.outbox_size() == 1

    async def test_local_reservation_needs_no_renewal(self, proxy: ChaosProxy, gateway: OutageLedger) -> None:
        await take_down(proxy, gateway)
        await gateway.reserve_locally("p", reserve_request("c1"))
        assert await gateway.renew("p", [Progress("c1", tokens(1))], 60_000) == ()


async def test_hold_whose_reply_never_arrived_is_voided(
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.outage._VOID_UNWANTED_AFTER_S", 0.2)
    await gateway.reserve("p", reserve_request("c0", 1))
    proxy.replies_lost = 1_000
    with pytest.raises(LedgerUnavailable):
        await gateway.reserve("p", reserve_request("c1", 50))
    assert await settled_and_reserved(direct_ledger) == (0, 51)
    proxy.replies_lost = 0
    async with asyncio.timeout(15):
        while await settled_and_reserved(direct_ledger) != (0, 1):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("grace_min_outage_s", [0.0, 60.0], ids=["long-outage", "short-outage"])
async def test_holds_are_not_swept_right_after_a_long_outage(
    proxy: ChaosProxy, tmp_path: Path, direct_ledger: RedisLedger, grace_min_outage_s: float
) -> None:
    engine = RedisLedger(proxy.url, deadline_ms=2_000)
    spool = Spool(tmp_path, "one")
    gateway = OutageLedger(
        engine, spool, slow_ms=1_500, probe_s=PROBE_S, sweep_grace_s=60.0, grace_min_outage_s=grace_min_outage_s
    )
    await gateway.open()
    try:
        await gateway.reserve("p", reserve_request("c1", ttl_ms=1))
        await take_down(proxy, gateway)
        await bring_back(proxy, gateway)
        swept = await gateway.expire_due()
        if grace_min_outage_s:
            assert [lost.id for lost in swept] == ["c1"], "no renewal was missed"
        else:
            assert swept == ()
            assert await gateway.renew("p", [Progress("c1", tokens(1))], 60_000) == ()
            assert await direct_ledger.expire_due() == []
    finally:
        await gateway.close()


async def test_processes_are_counted(server: RedisServer) -> None:
    async with ledger_at(server.url) as first, ledger_at(server.url) as second:
        assert await first.processes() == 1
        assert await second.processes() == 2
        assert await first.processes() == 2
