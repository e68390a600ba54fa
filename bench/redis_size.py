"""What the ledger uses in Redis: bytes per run, per resolved hold and per waiting event, and Redis's own CPU.

    python -m bench.redis_size [--runs 3000]

Starts a private Redis (AOF everysec), creates runs of four steps with one call each and four accounts per call, and asks Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
from collections import defaultdict
from urllib.parse import urlparse

from bench.ledger import DETAIL, DRAFT
from gateway.ledger.port import Reserve
from gateway.ledger.redis import RedisLedger
from policies.amounts import Amount, Limit
from policies.reservation import Demand, Hold
from tests.redis_server import RedisServer

STEPS = 4
CALLS_AT_ONCE = 64


class RedisStats:
    """A plain connection to Redis."""

    def __init__(self, url: str) -> None:
        address = urlparse(url)
        self._socket = socket.create_connection((address.hostname or "127.0.0.1", address.port or 6379))
        self._file = self._socket.makefile("rb")

    def call(self, *words: str) -> object:
        self._socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
        return self._answer()

    def _answer(self) -> object:
        line = self._file.readline().strip()
        kind, content = line[:1], line[1:]
        if kind == b"*":
            return [self._answer() for _ in range(int(content))]
        if kind == b"$":
            return self._file.read(int(content) + 2)[:-2].decode() if int(content) >= 0 else None
        return int(content) if kind == b":" else content.decode()

    def memory_and_cpu(self) -> tuple[float, float]:
        """(bytes in use, seconds of CPU)."""
        text = str(self.call("INFO"))
        memory, system, user = (
            float(re.findall(rf"{name}:([\d.]+)", text)[0]) for name in ("used_memory", "used_cpu_sys", "used_cpu_user")
        )
        return memory, system + user

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """(keys, bytes) of each kind of key, which is the word after the project."""
        sums_by_kind: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for key in self.call("KEYS", "*"):  # type: ignore[attr-defined]
            kind = re.sub(r"^farebox:\{[^}]*\}:?", "", str(key)).partition(":")[0]
            sums_by_kind[kind][0] += 1
            sums_by_kind[kind][1] += int(str(self.call("MEMORY", "USAGE", str(key), "SAMPLES", "0")))
        return {kind: (keys, size) for kind, (keys, size) in sorted(sums_by_kind.items())}


async def one_call(ledger: RedisLedger, run: str, step: int) -> None:
    chain = (
        Hold(f"step/{run}/s{step}", Limit(4_000)),
        Hold(f"run/{run}", Limit(20_000, 10**9)),
        Hold("workflow/nightly@day:1795824000000", Limit(10**14)),
        Hold("key/k-1@day:1795824000000", Limit(None, 10**15)),
    )
    request = Reserve(f"{run}-{step}", "bench", chain, Demand(412, 800, 16, 61_800, 600), 60_000, DRAFT)
    await ledger.reserve("default", request)
    await ledger.settle("default", request.id, Amount(592, 169_800, 1), DETAIL)


async def empty_outbox(ledger: RedisLedger) -> None:
    while entries := await ledger.outbox_read("bench", 1_000):
        await ledger.outbox_acknowledge(entries)


async def measure(runs: int) -> None:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "everysec")
    server.start()
    stats = RedisStats(server.url)
    ledger = RedisLedger(server.url, deadline_ms=10_000)
    try:
        await ledger.open()
        await one_call(ledger, "warm", 0)
        await empty_outbox(ledger)
        before, cpu_before_s = stats.memory_and_cpu()
        names = [f"run-01a21fba{number:08}" for number in range(runs)]
        for at in range(0, runs, CALLS_AT_ONCE):
            calls = [one_call(ledger, run, step) for run in names[at : at + CALLS_AT_ONCE] for step in range(STEPS)]
            await asyncio.gather(*calls)
        waiting, cpu_after_s = stats.memory_and_cpu()
        await empty_outbox(ledger)
        after, _ = stats.memory_and_cpu()
        calls_made = runs * STEPS
        print(f"{(after - before) / runs:8.0f} bytes a run of {STEPS} steps and calls, its holds still remembered")
        print(f"{(waiting - after) / calls_made:8.0f} bytes a usage event that waits for the store")
        print(f"{(cpu_after_s - cpu_before_s) / calls_made * 1e6:8.0f} µs of Redis's CPU a call (reserve and settle)")
        for kind, (keys, size) in stats.by_kind().items():
            print(f"{size / runs:8.0f} bytes a run in {keys} keys {kind!r}")
    finally:
        await ledger.close()
        stats.close()
        server.remove()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3_000)
    asyncio.run(measure(parser.parse_args().runs))
