"""The ledger is away, slow or back again: fast refusals, a bounded local allowance, and no settlement lost."""

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
from gateway.ledger.port import EntryKind, LedgerError, LedgerUnavailable, OutboxEntry, Progress
from gateway.ledger.redis import RedisLedger
from gateway.ledger.redis_projects import Restore, Unsaved
from gateway.ledger.spool import Spool
from policies.amounts import ZERO, Limit
from policies.reservation import Demand, Gate, Granted, Hold, Refusal, Refused, State
from tests.faults.chaos_proxy import ChaosProxy, chaos
from tests.faults.redis_fixtures import ask, ledger_at, server, shared_server, standing, tokens, until
from tests.redis_server import RedisServer

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
    """A gateway's ledger that probes often. Its deadline is long, because this machine may be busy."""
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
async def truth(server: RedisServer) -> AsyncIterator[RedisLedger]:
    """The same Redis, seen without the proxy."""
    async with ledger_at(server.url) as opened:
        yield opened


async def away(proxy: ChaosProxy, gateway: OutageLedger) -> None:
    """Redis dies, and the gateway has noticed."""
    await proxy.refuse()
    await until_down(gateway)


async def until_down(gateway: OutageLedger) -> None:
    async with asyncio.timeout(20):
        while gateway.health.is_available:
            try:
                await gateway.now_ms()
            except LedgerUnavailable:
                continue


async def back(proxy: ChaosProxy, gateway: OutageLedger) -> None:
    await proxy.start()
    await until(lambda: gateway.health.is_available)


async def _stall_for(proxy: ChaosProxy, request: bytes, seconds: float) -> None:
    """The first request with these bytes, and all after it, wait for so long."""
    proxy.stall_at = request
    await until(lambda: proxy.is_stalled)
    proxy.stall_at = b""
    await asyncio.sleep(seconds)
    proxy.go_on()


