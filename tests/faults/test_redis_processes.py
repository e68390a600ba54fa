"""Several processes on one Redis."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from pathlib import Path

from gateway.ledger.port import ExpiredReservation
from tests.faults.redis_ledgers import ledger_at, reserve_request, settled_and_reserved
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]

RESERVE = textwrap.dedent("""
    import asyncio, sys
    from policies.reservation import Granted
    from tests.faults.redis_ledgers import ledger_at, reserve_request

    async def main(url, name):
        async with ledger_at(url) as ledger:
            print("ready", flush=True)
            sys.stdin.readline()
            decisions = await asyncio.gather(*(ledger.reserve("p", reserve_request(f"{name}-{n}", 1)) for n in range(250)))
            print(sum(isinstance(one, Granted) for one in decisions), flush=True)

    asyncio.run(main(*sys.argv[1:]))
""")

DIE = textwrap.dedent("""
    import asyncio, os, signal, sys
    from policies.amounts import Amount
    from gateway.ledger.port import Progress
    from policies.reservation import OnLost
    from tests.faults.redis_ledgers import ledger_at, reserve_request

    async def main(url):
        async with ledger_at(url) as ledger:
            await ledger.reserve("p", reserve_request("unsent", 10, ttl_ms=200))
            await ledger.renew("p", [Progress("unsent", Amount(), OnLost.RELEASE)], 200)
            await ledger.reserve("p", reserve_request("sent", 10, ttl_ms=200))
            await ledger.reserve("p", reserve_request("done", 10, ttl_ms=200))
            await ledger.settle("p", "done", Amount(tokens=5), b"{}")
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main(*sys.argv[1:]))
""")


async def start_child(program: str, *arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, cwd=ROOT, stdin=pipe, stdout=pipe
    )


async def test_1000_reserves_from_four_processes_on_a_budget_of_100_grant_exactly_100(server: RedisServer) -> None:
    children = [await start_child(RESERVE, server.url, f"g{number}") for number in range(4)]
    for child in children:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"ready\n"
    outputs = await asyncio.gather(*(child.communicate(b"go\n") for child in children))
    counts = [int(out) for out, _ in outputs]
    assert sum(counts) == 100
    async with ledger_at(server.url) as ledger:
        assert await settled_and_reserved(ledger) == (0, 100)


async def test_holds_of_a_killed_process_are_charged_if_sent_and_released_if_not(server: RedisServer) -> None:
    """kill -9: settlements stay, a hold that may have been sent is charged whole, one that was reported unsent is released."""
    dying = await start_child(DIE, server.url)
    await dying.communicate()
    assert dying.returncode == -9
    async with ledger_at(server.url) as ledger:
        async with asyncio.timeout(20):
            lost: list[ExpiredReservation] = []
            while len(lost) < 2:
                lost += await ledger.expire_due()
                await asyncio.sleep(0.05)
        assert {(expired.id, expired.booked.tokens, expired.released.tokens) for expired in lost} == {
            ("unsent", 0, 10),
            ("sent", 10, 0),
        }
        assert await settled_and_reserved(ledger) == (15, 0)
        assert await ledger.pending("p") == []
        events = {(entry.id, entry.kind.value, entry.amount.tokens) for entry in await ledger.outbox_read("f")}
        assert events == {("done", "settled", 5), ("sent:lost", "expired", 10), ("unsent:lost", "expired", 0)}
        assert (await ledger.reserve("p", reserve_request("next", 85))).now_ms > 0
