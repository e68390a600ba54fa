"""The cost of a call in the direct lane's HTTP client and in aiohttp's: CPU of this process, alternating, with one upstream.

.venv/bin/python -m bench.http_clients
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import aiohttp

from bench import measure
from bench.event_loop import run
from bench.servers import servers, start_mock
from gateway.upstream.http_client import ClientLimits, HttpClient
from gateway.upstream.http_request import Address

_CONNECTIONS: Final = 64
_CALLS_EACH: Final = 40
_ROUNDS: Final = 9
_BODY: Final = b'{"model": "bench-1k", "messages": [{"role": "user", "content": "' + b"x" * 900 + b'"}]}'
_HEADERS: Final = {"content-type": "application/json", "authorization": "Bearer upstream-key"}

Call = Callable[[], Awaitable[None]]


async def _cpu_us(call: Call) -> float:
    async def work() -> None:
        for _ in range(_CALLS_EACH):
            await call()

    began_ns = time.process_time_ns()
    await asyncio.gather(*(work() for _ in range(_CONNECTIONS)))
    return (time.process_time_ns() - began_ns) / 1000 / (_CONNECTIONS * _CALLS_EACH)


async def _compare(url: str) -> dict[str, list[float]]:
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, cookie_jar=jar, auto_decompress=False) as session:
        ours, address = HttpClient(ClientLimits(connections=_CONNECTIONS)), Address.of(url)

        async def with_aiohttp() -> None:
            async with session.post(url, data=_BODY, headers=_HEADERS, allow_redirects=False) as answer:
                await answer.read()

        async def with_ours() -> None:
            answer = await ours.post(address, _HEADERS, _BODY, connect_s=5.0, answer_s=60.0)
            while await answer.readany():
                pass

        cpu_us_by_client: dict[str, list[float]] = {"aiohttp": [], "gateway.upstream.http_client": []}
        for _ in range(_ROUNDS):
            for name, call in zip(cpu_us_by_client, (with_aiohttp, with_ours), strict=True):
                cpu_us_by_client[name].append(await _cpu_us(call))
        await ours.close()
    return cpu_us_by_client


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder), measure.Cores.chosen()) as running:
        upstream = start_mock(running)
        cpu_us_by_client = run(_compare(f"{upstream.url}/v1/chat/completions"))
    for name, rounds in cpu_us_by_client.items():
        print(f"{name:30s} {statistics.median(rounds):7.1f} µs a call")
    theirs, ours = cpu_us_by_client.values()
    print(f"{'ratio, round by round':30s} {statistics.median(x / y for x, y in zip(theirs, ours, strict=True)):7.2f}")


if __name__ == "__main__":
    main()
