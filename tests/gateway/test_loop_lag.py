"""Event-loop lag: time in which this process was busy, as opposed to waiting."""

from __future__ import annotations

import asyncio
import time

from gateway.ledger.loop_lag import LoopLag


async def test_blocking_the_loop_counts_as_lag() -> None:
    lag = LoopLag()
    lag.start()
    await asyncio.sleep(0.03)
    before_ms = lag.total_ms
    time.sleep(0.2)
    # Measured before and after the loop's next turn: all but one interval of 10 ms is lag.
    assert lag.total_ms - before_ms > 180
    await asyncio.sleep(0)
    assert lag.total_ms - before_ms > 180
    await lag.stop()


async def test_waiting_does_not_count_as_lag() -> None:
    clock_s = 0.0
    lag = LoopLag(monotonic_s=lambda: clock_s)
    lag.start()
    await asyncio.sleep(0.05)
    assert lag.total_ms == 0
    await lag.stop()


async def test_lag_is_zero_before_start() -> None:
    assert LoopLag().total_ms == 0
