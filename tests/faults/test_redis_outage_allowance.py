"""The allowance of budgets that say `on_outage: allow`, while Redis is out of reach."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.ledger.outage import OutageLedger
from gateway.ledger.port import LedgerUnavailable, Progress
from gateway.ledger.redis import RedisLedger
from policies.amounts import ZERO, Limit
from policies.reservation import Demand, Gate, Granted, Hold, Refusal, Refused, State
from tests.faults.chaos_proxy import ChaosProxy
from tests.faults.redis_ledgers import bring_back, gateway_at, reserve_request, settled_and_reserved, take_down, tokens


async def count_local_grants(gateway: OutageLedger) -> int:
    """How many calls of one token the allowance grants before it refuses."""
    for count in range(1_000):
        try:
            await gateway.reserve_locally("p", reserve_request(f"c{count + 1}", 1))
        except LedgerUnavailable:
            return count
    return 1_000


async def test_allowance_is_the_remaining_budget_divided_by_processes(
    proxy: ChaosProxy, tmp_path: Path, direct_ledger: RedisLedger
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
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
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


async def test_scope_never_seen_counts_as_unused(proxy: ChaosProxy, tmp_path: Path) -> None:
    async with gateway_at(proxy.url, tmp_path, processes=4) as gateway:
        await take_down(proxy, gateway)
        grant = await gateway.reserve_locally("p", reserve_request("c1", 25, account="run:new"))
        assert isinstance(grant, Granted)
        assert grant.held == tokens(25)
        with pytest.raises(LedgerUnavailable):
            await gateway.reserve_locally("p", reserve_request("c2", 1, account="run:new"))


async def test_closed_gate_refuses_locally(
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
) -> None:
    await gateway.reserve("p", reserve_request("c1"))
    await direct_ledger.set_gate("p", "run:r", Gate.CANCELLED)
    await gateway.settle("p", "c1", tokens(1), b"{}")
    await take_down(proxy, gateway)
    refusal = await gateway.reserve_locally("p", reserve_request("c2"))
    assert isinstance(refusal, Refused)
    assert refusal.reason is Refusal.GATE


async def test_running_call_is_extended_locally(
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger
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


async def test_repeated_local_reservation_reserves_once(proxy: ChaosProxy, gateway: OutageLedger) -> None:
    await take_down(proxy, gateway)
    first = await gateway.reserve_locally("p", reserve_request("c1", 60))
    second = await gateway.reserve_locally("p", reserve_request("c1", 60))
    assert isinstance(first, Granted)
    assert isinstance(second, Granted)
    assert first.held == second.held


@pytest.mark.parametrize("is_back", [False, True])
async def test_cancelled_and_repeated_settlement_is_booked_once(
    proxy: ChaosProxy, gateway: OutageLedger, direct_ledger: RedisLedger, is_back: bool
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


async def test_local_reservation_needs_no_renewal(proxy: ChaosProxy, gateway: OutageLedger) -> None:
    await take_down(proxy, gateway)
    await gateway.reserve_locally("p", reserve_request("c1"))
    assert await gateway.renew("p", [Progress("c1", tokens(1))], 60_000) == ()
