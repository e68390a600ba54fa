"""Gateways on one Redis that are killed, frozen and cut off from it under load, and what became of each call.

Every call has a step of its own, so that the client's answer, the provider's log and the rows of the store can be compared
call by call. What the provider did for a run must never exceed the run's budget, whatever failed.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.acceptance.scaled_out import Fleet, LoopThread, rows_of, settings_for, spooled_in, until
from tests.acceptance.serving import PROMPT_TOKENS, RESERVED_TOKENS, ProviderThread, model
from tests.fake_provider import FakeProvider
from tests.farebox_process import FareboxProcess, tagged
from tests.faults.chaos_proxy import ChaosProxy
from tests.faults.redis_ledgers import ledger_at
from tests.redis_server import RedisServer

OUTPUT_TOKENS = 20
HELD_TOKENS = RESERVED_TOKENS + OUTPUT_TOKENS
USED_TOKENS = PROMPT_TOKENS + OUTPUT_TOKENS


@dataclass
class ClientOutcomes:
    """How often the client of each step got an answer, and all statuses that clients got."""

    answered: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)


@dataclass
class RunAccounts:
    """One run at the end. `served` and `spent_tokens` are the provider's own figures."""

    limit_tokens: int
    outcomes: ClientOutcomes
    served: Counter[str]
    spent_tokens: int
    settled_tokens: int
    rows: list[Any]

    def check(self) -> None:
        assert self.spent_tokens <= self.limit_tokens, self.summary
        assert self.settled_tokens <= self.limit_tokens, self.summary
        assert self.spent_tokens <= self.settled_tokens, self.summary
        assert sum(row["total_tokens"] for row in self.rows) == self.settled_tokens, self.summary
        assert len({row["id"] for row in self.rows}) == len(self.rows), self.summary
        stored = {row["step"] for row in self.rows if row["status"] in ("ok", "late")}
        assert set(self.outcomes.answered) <= stored, self.summary
        assert max(self.outcomes.answered.values(), default=0) <= 1, self.summary

    @property
    def summary(self) -> str:
        kinds = Counter(row["status"] for row in self.rows)
        charged = Counter(dict.fromkeys(kinds, 0))
        for row in self.rows:
            charged[row["status"]] += row["total_tokens"]
        return (
            f"limit {self.limit_tokens}, spent at the provider {self.spent_tokens} in {self.served.total()} calls, "
            f"settled {self.settled_tokens}, answered {self.outcomes.answered.total()}, rows {dict(kinds)}, "
            f"tokens {dict(charged)}, clients {dict(self.outcomes.statuses)}"
        )


