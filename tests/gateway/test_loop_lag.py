"""Time in which this process itself was busy is told from time in which it waited."""

from __future__ import annotations

import asyncio
import time

from gateway.ledger.loop_lag import LoopLag


async def test_a_loop_that_is_held_up_is_late() -> None:
    lag = LoopLag()
    lag.start()
    await asyncio.sleep(0.03)
    before_ms = lag.total_ms
    time.sleep(0.2)
    # Before the loop had a turn, and after it: at most one pace of 10 ms was not lag.
    assert lag.total_ms - before_ms > 180
    await asyncio.sleep(0)
    assert lag.total_ms - before_ms > 180
    await lag.stop()


async def test_waiting_is_no_lag() -> None:
    clock_s = 0.0
    lag = LoopLag(monotonic_s=lambda: clock_s)
    lag.start()
    await asyncio.sleep(0.05)
    assert lag.total_ms == 0
    await lag.stop()


async def test_without_a_start_there_is_none() -> None:
    assert LoopLag().total_ms == 0
