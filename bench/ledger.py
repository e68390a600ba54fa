"""The cost of a ledger: reserve and settle over four scopes, as for a tagged call.

    python bench/ledger.py [--engine memory,sqlite,sqlite-strict] [--redis redis://…] [--calls N] [--at 1,64]

Prints operations per second, the CPU time of this process per operation (a call is two operations), and the time of the slowest calls:
one in a thousand (p99.9), and the slowest of all. CPU is the lower quartile of windows of 50 calls (or of five rounds of what is in
flight): on a shared machine, the rest of the distribution reflects the other load. The CPU of a Redis server is not included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.measure import percentile
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import Ledger, Reserve
from gateway.ledger.sqlite import SqliteLedger
from policies.amounts import Amount, Limit
from policies.reservation import Demand, Hold

WINDOW_CALLS = 50
RUNS = 40  # runs over which calls are spread; all share the workflow and the key
DRAFT = (
    b'{"workflow":"nightly","run":"r-17","step":"draft","agent":"writer","intent":"generate","model":"small-model",'
    b'"prompt_tokens":412,"key":"k-1","tier":"balanced","source":"rules","confidence":0.93}'
)
DETAIL = b'{"status":200,"input_tokens":412,"output_tokens":180,"duration_ms":812,"finish_reason":"stop"}'


def make_ledger(name: str, folder: Path, redis_url: str | None) -> Ledger:
    if name == "memory":
        return MemoryLedger()
    if name == "redis":
        from gateway.ledger.redis import RedisLedger

        return RedisLedger(redis_url or "redis://127.0.0.1:6379")
    return SqliteLedger(folder / "ledger.db", durability="strict" if name == "sqlite-strict" else "normal")


def make_request(prefix: str, number: int) -> Reserve:
    run = number % RUNS
    chain = (
        Hold(f"step:{run}:draft", Limit(10**9)),
        Hold(f"run:{run}", Limit(10**9, 10**15)),
        Hold("workflow:nightly:2026-11-22", Limit(10**12)),
        Hold("key:k-1", Limit(None, 10**15)),
    )
    return Reserve(f"{prefix}-{number:08}", "bench", chain, Demand(412, 800, 16, 61_800, 600), 60_000, DRAFT)


async def call(ledger: Ledger, prefix: str, number: int) -> None:
    request = make_request(prefix, number)
    await ledger.reserve("bench", request)
    await ledger.settle("bench", request.id, Amount(592, 169_800, 1), DETAIL)


class Figures(NamedTuple):
    operations_a_second: float
    cpu_us: float  # per operation
    slow_ms: float  # p99.9 of calls
    slowest_ms: float


async def measure(ledger: Ledger, calls: int, at_once: int) -> Figures:
    prefix = f"{os.getpid()}-{time.time_ns()}"
    window_calls = max(WINDOW_CALLS, 5 * at_once)
    windows: list[float] = []
    took_ms: list[float] = []
    numbers = iter(range(calls))
    began_s = time.perf_counter()
    cpu_s = time.process_time()

    def counted() -> Iterator[int]:
        nonlocal cpu_s
        for number in numbers:
            if number % window_calls == window_calls - 1:
                now_s = time.process_time()
                windows.append((now_s - cpu_s) / (2 * window_calls) * 1e6)
                cpu_s = now_s
            yield number

    source = counted()

    async def work() -> None:
        for number in source:
            asked_s = time.perf_counter()
            await call(ledger, prefix, number)
            took_ms.append((time.perf_counter() - asked_s) * 1e3)

    await asyncio.gather(*(work() for _ in range(at_once)))
    took_s = time.perf_counter() - began_s
    cpu_us = statistics.quantiles(windows, n=4)[0]
    return Figures(2 * calls / took_s, cpu_us, percentile(sorted(took_ms), 0.999), max(took_ms))


async def run(names: list[str], redis_url: str | None, calls: int, at: list[int]) -> None:
    print(f"{'engine':<14} {'at once':>7} {'ops/s':>8} {'CPU µs/op':>10} {'p99.9 ms':>9} {'max ms':>7}")
    for name in names:
        for at_once in at:
            with tempfile.TemporaryDirectory() as folder:
                ledger = make_ledger(name, Path(folder), redis_url)
                await ledger.open()
                await measure(ledger, 20 * max(WINDOW_CALLS, at_once), at_once)
                figures = await measure(ledger, calls if name != "sqlite-strict" else calls // 4, at_once)
                await ledger.close()
            print(
                f"{name:<14} {at_once:>7} {figures.operations_a_second:>8.0f} {figures.cpu_us:>10.1f} {figures.slow_ms:>9.2f} "
                f"{figures.slowest_ms:>7.1f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="memory,sqlite,sqlite-strict")
    parser.add_argument("--redis", metavar="URL", help="measure this Redis too; it is written to, in project `bench`")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--at", default="1,64", help="calls in flight")
    options = parser.parse_args()
    names = options.engine.split(",") + (["redis"] if options.redis else [])
    asyncio.run(run(names, options.redis, options.calls, [int(at) for at in options.at.split(",")]))


if __name__ == "__main__":
    main()
