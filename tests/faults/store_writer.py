"""A process to be killed: writes the same events into a store over and over, in small batches.

python -m tests.faults.store_writer URL EVENTS
"""

from __future__ import annotations

import asyncio
import sys

from gateway.store import usage
from gateway.store.database import Database
from tests.store_events import NOW_MS, entry

BATCH = 20


async def write(url: str, events: int) -> None:
    store = Database(url)
    await store.open()
    await store.migrate(NOW_MS)
    batch_of = [
        [
            entry(f"e{number}", run=f"r{number % 13}", at_ms=1_800_000_000_000 + number)
            for number in range(start, start + BATCH)
        ]
        for start in range(0, events, BATCH)
    ]
    while True:
        for batch in batch_of:
            await usage.insert_entries(store, batch, NOW_MS)
            print("committed", flush=True)


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], int(sys.argv[2])))
