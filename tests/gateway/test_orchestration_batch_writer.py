"""Background writes: batches, a store outage, an unwritable batch, and stopping during a write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.orchestration import batch_writer
from gateway.orchestration.batch_writer import BatchWriter
from gateway.store.database import StoreUnavailable


class Sink:
    """Takes batches, or fails."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, items: Sequence[int]) -> None:
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.taken.append(list(items))

    @property
    def all(self) -> list[int]:
        return [item for batch in self.taken for item in batch]


async def test_items_are_written_in_order_in_batches_of_at_most_500() -> None:
    sink = Sink()
    waiting: BatchWriter[int] = BatchWriter("test", sink.write)
    for number in range(1_200):
        waiting.put(number)
    await waiting.flush()
    assert [len(batch) for batch in sink.taken] == [500, 500, 200]
    assert sink.all == list(range(1_200))


async def test_items_are_retried_after_a_store_outage() -> None:
    sink = Sink()
    sink.fault = StoreUnavailable("away")
    waiting: BatchWriter[int] = BatchWriter("test", sink.write)
    waiting.put(1)
    await waiting.flush()
    waiting.put(2)
    sink.fault = None
    await waiting.flush()
    assert (sink.all, waiting.dropped) == ([1, 2], 0)


async def test_unwritable_batch_is_dropped_and_counted() -> None:
    sink = Sink()
    sink.fault = ValueError("nobody can read this")
    waiting: BatchWriter[int] = BatchWriter("test", sink.write)
    waiting.put(1)
    await waiting.flush()
    sink.fault = None
    waiting.put(2)
    await waiting.flush()
    assert (sink.all, waiting.dropped) == ([2], 1)


async def test_full_queue_drops_its_oldest_tenth() -> None:
    sink = Sink()
    waiting: BatchWriter[int] = BatchWriter("test", sink.write)
    for number in range(batch_writer.WAITING_MAX + 1):
        waiting.put(number)
    await waiting.flush()
    assert waiting.dropped == batch_writer.WAITING_MAX // 10
    assert sink.all == list(range(waiting.dropped, batch_writer.WAITING_MAX + 1))


async def test_stop_during_a_write_loses_nothing() -> None:
    sink = Sink()
    sink.gate.clear()
    waiting: BatchWriter[int] = BatchWriter("test", sink.write)
    waiting.start()
    waiting.put(1)
    await asyncio.sleep(0.4)  # the write is in progress
    waiting.put(2)
    stopping = asyncio.create_task(waiting.stop())
    await asyncio.sleep(0.05)
    sink.gate.set()
    await stopping
    assert sink.all == [1, 2]
