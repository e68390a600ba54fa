"""Does a call cost more with a ledger that has a history? CPU per call with a full ledger and with an empty one, alternating.

    .venv/bin/python -m bench.history                        SQLite: 100,000 runs of 10 settled calls each; some minutes
    .venv/bin/python -m bench.history --ledger redis
    .venv/bin/python -m bench.history --runs 1000            a quick check

The ledger is filled through its own port: every call is reserved and settled on a step, a run and the workflow's day, and its
usage event is then removed from the outbox, as the flusher does. The size of the ledger and the rows that a purge removed are
printed, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from bench import measure
from bench.load import LoadResult, LoadSpec
from bench.rounds import Generator, generator
from bench.servers import Server, Servers, redis_server, servers, start_farebox, start_mock
from gateway.ledger.port import Ledger, LedgerUnavailable, Reserve
from gateway.ledger.sqlite import SqliteLedger
from policies.amounts import Amount, Limit
from policies.budgets import RUN_KEEP_MS
from policies.reservation import Demand, Hold

T = TypeVar("T")

_PROJECT: Final = "default"
_AT_ONCE: Final = 64
_TRIES: Final = 20
_PAUSE_S: Final = 0.2
_OUTBOX_EVERY: Final = 20_000
_TTL_MS: Final = 60_000
_PURGES_MAX: Final = 10_000
_DRAFT: Final = (
    b'{"workflow":"nightly","run":"r-17","step":"draft","agent":"writer","intent":"generate","model":"small-model",'
    b'"prompt_tokens":412,"key":"k-1","tier":"balanced","source":"rules","confidence":0.93}'
)
_DETAIL: Final = b'{"status":200,"input_tokens":412,"output_tokens":180,"duration_ms":812,"finish_reason":"stop"}'


def ledger_at(url: str) -> Ledger:
    if url.startswith("sqlite"):
        return SqliteLedger(Path(url.removeprefix("sqlite:///")))
    from gateway.ledger.redis import RedisLedger

    return RedisLedger(url)


async def fill(url: str, runs: int, calls: int) -> tuple[float, int]:
    """Returns the seconds that it took, and the number of rows that a purge removed at the end."""
    ledger = ledger_at(url)
    await ledger.open()
    began_s = time.monotonic()
    numbers = iter(range(runs * calls))

    async def work() -> None:
        for number in numbers:
            await _settled_call(ledger, number, runs)
            if number % _OUTBOX_EVERY == _OUTBOX_EVERY - 1:
                await _drain(ledger)

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    await _drain(ledger)
    took_s = time.monotonic() - began_s
    purged = await _purge(ledger)
    await ledger.close()
    return took_s, purged


async def _settled_call(ledger: Ledger, number: int, runs: int) -> None:
    run = f"old-{number % runs}"
    chain = (
        Hold(f"step:{run}/draft", Limit(10**9), keep_ms=RUN_KEEP_MS),
        Hold(f"run:{run}", Limit(10**9, 10**15), keep_ms=RUN_KEEP_MS),
        Hold("workflow:nightly:day", Limit(None, 10**15)),
    )
    request = Reserve(f"old-{number:08}", "bench", chain, Demand(412, 800, 16, 61_800, 600), _TTL_MS, _DRAFT)
    await _patiently(lambda: ledger.reserve(_PROJECT, request))
    await _patiently(lambda: ledger.settle(_PROJECT, request.id, Amount(592, 169_800, 1), _DETAIL))


async def _patiently(operation: Callable[[], Awaitable[T]]) -> T:
    """On a busy machine, Redis may answer later than a gateway would wait. Ids make retries safe."""
    for _ in range(_TRIES - 1):
        try:
            return await operation()
        except LedgerUnavailable:
            await asyncio.sleep(_PAUSE_S)
    return await operation()


async def _drain(ledger: Ledger) -> None:
    while entries := await _patiently(lambda: ledger.outbox_read("bench", 1_000)):
        await _patiently(partial(ledger.outbox_acknowledge, entries))


async def _purge(ledger: Ledger) -> int:
    """Nothing is old enough to be purged: this only measures that the search is cheap."""
    total = 0
    for _ in range(_PURGES_MAX):
        removed = await _patiently(lambda: ledger.purge(1_000))
        total += removed
        if not removed:
            break
    return total


def _load_spec(server: Server, seconds: float) -> LoadSpec:
    return LoadSpec(
        host="127.0.0.1",
        port=server.port,
        path="1k",
        model="bench-1k",
        connections=32,
        seconds=seconds,
        warm_up_seconds=0.3,
        headers={},
        is_tagged=True,
        prompts="fresh",
        nonce=secrets.token_hex(4),
        processes=measure.tree(server.process.pid),
    )


@contextlib.contextmanager
def ledger_urls(kind: str, folder: Path, cores: measure.Cores) -> Iterator[tuple[str, str]]:
    """An empty one, and one to fill."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'empty.db'}", f"sqlite:///{folder / 'full.db'}"
        return
    with redis_server(cores) as empty, redis_server(cores) as full:
        yield empty, full


def _size_mb(url: str) -> float:
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        files = (path, path.with_name(path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists()) / 2**20
    host, port = url.removeprefix("redis://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"INFO memory\r\n")
        reply = connection.recv(1 << 16).decode()
    return int(reply.partition("used_memory:")[2].split("\r")[0]) / 2**20


def measure_pairs(
    running: Servers, load: Generator, urls: tuple[str, str], rounds: int, seconds: float
) -> list[tuple[LoadResult, LoadResult]]:
    mock = start_mock(running)
    empty, full = (
        start_farebox(running, f"{mock.url}/v1", name=name, ledger=url)
        for name, url in zip(("empty", "full"), urls, strict=True)
    )
    for server in (empty, full):
        load.run(_load_spec(server, 0.5))
    return [(load.run(_load_spec(empty, seconds)), load.run(_load_spec(full, seconds))) for _ in range(rounds)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", choices=("sqlite", "redis"), default="sqlite")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=10, help="settled calls of each run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    cores = measure.Cores.chosen()
    with (
        tempfile.TemporaryDirectory(prefix="farebox-history-") as folder,
        ledger_urls(options.ledger, Path(folder), cores) as urls,
        servers(Path(folder), cores) as running,
        generator(cores.rest) as load,
    ):
        took_s, purged = asyncio.run(fill(urls[1], options.runs, options.calls))
        print(
            f"{options.runs * options.calls:,} settled calls of {options.runs:,} runs in {took_s:.0f} s; purged: {purged}"
        )
        print(f"the ledger takes {_size_mb(urls[1]):.0f} MB")
        pairs = measure_pairs(running, load, urls, options.rounds, options.seconds)
    for empty, full in pairs:
        print(
            f"CPU per call: empty {empty.cpu_us:,.0f} µs, full {full.cpu_us:,.0f} µs; failed {empty.failed + full.failed}"
        )
    ratio = measure.median(full.quiet_cpu_us / empty.quiet_cpu_us for empty, full in pairs if empty.quiet_cpu_us)
    whole = measure.median(full.cpu_us / empty.cpu_us for empty, full in pairs if empty.cpu_us)
    print(f"full ÷ empty, medians of {options.rounds} rounds: {whole:.2f}; in quiet windows {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
