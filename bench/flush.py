"""How fast usage events get from an outbox into the store, and how fast reports answer afterwards.

    .venv/bin/python -m bench.flush                              a private Postgres
    .venv/bin/python -m bench.flush --url postgresql://…         another one, whose database must be empty
    .venv/bin/python -m bench.flush --url sqlite:////tmp/x.db    SQLite
    … --rows 1000000 --report                                    then time every report over 30 days of calls

Prints the rate over all batches, and that of the best quarter of them, which shows the cost when the machine is not busy with
other work. Runs, steps and the hourly sums are updated in the same transactions, as in the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import time

import orjson

from gateway.bookkeeping.flusher import BATCH, BATCH_POSTGRES
from gateway.ledger.port import EntryKind, OutboxEntry
from gateway.store import usage, usage_report
from gateway.store.database import Database
from gateway.store.usage_report import GroupBy, UsageFilter
from policies.amounts import Amount

DAY_MS = 86_400_000
CALLS_IN_A_RUN = 20


def event(number: int, at_ms: int, chance: random.Random) -> OutboxEntry:
    """A call as the pipeline writes it: about 700 bytes of JSON."""
    run = number // CALLS_IN_A_RUN
    draft = {
        "request_id": f"req-{number}",
        "key_id": f"key_{run % 3}",
        "protocol": "chat",
        "stream": number % 2 == 0,
        "model_requested": "gpt-4o",
        "model": "gpt-4o-mini",
        "provider": "openai",
        "prompt_tokens_counted": 812,
        "workflow": f"workflow-{run % 5}",
        "run": f"run-{run:08}",
        "step": f"step-{number % 4}",
        "agent": f"agent-{run % 4}",
        "user": "somebody",
        "intent": "summarize",
        "intent_confidence": 0.93,
        "intent_source": "rules",
    }
    detail = {
        "status": "ok",
        "usage_source": "provider",
        "actions": "clamp, compress=1240" if number % 3 == 0 else "",
        "saved_tokens": 1240 if number % 3 == 0 else 0,
        "duration_ms": 834,
        "first_byte_ms": 211,
        "overhead_us": 301,
        "reserved_tokens": 1400,
        "input_tokens": 812,
        "output_tokens": 230,
        "detail": {"decisions": [{"rung": "compress", "refused": "exceeded", "account": "step/x/y"}]},
    }
    amount = Amount(1042, 260_500, 1)
    key = f"{at_ms:012x}{chance.getrandbits(80):020x}"  # as `gateway.ids` makes them
    return OutboxEntry("", key, EntryKind.SETTLED, "default", amount, at_ms, orjson.dumps(draft), orjson.dumps(detail))


def batch_of(url: str) -> int:
    """A batch of the size that the gateway uses while there is a backlog."""
    return BATCH_POSTGRES if url.startswith("postgresql") else BATCH


async def flush(url: str, rows: int, writers: int, days: int) -> tuple[float, list[float], float]:
    """Total seconds, seconds of each batch, CPU seconds of this process."""
    store = Database(url)
    await store.open()
    now_ms = time.time_ns() // 1_000_000
    await store.migrate(now_ms)
    chance = random.Random(1)
    size = batch_of(url)
    starts = iter(range(0, rows, size))
    spent: list[float] = []
    cpu_s = 0.0
    elapsed_s = 0.0

    async def write() -> None:
        nonlocal cpu_s
        for start in starts:
            at_ms = now_ms - days * DAY_MS + start * days * DAY_MS // rows
            batch = [event(number, at_ms + number - start, chance) for number in range(start, min(start + size, rows))]
            began, cpu = time.perf_counter(), time.process_time()
            done = await usage.insert_entries(store, batch, now_ms)
            assert done.inserted == len(batch)
            spent.append(time.perf_counter() - began)
            cpu_s += time.process_time() - cpu

    began = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(writers)))
    elapsed_s = time.perf_counter() - began
    await store.close()
    return elapsed_s, spent, cpu_s


async def reports(url: str, days: int) -> None:
    store = Database(url)
    await store.open()
    now_ms = time.time_ns() // 1_000_000
    month = UsageFilter(project="default", from_ms=now_ms - (days - 1) * DAY_MS + 1234, to_ms=now_ms - 987)
    day = UsageFilter(project="default", from_ms=now_ms - DAY_MS)
    one_run = UsageFilter(project="default", run="run-00000007")
    for label, usage_filter in (
        ("everything", UsageFilter()),
        (f"{days - 1} days", month),
        ("a day", day),
        ("one run", one_run),
    ):
        times = []
        for group_by in GroupBy:
            began = time.perf_counter()
            await usage_report.report(store, group_by, usage_filter, limit=50)
            times.append((group_by.value, (time.perf_counter() - began) * 1000))
        print(f"  report, {label:>10}: " + "  ".join(f"{name} {ms:.0f} ms" for name, ms in times))
    began = time.perf_counter()
    await usage_report.calls(store, month, 100)
    print(f"  100 calls of a range: {(time.perf_counter() - began) * 1000:.0f} ms")
    await store.close()


def measure(url: str, arguments: argparse.Namespace) -> None:
    elapsed_s, spent, cpu_s = asyncio.run(flush(url, arguments.rows, arguments.writers, arguments.days))
    best = statistics.mean(sorted(spent)[: max(1, len(spent) // 4)])
    engine, size = url.partition(":")[0], batch_of(url)
    print(f"{engine}: {arguments.rows} rows, batches of {size}, {arguments.writers} writer(s)")
    print(f"  all batches:  {len(spent) * size / sum(spent) * arguments.writers:10,.0f} rows/s")
    print(f"  best quarter: {size / best * arguments.writers:10,.0f} rows/s ({best * 1000:.1f} ms a batch)")
    print(
        f"  this process: {cpu_s / arguments.rows * 1e6:10.1f} µs of CPU a row; making the events took the rest of {elapsed_s:.0f} s"
    )
    if arguments.report:
        asyncio.run(reports(url, arguments.days))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the store; default: a private Postgres")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--writers", type=int, default=1, help="concurrent flushers")
    parser.add_argument("--days", type=int, default=30, help="number of days over which the calls are spread")
    parser.add_argument("--report", action="store_true", help="time the reports afterwards")
    arguments = parser.parse_args()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)  # as the server has it
    if arguments.url:
        measure(arguments.url, arguments)
        return
    from tests.postgres_server import (
        private_server,
    )  # imported only here, because it needs pytest and the wheel with the server

    with private_server(durable=True) as url:
        measure(url, arguments)


if __name__ == "__main__":
    main()
