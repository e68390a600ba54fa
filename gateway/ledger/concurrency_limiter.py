"""Limits the operations that a process has in flight with its ledger. The others wait here in a FIFO queue.

Redis runs one command after another: of five hundred sent together, the last is answered 60 ms after the first, or after any deadline
if CPU is short. Sent a few at a time they are answered no later, and the duration of each then shows how Redis is doing, not how
many were asking. So an operation's timeouts, and its duration for the breaker, start when its turn comes. Queued operations were
not sent, so they can be rejected, or given up by their callers, with nothing to take back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from gateway.ledger.port import LedgerUnavailable

# Enough to keep a Redis busy that is 10 ms away (a process on one core does some 3,000 operations a second), and so few that
# simultaneous bursts of twenty processes are answered within 80 ms at 0.12 ms an operation.
IN_FLIGHT_MAX: Final = 32
# Operations in flight detect a failing or slow ledger. This bounds the wait of the others: a queue of as many calls as a process
# accepts (`server.concurrency_max`, 4096) takes no longer, even if each answer takes 80 ms, the most that does not count as slow.
QUEUE_WAIT_MAX_S: Final = 10.0


class ConcurrencyLimiter:
    """Call `acquire` before an operation and `release` after it, whatever its outcome."""

    def __init__(self, in_flight_max: int = IN_FLIGHT_MAX, queue_wait_max_s: float = QUEUE_WAIT_MAX_S) -> None:
        self._free_slots = in_flight_max
        self._queue_wait_max_s = queue_wait_max_s
        self._queue: deque[tuple[asyncio.Future[None], float]] = (
            deque()
        )  # with the end of its wait, on the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self) -> None:
        """Raises `LedgerUnavailable` after `queue_wait_max_s`, or when `reject_queued` is called."""
        if self._free_slots:
            self._free_slots -= 1
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        due_s = loop.time() + self._queue_wait_max_s
        self._queue.append((waiter, due_s))
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._expire)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.exception() is None:
                self.release()  # the turn came just as the caller gave up
            raise

    def release(self) -> None:
        """Pass the slot to the first in the queue, ahead of any new operation."""
        while self._queue:
            waiter, _ = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free_slots += 1

    def reject_queued(self, reason: str) -> None:
        """Fail all queued operations with `LedgerUnavailable`; operations in flight continue."""
        while self._queue:
            waiter, _ = self._queue.popleft()
            if not waiter.done():
                waiter.set_exception(LedgerUnavailable(reason))

    def _expire(self) -> None:
        """One timer serves the whole queue: all wait equally long, so the first one is due first."""
        loop, self._timer = asyncio.get_running_loop(), None
        while self._queue and self._queue[0][1] <= loop.time():
            waiter, _ = self._queue.popleft()
            if not waiter.done():
                waiter.set_exception(LedgerUnavailable("the ledger cannot keep up with the calls"))
        if self._queue:
            self._timer = loop.call_at(self._queue[0][1], self._expire)
