"""Gateways that share a Redis and a Postgres, as behind a load balancer; each is a separate process."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import asyncpg
import pytest

from tests.farebox_process import FareboxProcess, tagged
from tests.redis_server import RedisServer

T = TypeVar("T")
LOAD_SECONDS = 100.0
# What a call may take when Redis stalls: its deadline of 100 ms, and what a busy machine adds.
FAST_MS = 150


class LoopThread:
    """An event loop in another thread, for proxies and providers that must answer while the test waits."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def do(self, action: Callable[[], None]) -> None:
        async def act() -> None:
            action()

        self.run(act())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def settings_for(ledger: str, store: str, **sections: Any) -> dict[str, Any]:
    """A configuration with a mock model. The time limits are short, because tests wait for them."""
    mock = {
        "model_name": "mock",
        "litellm_params": {"model": "openai/mock", "mock_response": "one two three"},
        "model_info": {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7, "max_output_tokens": 4096},
    }
    storage = {"ledger": ledger, "store": store, **sections.pop("storage", {})}
    reservations = {"ttl_seconds": 10.0, "sweep_seconds": 0.5, **sections.pop("reservations", {})}
    return {
        "model_list": [mock, *sections.pop("models", [])],
        "router_settings": {"num_retries": 0},
        "storage": storage,
        "reservations": reservations,
        "server": {"drain_seconds": 2.0, **sections.pop("server", {})},
        **sections,
    }


@dataclass
class Fleet:
    """Gateway processes with the same configuration, each with its own folder, port and spool."""

    folder: Path
    config: dict[str, Any]
    size: int
    gateways: list[FareboxProcess] = field(default_factory=list)
    # Another address of the ledger for one of them, to stand between it and Redis.
    ledger_of: Callable[[int], str] | None = None

    def start(self) -> None:
        for number in range(self.size):
            folder = self.folder / f"gateway-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            self.gateways.append(FareboxProcess(folder, self._config_of(number)))
        with ThreadPoolExecutor(self.size) as pool:
            list(pool.map(FareboxProcess.start, self.gateways))

    def _config_of(self, number: int) -> dict[str, Any]:
        if self.ledger_of is None:
            return self.config
        return {**self.config, "storage": {**self.config["storage"], "ledger": self.ledger_of(number)}}

    def stop(self) -> list[int]:
        """Exit codes of a clean stop."""
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(FareboxProcess.stop, self.gateways))

    def kill(self) -> None:
        for gateway in self.gateways:
            if gateway.process is not None and gateway.process.poll() is None:
                gateway.kill()


@dataclass
class Crowd:
    """Clients that call until the budget is used up. `statuses` has the answers."""

    urls: Callable[[], list[str]]
    run: str
    seed: int
    model: str = "mock"
    statuses: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    async def call_until_refused(self, clients: int) -> None:
        timeout = aiohttp.ClientTimeout(total=30)
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            async with asyncio.timeout(LOAD_SECONDS):
                await asyncio.gather(*(self._client(session, number) for number in range(clients)))

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        chance = random.Random(self.seed * 1_000 + number)
        while True:
            status, code = await self._call(session, chance.choice(self.urls()))
            self.statuses[f"{status} {code}".strip()] += 1
            if status == 402:
                return
            if status != 200:
                await asyncio.sleep(0.05 + chance.random() * 0.2)

    async def _call(self, session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
        body = {"model": self.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
        headers = tagged("crowd", self.run)
        started = time.monotonic()
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
                reply = await answer.json()
        except (aiohttp.ClientError, OSError):
            return 0, "connection"
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        return answer.status, "" if answer.status == 200 else reply["error"]["code"]

    @property
    def granted(self) -> int:
        return self.statuses["200"]


async def rows_of(store: str, run: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(store)
    try:
        return list(await connection.fetch("SELECT * FROM token_usage WHERE run = $1 ORDER BY id", run))
    finally:
        await connection.close()


async def until(holds: Callable[[], Awaitable[bool]], within_s: float, description: str) -> None:
    deadline = time.monotonic() + within_s
    while not await holds():
        assert time.monotonic() < deadline, f"not within {within_s} s: {description}"
        await asyncio.sleep(0.1)


def spooled_in(gateway: FareboxProcess) -> int:
    """Settlements on this process's disk that wait for Redis."""
    return int(gateway.get("/readyz?verbose").json()["ledger"]["spooled"])


@contextlib.contextmanager
def redis_or_skip(*options: str) -> Iterator[RedisServer]:
    server = RedisServer(*options)
    try:
        server.start()
    except FileNotFoundError as lacking:
        pytest.skip(str(lacking))
    try:
        yield server
    finally:
        server.remove()