class TestOutOfReach:
    async def test_enforced_calls_fail_at_once(self, proxy: ChaosProxy, gateway: OutageLedger) -> None:
        await away(proxy, gateway)
        started = time.monotonic()
        for number in range(200):
            with pytest.raises(LedgerUnavailable):
                await gateway.reserve("p", ask(f"c{number}"))
        # 5 ms each is what was promised; they take microseconds.
        assert time.monotonic() - started < 1.0
        assert gateway.health.reason != ""

    async def test_a_full_redis_gets_room_when_the_store_takes_the_outbox(
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
                        await gateway.reserve("p", ask("c1"))
            moved = await gateway.outbox_read("flusher")
            await gateway.outbox_acknowledge(moved)
            assert len(moved) == 300
            await until(lambda: gateway.health.is_available)
        finally:
            server.command("CONFIG", "SET", "maxmemory", 0)

    async def test_it_comes_back_without_a_restart(self, proxy: ChaosProxy, gateway: OutageLedger) -> None:
        await gateway.reserve("p", ask("c1"))
        await away(proxy, gateway)
        await back(proxy, gateway)
        assert isinstance(await gateway.reserve("p", ask("c2")), Granted)
        assert gateway.health.times_opened == 1

    async def test_a_stall_opens_the_breaker_and_piles_nothing_up(self, proxy: ChaosProxy, tmp_path: Path) -> None:
        async with gateway_at(proxy.url, tmp_path, deadline_ms=100, slow_ms=80) as gateway:
            proxy.stall()
            slowest = 0.0
            while gateway.health.is_available:
                started = time.monotonic()
                await asyncio.gather(
                    *(gateway.reserve("p", ask(f"c{number}")) for number in range(50)), return_exceptions=True
                )
                slowest = max(slowest, time.monotonic() - started)
            # 100 ms, and what a busy machine adds.
            assert slowest < 1.0
            proxy.go_on()
            await until(lambda: gateway.health.is_available)

    async def test_slowness_counts_as_failure(self, proxy: ChaosProxy, tmp_path: Path) -> None:
        async with gateway_at(proxy.url, tmp_path, slow_ms=100) as gateway:
            await until(lambda: gateway.health.is_available)
            proxy.latency_s = 0.15
            for number in range(5):
                if gateway.health.is_available:
                    assert isinstance(await gateway.reserve("p", ask(f"c{number}", 1)), Granted)
            assert not gateway.health.is_available
            assert "too slowly" in gateway.health.reason
            await asyncio.sleep(3 * PROBE_S)
            assert not gateway.health.is_available
            proxy.latency_s = 0.0
            await until(lambda: gateway.health.is_available)

    async def test_a_busy_gateway_does_not_blame_its_ledger(self, server: RedisServer, tmp_path: Path) -> None:
        """A crowd that comes to a process which has just started holds its loop up for longer than any deadline."""
        async with gateway_at(server.url, tmp_path, deadline_ms=100, slow_ms=80) as gateway:
            await until(lambda: gateway.health.is_available)
            await gateway.reserve("p", ask("first", 1))
            granted = 0
            for number in range(10):
                call = asyncio.create_task(gateway.reserve("p", ask(f"c{number}", 1)))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                time.sleep(0.15)
                # Where Redis itself gets no time on this machine, one or the other may be late in earnest.
                with contextlib.suppress(LedgerUnavailable):
                    granted += isinstance(await call, Granted)
            assert granted >= 7
            assert gateway.health.is_available

    async def test_a_crowd_waits_for_its_turn(self, proxy: ChaosProxy, tmp_path: Path) -> None:
        """All that come at once take Redis longer than any of them may be under way."""
        async with gateway_at(proxy.url, tmp_path, deadline_ms=1_000, slow_ms=800) as gateway:
            await until(lambda: gateway.health.is_available)
            await gateway.reserve("p", ask("first", 1, limit=None))
            proxy.bytes_per_s = 150_000
            started = time.monotonic()
            crowd = [gateway.reserve("p", ask(f"c{number}", 1, limit=None)) for number in range(600)]
            decisions = await asyncio.gather(*crowd)
            assert time.monotonic() - started > 1.0
            assert all(isinstance(decision, Granted) for decision in decisions)
            assert gateway.health.times_opened == 0

    async def test_a_crowd_before_a_stalled_redis_is_turned_away(self, proxy: ChaosProxy, tmp_path: Path) -> None:
        """By what those under way have found out: nobody in the line waits for a deadline of its own."""
        async with gateway_at(proxy.url, tmp_path, deadline_ms=500, slow_ms=400) as gateway:
            await until(lambda: gateway.health.is_available)
            await gateway.reserve("p", ask("first", 1))
            proxy.stall()
            started = time.monotonic()
            crowd = [gateway.reserve("p", ask(f"c{number}", 1)) for number in range(600)]
            outcomes = await asyncio.gather(*crowd, return_exceptions=True)
            assert all(isinstance(outcome, LedgerUnavailable) for outcome in outcomes)
            # Two deadlines, and what a busy machine adds; all of them, 32 at once, would take 19.
            assert time.monotonic() - started < 5.0
            assert not gateway.health.is_available
            proxy.go_on()
            await until(lambda: gateway.health.is_available)

    async def test_calls_that_wait_for_their_project_are_not_slow_and_in_nobodys_way(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        restored = asyncio.Event()

        async def rebuild(project: str, restore: Restore, unsaved: Unsaved) -> None:
            if project == "new":
                await restored.wait()

        engine = RedisLedger(server.url, deadline_ms=2_000, rebuild=rebuild)
        gateway = OutageLedger(engine, Spool(tmp_path, "one"), slow_ms=100, probe_s=PROBE_S)
        await gateway.open()
        try:
            crowd = [asyncio.create_task(gateway.reserve("new", ask(f"c{number}", 1))) for number in range(50)]
            await asyncio.sleep(0.3)
            assert isinstance(await gateway.reserve("other", ask("c1")), Granted)
            restored.set()
            assert all(isinstance(decision, Granted) for decision in await asyncio.gather(*crowd))
            assert gateway.health.times_opened == 0
        finally:
            await gateway.close()

    async def test_a_call_that_was_given_up_in_the_line_is_never_sent(
        self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger
    ) -> None:
        await gateway.reserve("p", ask("first", 1, limit=None))
        proxy.stall()
        crowd = [asyncio.create_task(gateway.reserve("p", ask(f"c{number}", 1, limit=None))) for number in range(100)]
        await asyncio.sleep(0.05)
        for call in crowd[50:]:
            call.cancel()
        proxy.go_on()
        await asyncio.gather(*crowd, return_exceptions=True)
        assert await standing(truth) == (0, 51)

    async def test_a_settlement_that_was_cancelled_in_the_line_loses_nothing(
        self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger, server: RedisServer
    ) -> None:
        await gateway.reserve("p", ask("c1"))
        proxy.stall()
        crowd = [asyncio.create_task(gateway.balances("p", ["run:r"])) for _ in range(100)]
        await asyncio.sleep(0.05)
        settling = asyncio.create_task(gateway.settle("p", "c1", tokens(6), b"{}"))
        await asyncio.sleep(0.05)
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        await away(proxy, gateway)
        await asyncio.gather(*crowd, return_exceptions=True)
        # As its caller asks again: what this process knows of the hold must still be there, for Redis loses it meanwhile.
        await gateway.settle("p", "c1", tokens(6), b"{}")
        server.command("FLUSHALL")
        proxy.go_on()
        await back(proxy, gateway)
        assert await standing(truth) == (6, 0)

    async def test_calls_that_were_never_asked_leave_nothing_to_give_back(
        self, proxy: ChaosProxy, gateway: OutageLedger, server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.ledger.outage._UNWANTED_AFTER_S", 0.0)
        await away(proxy, gateway)
        for number in range(500):
            with pytest.raises(LedgerUnavailable):
                await gateway.reserve("p", ask(f"c{number}"))
            # As the path of a refused call does.
            await gateway.void("p", f"c{number}")
        server.command("CONFIG", "RESETSTAT")
        await back(proxy, gateway)
        asked = server.command("INFO", "commandstats")
        assert "cmdstat_hget:" not in asked, "the accounts of a hold were looked up, to give it back"

    async def test_a_gateway_may_start_before_its_redis(self, proxy: ChaosProxy, tmp_path: Path) -> None:
        await proxy.refuse()
        async with gateway_at(proxy.url, tmp_path) as gateway:
            assert "cannot be reached" in gateway.health.reason
            with pytest.raises(LedgerUnavailable):
                await gateway.reserve("p", ask("c1"))
            await back(proxy, gateway)
            assert isinstance(await gateway.reserve("p", ask("c1")), Granted)

    async def test_a_first_answer_that_comes_late_is_no_outage(self, proxy: ChaosProxy, tmp_path: Path) -> None:
        """Whoever connects first, and asks for a project first, meets all that is cold."""
        stalling = asyncio.create_task(_stall_for(proxy, b"INFO", 0.6))
        async with gateway_at(proxy.url, tmp_path, deadline_ms=400, slow_ms=300) as gateway:
            await stalling
            assert gateway.health.is_available
            stalling = asyncio.create_task(_stall_for(proxy, b"HGET", 0.6))
            assert isinstance(await gateway.reserve("p", ask("c1")), Granted)
            await stalling
            assert gateway.health.times_opened == 0

    async def test_a_redis_that_may_evict_is_no_outage(self, server: RedisServer, tmp_path: Path) -> None:
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(LedgerError, match="Set it to noeviction"):
                async with gateway_at(server.url, tmp_path):
                    pass
        finally:
            server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")


class TestSettlements:
    async def test_are_booked_when_the_ledger_is_back(
        self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger
    ) -> None:
        for number in range(8):
            await gateway.reserve("p", ask(f"c{number}"))
        await away(proxy, gateway)
        done = await asyncio.gather(
            *(gateway.settle("p", f"c{number}", tokens(number), b"{}") for number in range(7)),
        )
        assert {(one.state, one.first) for one in done} == {(State.SETTLED, True)}
        assert [one.booked.tokens for one in done] == list(range(7))
        assert (await gateway.void("p", "c7")).state is State.VOIDED
        assert await standing(truth) == (0, 80)
        await back(proxy, gateway)
        assert (await standing(truth))[0] == sum(range(7))
        assert gateway.health.spooled == 0
        assert {entry.id for entry in await truth.outbox_read("f")} == {f"c{number}" for number in range(7)}

    async def test_an_overrun_is_told_and_booked(
        self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger
    ) -> None:
        await gateway.reserve("p", ask("c1", 10))
        await away(proxy, gateway)
        assert (await gateway.settle("p", "c1", tokens(13), b"{}")).overrun == tokens(3)
        await back(proxy, gateway)
        assert await standing(truth) == (13, 0)

    async def test_one_that_ran_without_its_reply_is_booked_once(
        self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger
    ) -> None:
        await gateway.reserve("p", ask("c1"))
        # The reply is lost, and so is every repetition.
        proxy.replies_lost = 1_000
        await gateway.settle("p", "c1", tokens(6), b"{}")
        proxy.replies_lost = 0
        await until(lambda: gateway.health.spooled == 0 and gateway.health.is_available)
        assert await standing(truth) == (6, 0)
        assert await truth.outbox_size() == 1

    async def test_survive_kill_9_of_the_gateway(
        self, proxy: ChaosProxy, truth: RedisLedger, server: RedisServer, tmp_path: Path
    ) -> None:
        engine = RedisLedger(proxy.url, deadline_ms=2_000)
        dying = OutageLedger(engine, Spool(tmp_path, "dying"), probe_s=PROBE_S)
        await dying.open()
        await dying.reserve("p", ask("c1"))
        await away(proxy, dying)
        await dying.settle("p", "c1", tokens(6), b'{"kept":true}')
        # What a kill leaves: the file as it is, and its lock free. Nothing is closed in order.
        left = (tmp_path / "dying.spool").read_bytes()
        await dying.close()
        (tmp_path / "dying.spool").write_bytes(left + b"0badc0de {torn")
        async with gateway_at(server.url, tmp_path, name="next") as heir:
            await until(lambda: heir.health.is_available)
            assert await standing(truth) == (6, 0)
        assert not (tmp_path / "dying.spool").exists()

    async def test_of_a_lost_ledger_are_booked_all_the_same(
        self, server: RedisServer, gateway: OutageLedger, truth: RedisLedger
    ) -> None:
        await gateway.reserve("p", ask("c1"))
        server.command("FLUSHALL")
        done = await gateway.settle("p", "c1", tokens(6), b"{}")
        assert (done.state, done.first, done.booked) == (State.SETTLED, True, tokens(6))
        assert await standing(truth) == (6, 0)

    async def test_of_another_process_are_spooled_as_well(
        self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger
    ) -> None:
        await truth.reserve("p", ask("c1"))
        await away(proxy, gateway)
        await gateway.settle("p", "c1", tokens(6), b"{}")
        await back(proxy, gateway)
        assert await standing(truth) == (6, 0)

    async def test_events_without_a_reservation_are_kept_too(
        self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger
    ) -> None:
        await truth.reserve("p", ask("c0"))
        await away(proxy, gateway)
        event = OutboxEntry("", "e1", EntryKind.RECORDED, "p", tokens(3), 0, b'{"untagged":true}')
        await gateway.record("p", [event])
        await back(proxy, gateway)
        (entry,) = await truth.outbox_read("f")
        assert (entry.id, entry.kind, entry.amount, entry.draft) == ("e1", event.kind, event.amount, event.draft)
        assert entry.at_ms > 0

    async def test_what_the_ledger_refuses_is_kept_for_people(
        self, proxy: ChaosProxy, server: RedisServer, gateway: OutageLedger, tmp_path: Path
    ) -> None:
        await gateway.reserve("p", ask("c1"))
        await gateway.reserve("q", ask("c2"))
        await away(proxy, gateway)
        await gateway.settle("p", "c1", tokens(6), b"{}")
        await gateway.settle("q", "c2", tokens(5), b"{}")
        server.command("HSET", "farebox:{p}:account:run:r", "settled", "nonsense")
        await back(proxy, gateway)
        assert gateway.health.spooled == 0
        kept = json.loads((tmp_path / "one.rejected").read_bytes().split(b" ", 1)[1])
        assert (kept["project"], kept["id"], kept["used"]) == ("p", "c1", [6, 0, 0])


async def granted_one_by_one(gateway: OutageLedger) -> int:
    """How many tokens the allowance gives before it refuses."""
    for count in range(1_000):
        try:
            await gateway.reserve_locally("p", ask(f"c{count + 1}", 1))
        except LedgerUnavailable:
            return count
    return 1_000


class TestLocalAllowance:
    async def test_is_what_was_left_divided_by_the_processes(
        self, proxy: ChaosProxy, tmp_path: Path, truth: RedisLedger
    ) -> None:
        async with gateway_at(proxy.url, tmp_path, processes=3) as gateway:
            await gateway.reserve("p", ask("c0", 40))
            await away(proxy, gateway)
            granted = await granted_one_by_one(gateway)
            # 100 − 40 are left, and there are three of us.
            assert granted == 20
            for number in range(20):
                await gateway.settle("p", f"c{number + 1}", tokens(1), b"{}")
            await back(proxy, gateway)
            assert await standing(truth) == (20, 40)

    async def test_frees_what_was_not_used(self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger) -> None:
        await gateway.reserve("p", ask("c0", 40))
        await away(proxy, gateway)
        await gateway.reserve_locally("p", ask("c1", 60))
        with pytest.raises(LedgerUnavailable):
            await gateway.reserve_locally("p", ask("c2", 1))
        await gateway.settle("p", "c1", tokens(25), b"{}")
        await gateway.reserve_locally("p", ask("c3", 35))
        await gateway.void("p", "c3")
        await gateway.reserve_locally("p", ask("c4", 35))
        await back(proxy, gateway)
        assert await standing(truth) == (25, 40)
        await gateway.settle("p", "c4", tokens(35), b"{}")
        assert await standing(truth) == (60, 40)

    async def test_counts_a_scope_that_was_never_seen_as_unused(self, proxy: ChaosProxy, tmp_path: Path) -> None:
        async with gateway_at(proxy.url, tmp_path, processes=4) as gateway:
            await away(proxy, gateway)
            got = await gateway.reserve_locally("p", ask("c1", 25, account="run:new"))
            assert isinstance(got, Granted)
            assert got.held == tokens(25)
            with pytest.raises(LedgerUnavailable):
                await gateway.reserve_locally("p", ask("c2", 1, account="run:new"))

    async def test_keeps_a_closed_scope_closed(
        self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger
    ) -> None:
        await gateway.reserve("p", ask("c1"))
        await truth.set_gate("p", "run:r", Gate.CANCELLED)
        await gateway.settle("p", "c1", tokens(1), b"{}")
        await away(proxy, gateway)
        no = await gateway.reserve_locally("p", ask("c2"))
        assert isinstance(no, Refused)
        assert no.reason is Refusal.GATE

    async def test_lets_a_running_call_grow(self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger) -> None:
        holds, more = [Hold("run:r", Limit(tokens=100))], Demand(0, 30, 30, requests=0)
        await gateway.reserve("p", ask("c1", 40))
        await away(proxy, gateway)
        got = await gateway.extend_locally("p", "c1", holds, more)
        assert isinstance(got, Granted)
        assert (got.held, got.output_tokens) == (tokens(70), 70)
        with pytest.raises(LedgerUnavailable, match="used up"):
            await gateway.extend("p", "c1", holds, Demand(0, 31, 31, requests=0))
        done = await gateway.settle("p", "c1", tokens(65), b"{}")
        assert done.overrun == ZERO
        await back(proxy, gateway)
        assert await standing(truth) == (65, 0)

    async def test_a_reservation_made_twice_is_one(self, proxy: ChaosProxy, gateway: OutageLedger) -> None:
        await away(proxy, gateway)
        one = await gateway.reserve_locally("p", ask("c1", 60))
        two = await gateway.reserve_locally("p", ask("c1", 60))
        assert isinstance(one, Granted)
        assert isinstance(two, Granted)
        assert one.held == two.held

    @pytest.mark.parametrize("is_back", [False, True])
    async def test_a_settlement_that_is_cut_off_and_repeated_is_booked_once(
        self, proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger, is_back: bool
    ) -> None:
        """The ledger has never heard of such a reservation: only what its first settlement knew of it can book it."""
        await truth.reserve("p", ask("c0", 1))
        await away(proxy, gateway)
        await gateway.reserve_locally("p", ask("c1", 60))
        if is_back:
            await back(proxy, gateway)
        first = asyncio.create_task(gateway.settle("p", "c1", tokens(25), b"{}"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        again = await gateway.settle("p", "c1", tokens(25), b"{}")
        assert (again.state, again.booked, again.overrun) == (State.SETTLED, tokens(25), ZERO)
        if not is_back:
            await back(proxy, gateway)
        assert await standing(truth) == (25, 1)
        assert await truth.outbox_size() == 1

    async def test_needs_no_renewal(self, proxy: ChaosProxy, gateway: OutageLedger) -> None:
        await away(proxy, gateway)
        await gateway.reserve_locally("p", ask("c1"))
        assert await gateway.renew("p", [Progress("c1", tokens(1))], 60_000) == ()


async def test_a_hold_whose_reply_was_lost_for_good_is_given_back(
    proxy: ChaosProxy, gateway: OutageLedger, truth: RedisLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.outage._UNWANTED_AFTER_S", 0.2)
    await gateway.reserve("p", ask("c0", 1))
    proxy.replies_lost = 1_000
    with pytest.raises(LedgerUnavailable):
        await gateway.reserve("p", ask("c1", 50))
    assert await standing(truth) == (0, 51)
    proxy.replies_lost = 0
    async with asyncio.timeout(15):
        while await standing(truth) != (0, 1):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("grace_after_s", [0.0, 60.0], ids=["a-long-outage", "a-short-one"])
async def test_holds_are_not_swept_before_their_owners_could_renew(
    proxy: ChaosProxy, tmp_path: Path, truth: RedisLedger, grace_after_s: float
) -> None:
    engine = RedisLedger(proxy.url, deadline_ms=2_000)
    spool = Spool(tmp_path, "one")
    gateway = OutageLedger(
        engine, spool, slow_ms=1_500, probe_s=PROBE_S, sweep_grace_s=60.0, grace_after_s=grace_after_s
    )
    await gateway.open()
    try:
        await gateway.reserve("p", ask("c1", ttl_ms=1))
        await away(proxy, gateway)
        await back(proxy, gateway)
        swept = await gateway.expire_due()
        if grace_after_s:
            assert [lost.id for lost in swept] == ["c1"], "nobody has missed a renewal"
        else:
            assert swept == ()
            assert await gateway.renew("p", [Progress("c1", tokens(1))], 60_000) == ()
            assert await truth.expire_due() == []
    finally:
        await gateway.close()


async def test_processes_are_counted(server: RedisServer) -> None:
    async with ledger_at(server.url) as one, ledger_at(server.url) as two:
        assert await one.processes() == 1
        assert await two.processes() == 2
        assert await one.processes() == 2
