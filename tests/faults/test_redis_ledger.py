"""The Redis ledger when replies are lost, or Redis restarts, is full, is edited by hand, or is unsuitable."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from gateway.ledger import redis_scripts
from gateway.ledger.port import LedgerError, LedgerUnavailable, Progress
from gateway.ledger.redis import RedisLedger
from gateway.ledger.redis_connection import RedisReplyError
from gateway.ledger.redis_errors import as_port_error
from gateway.ledger.redis_server_checks import check_server
from policies.amounts import Limit
from policies.reservation import Demand, Gate, Granted, Hold, Refusal, Refused, State
from tests.faults.chaos_proxy import ChaosProxy
from tests.faults.redis_ledgers import ledger_at, reserve_request, settled_and_reserved, tokens
from tests.redis_server import RedisServer, running_server

MINUTE_MS = 60_000
TAG = "farebox:{p}:"


@pytest.fixture
async def ledger(server: RedisServer) -> AsyncIterator[RedisLedger]:
    async with ledger_at(server.url) as opened:
        yield opened


class TestLostReplies:
    """Redis performs the operation, and the connection breaks before the reply arrives."""

    async def test_reserve_whose_reply_is_lost_reserves_once(self, proxy: ChaosProxy) -> None:
        async with ledger_at(proxy.url) as ledger:
            await ledger.balances("p", ["run:r"])
            await ledger.reserve("p", reserve_request("warm", 1))
            proxy.replies_lost = 1
            grant = await ledger.reserve("p", reserve_request("c1"))
            assert isinstance(grant, Granted)
            assert grant.held == tokens(10)
            assert await settled_and_reserved(ledger) == (0, 11)
            assert proxy.accepted > 1

    async def test_settle_whose_reply_is_lost_books_once(self, proxy: ChaosProxy) -> None:
        async with ledger_at(proxy.url) as ledger:
            await ledger.reserve("p", reserve_request("c1"))
            await ledger.settle("p", "warm", tokens(1), b"{}")
            proxy.replies_lost = 1
            done = await ledger.settle("p", "c1", tokens(7), b"{}")
            assert (done.state, done.first, done.booked) == (State.SETTLED, True, tokens(7))
            assert await settled_and_reserved(ledger) == (7, 0)
            assert await ledger.outbox_size() == 1

    async def test_extend_whose_reply_is_lost_extends_once(self, proxy: ChaosProxy) -> None:
        async with ledger_at(proxy.url) as ledger:
            await ledger.reserve("p", reserve_request("c1"))
            more = Demand(0, 5, 5, requests=0)
            holds = [Hold("run:r", Limit(tokens=100))]
            await ledger.extend("p", "c1", holds, more)
            proxy.replies_lost = 1
            grant = await ledger.extend("p", "c1", holds, more)
            assert isinstance(grant, Granted)
            assert (grant.held, grant.output_tokens) == (tokens(20), 20)
            assert await settled_and_reserved(ledger) == (0, 20)

    async def test_void_whose_reply_is_lost_voids_once(self, proxy: ChaosProxy) -> None:
        async with ledger_at(proxy.url) as ledger:
            await ledger.reserve("p", reserve_request("c1"))
            await ledger.void("p", "warm")
            proxy.replies_lost = 1
            done = await ledger.void("p", "c1")
            assert (done.state, done.first) == (State.VOIDED, True)
            assert await settled_and_reserved(ledger) == (0, 0)


class TestRestarts:
    async def test_flushed_scripts_are_loaded_again(self, server: RedisServer, ledger: RedisLedger) -> None:
        await ledger.reserve("p", reserve_request("c1"))
        server.command("SCRIPT", "FLUSH")
        await asyncio.gather(*(ledger.reserve("p", reserve_request(f"d{number}", 1)) for number in range(5)))
        server.command("SCRIPT", "FLUSH")
        await ledger.settle("p", "c1", tokens(4), b"{}")
        assert await settled_and_reserved(ledger) == (4, 5)

    async def test_kill_9_of_redis_loses_nothing_acknowledged(self) -> None:
        """With `everysec`, Redis acknowledges before it writes while its disk is busy with the last sync, for up to two seconds."""
        with running_server("--appendfsync", "always") as own:
            async with ledger_at(own.url, deadline_ms=2_000) as ledger:
                acknowledged = 0

                async def caller(name: int) -> None:
                    nonlocal acknowledged
                    for number in range(1_000):
                        await ledger.reserve("p", reserve_request(f"{name}-{number}", 1, limit=None))
                        await ledger.settle("p", f"{name}-{number}", tokens(1), b"{}")
                        acknowledged += 1

                callers = [asyncio.create_task(caller(name)) for name in range(8)]
                while acknowledged < 300:
                    await asyncio.sleep(0.01)
                own.kill()
                outcomes = await asyncio.gather(*callers, return_exceptions=True)
                assert all(isinstance(outcome, LedgerUnavailable) for outcome in outcomes)
                own.start()
                settled, _ = await settled_and_reserved(ledger)
                # One settlement of each caller may have run without being answered.
                assert acknowledged <= settled <= acknowledged + 8
                assert await ledger.outbox_size() == settled

    async def test_ledgers_with_old_and_new_scripts_share_a_redis(
        self, server: RedisServer, ledger: RedisLedger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await ledger.reserve("p", reserve_request("c1"))
        newer = replace(redis_scripts.SETTLE, text=redis_scripts.SETTLE.text + "\n-- newer", sha="0" * 40)
        monkeypatch.setattr(redis_scripts, "SETTLE", newer)
        async with ledger_at(server.url) as other:
            assert (await other.settle("p", "c1", tokens(3), b"{}")).first
            granted = await other.reserve("p", reserve_request("c2"))
            assert isinstance(granted, Granted)
        monkeypatch.undo()
        assert (await ledger.settle("p", "c2", tokens(3), b"{}")).first
        assert await settled_and_reserved(ledger) == (6, 0)

    async def test_data_of_a_newer_layout_is_refused(self, server: RedisServer, ledger: RedisLedger) -> None:
        await ledger.reserve("p", reserve_request("c1"))
        server.command("HSET", f"{TAG}meta", "layout", "2")
        with pytest.raises(LedgerError, match="newer Farebox"):
            await ledger.settle("p", "c1", tokens(3), b"{}")


async def test_acknowledged_events_leave_nothing_in_redis(server: RedisServer, ledger: RedisLedger) -> None:
    await ledger.reserve("p", reserve_request("c1"))
    await ledger.settle("p", "c1", tokens(1), b"{}")
    await ledger.outbox_acknowledge(await ledger.outbox_read("flusher"))
    assert server.command("XLEN", f"{TAG}outbox") == ":0\r\n"
    assert server.command("EXISTS", f"{TAG}leases") == ":0\r\n"


async def eventually_expired(ledger: RedisLedger, name: str) -> None:
    async with asyncio.timeout(20):
        while [expired.id for expired in await ledger.expire_due()] != [name]:
            await asyncio.sleep(0.01)


async def test_ledgers_resolve_each_others_reservations(server: RedisServer, ledger: RedisLedger) -> None:
    await ledger.reserve("p", reserve_request("c1"))
    await ledger.reserve("p", reserve_request("c2"))
    async with ledger_at(server.url) as other:
        assert (await other.settle("p", "c1", tokens(5), b"{}")).balances[0].settled == tokens(5)
        assert (await other.void("p", "c2")).state is State.VOIDED
    assert (await ledger.settle("p", "c1", tokens(9), b"{}")).first is False
    assert await settled_and_reserved(ledger) == (5, 0)


def dump_all_keys(server: RedisServer) -> dict[str, str]:
    """All keys with their serialised values."""
    names = sorted(word for word in server.command("KEYS", "*").split("\r\n") if word.startswith("farebox"))
    return {name: server.command("DUMP", name) for name in names}


class TestDamage:
    @pytest.mark.parametrize("key", ["account:run:r", "due", "keep", "hold:c2"])
    async def test_key_of_another_type_fails_reserve_before_any_write(
        self, server: RedisServer, ledger: RedisLedger, key: str
    ) -> None:
        await ledger.reserve("p", reserve_request("c1"))
        server.command("SET", TAG + key, "mine")
        before = dump_all_keys(server)
        with pytest.raises(LedgerError, match="another type"):
            await ledger.reserve("p", reserve_request("c2"))
        assert dump_all_keys(server) == before

    @pytest.mark.parametrize("key", ["account:run:r", "due", "keep", "outbox", "hold:c1"])
    @pytest.mark.parametrize("how", ["settle", "void"])
    async def test_key_of_another_type_fails_settle_and_void_before_any_write(
        self, server: RedisServer, ledger: RedisLedger, key: str, how: str
    ) -> None:
        await ledger.reserve("p", reserve_request("c1"))
        server.command("SET", TAG + key, "mine")
        before = dump_all_keys(server)
        resolve = ledger.settle("p", "c1", tokens(1), b"{}") if how == "settle" else ledger.void("p", "c1")
        with pytest.raises(LedgerError, match="another type"):
            await resolve
        assert dump_all_keys(server) == before

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("settled", "many"),
            ("settled", "-5 0 0"),
            ("settled", "1 2"),
            ("reserved", "9007199254740993 0 0"),
            ("reserved", "1.5 0 0"),
            ("tightened", "5 ? -"),
            ("override", ""),
            ("gate", "ajar"),
            ("keep_ms", "long"),
        ],
    )
    async def test_account_edited_by_hand_is_an_error_and_nothing_is_written(
        self, server: RedisServer, ledger: RedisLedger, field: str, value: str
    ) -> None:
        await ledger.reserve("p", reserve_request("c1"))
        server.command("HSET", f"{TAG}account:run:r", field, value)
        before = dump_all_keys(server)
        for call in (ledger.reserve("p", reserve_request("c2")), ledger.settle("p", "c1", tokens(1), b"{}")):
            with pytest.raises(LedgerError, match=r"edited by hand.*account:run:r"):
                await call
        assert dump_all_keys(server) == before

    async def test_account_deleted_by_hand_never_gets_a_negative_reserve(
        self, server: RedisServer, ledger: RedisLedger
    ) -> None:
        await ledger.reserve("p", reserve_request("c1", 60))
        server.command("DEL", f"{TAG}account:run:r")
        await ledger.settle("p", "c1", tokens(20), b"{}")
        assert await settled_and_reserved(ledger) == (20, 0)

    async def test_index_entry_without_a_reservation_is_dropped(self, server: RedisServer, ledger: RedisLedger) -> None:
        await ledger.reserve("p", reserve_request("c1"))
        server.command("ZADD", f"{TAG}due", 1, "ghost")
        server.command("ZADD", f"{TAG}due", 1, "c1")
        assert await ledger.expire_due() == []
        assert [row[0] for row in await ledger.pending("p")] == ["c1"]
        assert await settled_and_reserved(ledger) == (0, 10)
        assert "ghost" not in server.command("ZRANGE", f"{TAG}due", 0, -1)
        deadline_ms = server.command("HGET", f"{TAG}hold:c1", "deadline_ms")
        assert server.command("ZSCORE", f"{TAG}due", "c1") == deadline_ms, "the index has the reservation's time again"

    async def test_account_deleted_after_an_expiry_never_gets_a_negative_sum(
        self, server: RedisServer, ledger: RedisLedger
    ) -> None:
        await ledger.reserve("p", reserve_request("c1", 60, ttl_ms=1))
        await eventually_expired(ledger, "c1")
        server.command("DEL", f"{TAG}account:run:r")
        assert (await ledger.settle("p", "c1", tokens(20), b"{}")).state is State.LATE
        assert await settled_and_reserved(ledger) == (0, 0)

    async def test_key_of_another_type_fails_acknowledge_before_any_write(
        self, server: RedisServer, ledger: RedisLedger
    ) -> None:
        await ledger.reserve("p", reserve_request("c1"))
        await ledger.settle("p", "c1", tokens(1), b"{}")
        entries = await ledger.outbox_read("flusher")
        server.command("SET", f"{TAG}leases", "mine")
        before = dump_all_keys(server)
        with pytest.raises(LedgerError, match="another type"):
            await ledger.outbox_acknowledge(entries)
        assert dump_all_keys(server) == before


class TestUnsuitableRedis:
    @pytest.fixture(autouse=True)
    def restore_config(self, server: RedisServer) -> Iterator[None]:
        yield
        for name, value in {"maxmemory-policy": "noeviction", "maxmemory": "0", "appendonly": "yes"}.items():
            server.command("CONFIG", "SET", name, value)

    async def test_eviction_policy_is_refused_unless_allowed(self, server: RedisServer) -> None:
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        with pytest.raises(LedgerError, match="Set it to noeviction"):
            async with ledger_at(server.url):
                pass
        async with ledger_at(server.url, allow_eviction=True) as ledger:
            assert any("allkeys-lru" in warning for warning in ledger.warnings)

    async def test_version_before_6_2_is_refused(self) -> None:
        with pytest.raises(LedgerError, match=r"Redis 6\.0\.16 is too old .* 6\.2 or later"):
            check_server({"redis_version": "6.0.16"}, allow_eviction=False)

    async def test_missing_append_only_file_gives_a_warning(self, server: RedisServer) -> None:
        async with ledger_at(server.url) as ledger:
            assert ledger.warnings == ()
        server.command("CONFIG", "SET", "appendonly", "no")
        async with ledger_at(server.url) as ledger:
            assert ["appendonly is off" in warning for warning in ledger.warnings] == [True]

    async def test_strict_durability_requires_appendfsync_always(self, server: RedisServer) -> None:
        with pytest.raises(LedgerError, match="set it to always"):
            async with ledger_at(server.url, durability="strict"):
                pass
        server.command("CONFIG", "SET", "appendfsync", "always")
        async with ledger_at(server.url, durability="strict"):
            pass
        server.command("CONFIG", "SET", "appendfsync", "no")

    async def test_full_redis_refuses_reserves_and_still_settles(
        self, server: RedisServer, ledger: RedisLedger
    ) -> None:
        for name in ("c1", "c2", "c3"):
            await ledger.reserve("p", reserve_request(name))
        server.command("CONFIG", "SET", "maxmemory", "1")
        before = dump_all_keys(server)
        with pytest.raises(LedgerUnavailable, match="Redis is full"):
            await ledger.reserve("p", reserve_request("c4"))
        assert dump_all_keys(server) == before
        await ledger.settle("p", "c1", tokens(4), b"{}")
        await ledger.void("p", "c2")
        await ledger.renew("p", [Progress("c3", tokens(1))], MINUTE_MS)
        assert await settled_and_reserved(ledger) == (4, 10)

    async def test_replica_is_unavailable(self, server: RedisServer, ledger: RedisLedger) -> None:
        await ledger.reserve("p", reserve_request("c1"))
        with running_server() as primary:
            server.command("REPLICAOF", "127.0.0.1", primary.port)
            try:
                with pytest.raises(LedgerUnavailable, match=r"replica|loading"):
                    await ledger.reserve("p", reserve_request("c2"))
            finally:
                server.command("REPLICAOF", "NO", "ONE")

    async def test_password_is_required_checked_and_not_shown_in_errors(self) -> None:
        with running_server() as own:
            # From now on the test's own commands would need the password too, so there are none.
            own.command("CONFIG", "SET", "requirepass", "s3cret/@")
            at = f"127.0.0.1:{own.port}"
            async with ledger_at(f"redis://:s3cret%2F%40@{at}/3") as ledger:
                assert isinstance(await ledger.reserve("p", reserve_request("c1")), Granted)
            for url, why in {f"redis://{at}": "asks for a password", f"redis://:wr0ng@{at}": "does not accept"}.items():
                with pytest.raises(LedgerUnavailable, match=why) as caught:
                    async with ledger_at(url):
                        pass
                assert "wr0ng" not in str(caught.value)

    async def test_redis_blocked_by_a_script_is_unavailable_until_it_ends(
        self, server: RedisServer, ledger: RedisLedger
    ) -> None:
        await ledger.reserve("p", reserve_request("c1"))
        server.command("CONFIG", "SET", "lua-time-limit", "5")
        with socket.create_connection(("127.0.0.1", server.port)) as other:
            script = "while true do end"
            other.sendall(f"EVAL '{script}' 0\r\n".encode())
            try:
                await asyncio.sleep(0.1)
                with pytest.raises(LedgerUnavailable, match="another script blocks Redis"):
                    await ledger.reserve("p", reserve_request("c2"))
            finally:
                server.command("SCRIPT", "KILL")
                # The killed script ends at its next instruction: the other socket gets its error then.
                other.recv(1_000)
        assert isinstance(await ledger.reserve("p", reserve_request("c2")), Granted)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("ERR FAREBOX_LOST farebox:{p}:meta script: 0, on @user_script:24.", "FAREBOX_LOST"),
        ("ERR Error running script (call to f_0a): @user_script:24: FAREBOX_LOST farebox:{p}:meta", "FAREBOX_LOST"),
        ("ERR Error running script (call to f_0a): @user_script:9: @user_script: 9: -OOM command not allowed", "OOM"),
        ("ERR Error running script (call to f_0a): @user_script:9: WRONGTYPE Operation against a key", "WRONGTYPE"),
        ("ERR Error running script (call to f_0a): @user_script:9: user_script:9: attempt to index nil", "ERR"),
        ("READONLY You can't write against a read only replica.", "READONLY"),
    ],
)
def test_script_error_has_the_same_code_in_every_redis_version(reply: str, code: str) -> None:
    assert RedisReplyError(reply).code == code


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("LOADING Redis is loading the dataset in memory", LedgerUnavailable),
        ("MISCONF Errors writing to the AOF file", LedgerUnavailable),
        ("CLUSTERDOWN The cluster is down", LedgerUnavailable),
        ("TRYAGAIN Multiple keys request during rehashing of slot", LedgerUnavailable),
        ("MASTERDOWN Link with MASTER is down", LedgerUnavailable),
        ("NOREPLICAS Not enough good replicas to write.", LedgerUnavailable),
        ("NOPERM User default has no permissions", LedgerUnavailable),
        ("ERR max number of clients reached", LedgerUnavailable),
        ("ERR Protocol error: unauthenticated multibulk length", LedgerUnavailable),
        (
            "ERR The user executing the script can't run this command or subcommand script: ab, on @user_script:1.",
            LedgerUnavailable,
        ),
        ("ERR The user executing the script can't access at least one of the keys mentioned", LedgerUnavailable),
        ("CROSSSLOT Keys in request don't hash to the same slot", LedgerError),
        ("FAREBOX_OVERFLOW k script: 0, on @user_script:3.", LedgerError),
        ("ERR something new", LedgerError),
    ],
)
def test_error_reply_is_unavailability_or_a_ledger_error(reply: str, kind: type[LedgerError]) -> None:
    error = as_port_error(RedisReplyError(reply))
    assert type(error) is kind
    assert reply.split(" ")[0] in str(error)
    assert "script:" not in str(error)


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_750_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestRedisClock:
    async def test_clock_set_back_five_minutes_and_forward_expires_nothing_early(
        self, server: RedisServer, clock: Clock
    ) -> None:
        async with ledger_at(server.url, clock_ms=clock) as ledger:
            await ledger.reserve("p", reserve_request("before"))
            clock.now_ms -= 5 * MINUTE_MS
            during = await ledger.reserve("p", reserve_request("during"))
            assert isinstance(during, Granted)
            assert during.deadline_ms == clock.now_ms + 6 * MINUTE_MS
            clock.now_ms += 50_000
            assert await ledger.renew("p", [Progress("before")], MINUTE_MS) == ()
            # Corrected again: 50 s have passed, and neither hold got more or less than its minute.
            clock.now_ms += 5 * MINUTE_MS
            assert await ledger.expire_due() == []
            clock.now_ms += 11_000
            assert [expired.id for expired in await ledger.expire_due()] == ["during"]

    async def test_ledger_time_survives_a_lost_epoch(self, server: RedisServer, clock: Clock) -> None:
        async with ledger_at(server.url, clock_ms=clock) as ledger:
            first = await ledger.reserve("p", reserve_request("before"))
            server.command("HDEL", "farebox:{p}:meta", "epoch")
            clock.now_ms -= 5 * MINUTE_MS
            second = await ledger.reserve("p", reserve_request("after"))
            assert isinstance(first, Granted)
            assert isinstance(second, Granted)
            assert second.deadline_ms == first.deadline_ms

    async def test_clock_that_stays_behind_still_expires_holds(self, server: RedisServer, clock: Clock) -> None:
        async with ledger_at(server.url, clock_ms=clock) as ledger:
            await ledger.reserve("p", reserve_request("c1"))
            clock.now_ms -= 24 * 60 * MINUTE_MS
            await ledger.current_run("p", "w", "r", MINUTE_MS)
            for _ in range(119):
                clock.now_ms += 1_000
                await ledger.current_run("p", "w", "r", MINUTE_MS)
            assert await ledger.expire_due() == []
            clock.now_ms += 2_000
            await ledger.current_run("p", "w", "r", MINUTE_MS)
            assert [expired.id for expired in await ledger.expire_due()] == ["c1"]


async def test_gates_and_overrides_apply_to_every_ledger(server: RedisServer, ledger: RedisLedger) -> None:
    async with ledger_at(server.url) as other:
        await other.set_gate("p", "run:r", Gate.PAUSED)
        refusal = await ledger.reserve("p", reserve_request("c1"))
        assert isinstance(refusal, Refused)
        assert refusal.reason is Refusal.GATE
        await other.set_gate("p", "run:r", Gate.OPEN)
        await other.set_override("p", "run:r", Limit(tokens=5))
        refusal = await ledger.reserve("p", reserve_request("c1"))
        assert isinstance(refusal, Refused)
        assert (refusal.reason, refusal.balance.limit.tokens) == (Refusal.TOO_LARGE, 5)


class TestOutboxesOfManyProjects:
    async def test_entries_written_by_this_process_are_read_at_once(self, ledger: RedisLedger) -> None:
        assert await ledger.outbox_read("f") == []
        for project in ("p", "q"):
            await ledger.reserve(project, reserve_request("c1"))
            await ledger.settle(project, "c1", tokens(7), b"{}")
        assert {entry.project for entry in await ledger.outbox_read("f")} == {"p", "q"}

    async def test_entries_of_another_process_are_found_by_the_next_scan(self, server: RedisServer) -> None:
        async with ledger_at(server.url, scan_interval_s=0.3) as reader, ledger_at(server.url) as writer:
            assert await reader.outbox_read("f") == []
            await writer.reserve("q", reserve_request("c1"))
            await writer.settle("q", "c1", tokens(7), b"{}")
            async with asyncio.timeout(10):
                while not (entries := await reader.outbox_read("f")):
                    await asyncio.sleep(0.05)
            assert [entry.id for entry in entries] == ["c1"]

    async def test_read_sends_no_commands_for_idle_projects(self, server: RedisServer) -> None:
        async with ledger_at(server.url, scan_interval_s=3600.0) as ledger:
            for number in range(200):
                await ledger.set_gate(f"p{number}", "run:r", Gate.OPEN)
            await ledger.outbox_read("f")
            before = commands_of(server)
            await ledger.outbox_read("f")
            # The command that reads this count is counted too.
            assert commands_of(server) - before <= 1


def commands_of(server: RedisServer) -> int:
    """How many commands the server has been given since its start."""
    line = next(line for line in server.command("INFO", "stats").split("\r\n") if "total_commands_processed" in line)
    return int(line.partition(":")[2])
