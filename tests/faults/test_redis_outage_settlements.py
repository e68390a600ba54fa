"""Settlements and events during an outage of Redis: none is lost, and each is booked once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway.ledger.outage import OutageLedger
from gateway.ledger.port import EntryKind, LedgerUnavailable, OutboxEntry, Progress
from gateway.ledger.redis import RedisLedger
from gateway.ledger.spool import Spool
from policies.reservation import State
from tests.faults.chaos_proxy import ChaosProxy
from tests.faults.redis_ledgers import (
    PROBE_S,
    bring_back,
    gateway_at,
    reserve_request,
    settled_and_reserved,
    take_down,
    tokens,
)
from tests.redis_server import RedisServer
from tests.waiting import eventually


async def test_settlements_during_an_outage_are_booked_after_recovery(
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
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
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
) -> None:
    await gateway.reserve("p", reserve_request("c1", 10))
    await take_down(proxy, gateway)
    assert (await gateway.settle("p", "c1", tokens(13), b"{}")).overrun == tokens(3)
    await bring_back(proxy, gateway)
    assert await settled_and_reserved(direct_ledger) == (13, 0)


async def test_settlement_whose_reply_was_lost_is_booked_once(
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
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
    proxy: ChaosProxy, direct_ledger: RedisLedger, server: RedisServer, tmp_path: Path
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


@pytest.mark.parametrize("used", [6, 13])
async def test_settlement_after_a_flush_of_redis_is_booked_and_kept(
    server: RedisServer, gateway: OutageLedger, direct_ledger: RedisLedger, used: int
) -> None:
    await gateway.reserve("p", reserve_request("c1", 10))
    server.command("FLUSHALL")
    done = await gateway.settle("p", "c1", tokens(used), b"{}")
    assert (done.state, done.first, done.booked, done.overrun) == (
        State.SETTLED,
        True,
        tokens(used),
        tokens(max(0, used - 10)),
    )
    assert await direct_ledger.purge() == 0
    assert await settled_and_reserved(direct_ledger) == (used, 0)


async def test_settlement_of_another_processes_reservation_is_spooled(
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
) -> None:
    await direct_ledger.reserve("p", reserve_request("c1"))
    await take_down(proxy, gateway)
    await gateway.settle("p", "c1", tokens(6), b"{}")
    await bring_back(proxy, gateway)
    assert await settled_and_reserved(direct_ledger) == (6, 0)


async def test_events_recorded_during_an_outage_are_kept(
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
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
    proxy: ChaosProxy, server: RedisServer, gateway: OutageLedger, tmp_path: Path
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
