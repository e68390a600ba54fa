"""Whatever dies, freezes or loses sight of Redis: a run gets no more answers than its budget pays for.

`FAREBOX_DEATHS_SEEDS=20 FAREBOX_DEATHS_TTL_S=60 pytest -m soak tests/faults/test_budget_deaths.py` looks for longer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.ledger.redis_scripts import SETTLE
from tests.acceptance.scaled_out import redis_or_skip
from tests.faults.deaths import HELD_TOKENS, Deaths, Told, deaths
from tests.faults.redis_fixtures import until
from tests.redis_server import RedisServer

pytest_plugins = ["tests.store_fixtures"]

CALLS = 60
LIMIT = CALLS * HELD_TOKENS
AT_ONCE = 32
SEEDS = int(os.environ.get("FAREBOX_DEATHS_SEEDS", "5"))
TTL_S = float(os.environ.get("FAREBOX_DEATHS_TTL_S", "3"))


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with redis_or_skip() as server:
        yield server


async def answers_that_were_not_booked(world: Deaths, run: str, told: Told) -> None:
    """The first gateway reserves and answers, and has lost sight of Redis when it wants to book what was used."""
    lost = world.proxies[0]
    calling = asyncio.create_task(world.crowd(run, AT_ONCE, 0, told, gateways=world.fleet.gateways[:1], once=True))
    await until(lambda: world.provider.concurrent == AT_ONCE, within_s=60)
    lost.stall_at = SETTLE.sha.encode()
    await calling
    lost.stall_at = b""


async def test_what_was_answered_and_not_booked_is_not_granted_to_others(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    """Its holds run out while what they were used for is on the disk of a gateway that is parted from Redis, or dead."""
    with deaths(tmp_path, redis_server, postgres_url, size=2, ttl_s=TTL_S, limit_tokens=LIMIT) as world:
        for run, dies in (("parted", False), ("killed", True)):
            world.provider.clear()
            world.provider.script(times=AT_ONCE, tokens=20, delay_ms=3_000)
            world.provider.script(times=None, tokens=20)
            told = Told()
            await answers_that_were_not_booked(world, run, told)
            answered = told.answered.total()
            assert answered == AT_ONCE, told.statuses
            if dies:
                await asyncio.to_thread(world.fleet.gateways[0].kill)
            await world.until_nothing_is_held()
            await world.crowd(run, AT_ONCE, 1, told, gateways=world.fleet.gateways[1:])
            assert told.answered.total() > answered, "what was never used is still there"
            world.loop.do(world.proxies[0].cut)
            world.loop.do(world.proxies[0].go_on)
            if dies:
                await asyncio.to_thread(world.fleet.gateways[0].start)
            await world.settled()
            books = await world.books(run, LIMIT, told)
            books.check()
            assert books.settled_tokens == books.spent_tokens, "the disk tells in the end what was really used"


@pytest.mark.parametrize("faults", [["kill", "freeze", "kill"]])
async def test_whoever_dies_or_freezes_a_run_spends_no_more_than_it_was_given(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path, faults: list[str]
) -> None:
    with deaths(tmp_path, redis_server, postgres_url, size=3, ttl_s=TTL_S, limit_tokens=LIMIT) as world:
        world.provider.script(times=None, tokens=20, delay_ms=30)
        (await world.run("r", LIMIT, AT_ONCE, 0, faults)).check()


@pytest.mark.soak
@pytest.mark.timeout(3_600)
async def test_over_many_seeds(redis_server: RedisServer, postgres_url: str, tmp_path: Path) -> None:
    with deaths(tmp_path, redis_server, postgres_url, size=4, ttl_s=TTL_S, limit_tokens=LIMIT) as world:
        for seed in range(SEEDS):
            world.provider.script(times=None, tokens=20, delay_ms=(0, 30, 300)[seed % 3])
            faults = [["kill"] * 3, ["freeze", "kill"], ["part", "kill"], ["part_and_kill"]][seed % 4]
            books = await world.run(f"r-{seed}", LIMIT, AT_ONCE, seed, faults)
            print(f"seed {seed}, {faults}: {books.summary}")
            books.check()
            world.provider.clear()