@dataclass
class FaultyFleet:
    """Gateways that each reach Redis through a proxy, and a provider that records its requests."""

    fleet: Fleet
    proxies: list[ChaosProxy]
    provider: FakeProvider
    redis: RedisServer
    store: str
    loop: LoopThread
    ttl_s: float

    async def run(self, run: str, limit_tokens: int, clients: int, seed: int, faults: list[str]) -> RunAccounts:
        outcomes = ClientOutcomes()
        injecting = asyncio.create_task(self._inject_faults(random.Random(seed), faults))
        await self.call_concurrently(run, clients, seed, outcomes)
        await injecting
        await self.wait_until_settled()
        return await self.accounts(run, limit_tokens, outcomes)

    async def call_concurrently(
        self,
        run: str,
        clients: int,
        seed: int,
        outcomes: ClientOutcomes,
        *,
        gateways: Sequence[FareboxProcess] = (),
        once: bool = False,
    ) -> None:
        """Clients that call any of the gateways until the budget says that it is used up, or (`once`) until they have an answer."""
        among = gateways or self.fleet.gateways
        connector = aiohttp.TCPConnector(limit=0)
        # Longer than a gateway is frozen: a call whose client disconnects is booked at what was seen of its answer.
        timeout = aiohttp.ClientTimeout(total=self.ttl_s + 90)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.timeout(240 + 2 * self.ttl_s),
            asyncio.TaskGroup() as group,
        ):
            for number in range(clients):
                chance = random.Random(seed * 1000 + number)
                client = self._client(session, run, f"c{seed}-{number}", chance, outcomes, among, once)
                group.create_task(client)

    async def _client(
        self,
        session: aiohttp.ClientSession,
        run: str,
        name: str,
        chance: random.Random,
        outcomes: ClientOutcomes,
        among: Sequence[FareboxProcess],
        once: bool,
    ) -> None:
        for turn in range(10_000):
            status = await self._call(session, chance.choice(among).url, run, f"{name}-{turn}", outcomes)
            if status == 402 or (once and status == 200):
                return
            if status != 200:
                await asyncio.sleep(0.05 + chance.random() * 0.3)

    async def _call(
        self, session: aiohttp.ClientSession, url: str, run: str, step: str, outcomes: ClientOutcomes
    ) -> int:
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": OUTPUT_TOKENS}
        body["user"] = f"{run} {step}"
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body, headers=tagged("wf", run, step)) as answer:
                reply_body = await answer.json()
        except (aiohttp.ClientError, OSError, TimeoutError):
            outcomes.statuses["connection"] += 1
            return 0
        if answer.status == 200:
            outcomes.answered[step] += 1
        outcomes.statuses[f"{answer.status} {'' if answer.status == 200 else reply_body['error']['code']}".strip()] += 1
        return answer.status

    async def _inject_faults(self, chance: random.Random, faults: list[str]) -> None:
        for fault in faults:
            await asyncio.sleep(0.1 + chance.random() * 0.6)
            index = chance.randrange(len(self.fleet.gateways))
            await getattr(self, f"_{fault}")(index)

    async def _kill(self, index: int) -> None:
        await asyncio.to_thread(self.fleet.gateways[index].kill)
        await self._start(index)

    async def _start(self, index: int) -> None:
        """On a busy machine a gateway may not be ready in time: then try once more."""
        try:
            await asyncio.to_thread(self.fleet.gateways[index].start)
        except RuntimeError:
            await asyncio.to_thread(self.fleet.gateways[index].kill)
            await asyncio.to_thread(self.fleet.gateways[index].start)

    async def _freeze(self, index: int) -> None:
        """Freeze the process for longer than its holds live, and then let it continue."""
        process = self.fleet.gateways[index].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.ttl_s + 1.5)
        process.send_signal(signal.SIGCONT)

    async def _partition(self, index: int) -> None:
        """Cut the gateway off from Redis for longer than its holds live."""
        self.loop.do(self.proxies[index].stall)
        await asyncio.sleep(self.ttl_s + 1.5)
        self.loop.do(self.proxies[index].cut)
        self.loop.do(self.proxies[index].resume)

    async def _partition_and_kill(self, index: int) -> None:
        """What it has spooled on its disk is booked by the gateway that starts on that disk."""
        self.loop.do(self.proxies[index].stall)
        await asyncio.sleep(0.7)
        await asyncio.to_thread(self.fleet.gateways[index].kill)
        await asyncio.sleep(self.ttl_s + 1.5)
        self.loop.do(self.proxies[index].resume)
        await self._start(index)

    async def wait_until_nothing_is_held(self, within_s: float = 120) -> None:
        async def nothing_held() -> bool:
            async with ledger_at(self.redis.url, deadline_ms=10_000) as ledger:
                return not await ledger.pending("default")

        await until(nothing_held, within_s, "every hold is resolved")

    async def wait_until_settled(self, within_s: float = 180) -> None:
        """Until nothing is held, in the outbox, or spooled on a disk."""

        async def nothing_left() -> bool:
            spooled = [await asyncio.to_thread(spooled_in, gateway) for gateway in self.fleet.gateways]
            async with ledger_at(self.redis.url, deadline_ms=10_000) as ledger:
                return not any(spooled) and not await ledger.pending("default") and not await ledger.outbox_size()

        await until(nothing_left, within_s, "every hold is resolved and every event in the store")

    async def accounts(self, run: str, limit_tokens: int, outcomes: ClientOutcomes) -> RunAccounts:
        async with ledger_at(self.redis.url, deadline_ms=10_000) as ledger:
            (balance,) = await ledger.balances("default", [f"run/{run}"])
        assert balance.reserved.tokens == 0
        served: Counter[str] = Counter()
        spent = 0
        for request in list(self.provider.requests):
            of_run, _, step = str(request.body.get("user", "")).partition(" ")
            if of_run == run:
                served[step] += 1
                spent += USED_TOKENS
        rows = [row for row in await rows_of(self.store, run) if row["status"] != "refused"]
        return RunAccounts(limit_tokens, outcomes, served, spent, balance.settled.tokens, rows)


@contextmanager
def faulty_fleet(
    folder: Path, redis: RedisServer, store: str, *, size: int, ttl_s: float, limit_tokens: int, **reservations: Any
) -> Iterator[FaultyFleet]:
    loop = LoopThread()
    with ExitStack() as stack:
        stack.callback(loop.close)
        provider = stack.enter_context(ProviderThread())
        proxies = [loop.run(_proxy(redis)) for _ in range(size)]
        for proxy in proxies:
            stack.callback(_close, loop, proxy)
        budgets = [{"scope": "run", "match": "wf", "tokens": limit_tokens, "on_pressure": ["refuse"]}]
        config = settings_for(
            redis.url,
            store,
            budgets=budgets,
            models=[model(provider.openai_url)],
            reservations={"ttl_seconds": ttl_s, "sweep_seconds": 0.5, **reservations},
        )
        fleet = Fleet(folder, config, size, ledger_of=lambda number: proxies[number].url)
        stack.callback(fleet.kill)
        fleet.start()
        yield FaultyFleet(fleet, proxies, provider, redis, store, loop, ttl_s)


async def _proxy(redis: RedisServer) -> ChaosProxy:
    proxy = ChaosProxy(redis.port)
    await proxy.start()
    return proxy


def _close(loop: LoopThread, proxy: ChaosProxy) -> None:
    loop.run(proxy.close())
