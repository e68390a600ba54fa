"""Gateways are killed, frozen and cut off from Redis: a run gets no more answers than its budget pays for.

`FAREBOX_FAULTS_SEEDS=20 FAREBOX_FAULTS_TTL_S=60 pytest -m soak tests/faults/test_budget_gateway_faults.py` looks for longer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.ledger.redis_scripts import SETTLE
from tests.acceptance.scaled_out import redis_or_skip
from tests.faults.gateway_faults import HELD_TOKENS, ClientOutcomes, FaultyFleet, faulty_fleet
from tests.redis_server import RedisServer
from tests.waiting import eventually

pytest_plugins = ["tests.store_fixtures"]

CALLS = 60
LIMIT = CALLS * HELD_TOKENS
AT_ONCE = 32
SEEDS = int(os.environ.get("FAREBOX_FAULTS_SEEDS", "5"))
TTL_S = float(os.environ.get("FAREBOX_FAULTS_TTL_S", "3"))


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with redis_or_skip() as server:
        yield server


async def answer_without_booking(world: FaultyFleet, run: str, outcomes: ClientOutcomes) -> None:
    """The first gateway reserves and answers, and is cut off from Redis when it settles."""
    lost = world.proxies[0]
    calling = asyncio.create_task(
        world.call_concurrently(run, AT_ONCE, 0, outcomes, gateways=world.fleet.gateways[:1], once=True)
    )
    await eventually(lambda: world.provider.concurrent == AT_ONCE, timeout_s=60)
    lost.stall_at = SETTLE.sha.encode()
    await calling
    lost.stall_at = b""


async def test_answered_but_unbooked_usage_is_not_granted_to_other_gateways(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    """The holds expire while their settlements are on the disk of a gateway that is cut off from Redis, or dead."""
    with faulty_fleet(tmp_path, redis_server, postgres_url, size=2, ttl_s=TTL_S, limit_tokens=LIMIT) as world:
        for run, dies in (("partitioned", False), ("killed", True)):
            world.provider.clear()
            world.provider.script(times=AT_ONCE, tokens=20, delay_ms=3_000)
            world.provider.script(times=None, tokens=20)
            outcomes = ClientOutcomes()
            await answer_without_booking(world, run, outcomes)
            answered = outcomes.answered.total()
            assert answered == AT_ONCE, outcomes.statuses
            if dies:
                await asyncio.to_thread(world.fleet.gateways[0].kill)
            await world.wait_until_nothing_is_held()
            await world.call_concurrently(run, AT_ONCE, 1, outcomes, gateways=world.fleet.gateways[1:])
            assert outcomes.answered.total() > answered, "the unused budget is still available"
            world.loop.do(world.proxies[0].cut)
            world.loop.do(world.proxies[0].resume)
            if dies:
                await asyncio.to_thread(world.fleet.gateways[0].start)
            await world.wait_until_settled()
            accounts = await world.accounts(run, LIMIT, outcomes)
            accounts.check()
            assert accounts.settled_tokens == accounts.spent_tokens, (
                "the spooled settlements correct the charge to the real usage"
            )


@pytest.mark.parametrize("faults", [["kill", "freeze", "kill"]])
async def test_run_stays_within_its_budget_while_gateways_are_killed_and_frozen(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path, faults: list[str]
) -> None:
    with faulty_fleet(tmp_path, redis_server, postgres_url, size=3, ttl_s=TTL_S, limit_tokens=LIMIT) as world:
        world.provider.script(times=None, tokens=20, delay_ms=30)
        (await world.run("r", LIMIT, AT_ONCE, 0, faults)).check()


@pytest.mark.soak
@pytest.mark.timeout(3_600)
async def test_run_stays_within_its_budget_over_many_seeds_of_faults(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    with faulty_fleet(tmp_path, redis_server, postgres_url, size=4, ttl_s=TTL_S, limit_tokens=LIMIT) as world:
        for seed in range(SEEDS):
            world.provider.script(times=None, tokens=20, delay_ms=(0, 30, 300)[seed % 3])
            faults = [["kill"] * 3, ["freeze", "kill"], ["partition", "kill"], ["partition_and_kill"]][seed % 4]
            accounts = await world.run(f"r-{seed}", LIMIT, AT_ONCE, seed, faults)
            print(f"seed {seed}, {faults}: {accounts.summary}")
            accounts.check()
            world.provider.clear()
