"""How many operations a process has under way with its ledger at once. The others wait here, in the order in which they came.

Redis does one command after the other: of five hundred that are sent together the last is answered 60 ms later than the first, or
later than any deadline where a processor is short. Sent a few at a time they are answered no later, and how long an answer takes
then tells how Redis is, not how many were asking. So the clocks of an operation (its deadlines, and what the breaker is told) start
when its turn comes. What waits here was not sent: it can be turned away, or given up by its caller, with nothing to take back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from gateway.ledger.port import LedgerUnavailable

# Enough to keep a Redis busy that is 10 ms away (a process of one core does some 3,000 operations a second), and so few that
# twenty processes whose bursts fall together are answered within 80 ms at 0.12 ms an operation.
AT_ONCE: Final = 32
# A ledger that fails or drags is noticed by those under way. This bounds the rest: a line of all the calls that a process takes
# (`server.concurrency_max`, 4096) is through in that time even if each answer takes 80 ms, the most that is not called slow.
PATIENCE_S: Final = 10.0


class InFlight:
    """`enter` before an operation and `leave` after it, whatever became of it."""

    def __init__(self, at_once: int = AT_ONCE, patience_s: float = PATIENCE_S) -> None:
        self._places = at_once
        self._patience_s = patience_s
        self._line: deque[tuple[asyncio.Future[None], float]] = deque()  # and until when it waits, on the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self) -> None:
        """Raises `LedgerUnavailable` after `patience_s`, or when everybody is turned away."""
        if self._places:
            self._places -= 1
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        due_s = loop.time() + self._patience_s
        self._line.append((turn, due_s))
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._expire)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self.leave()  # the turn came just as the caller gave up
            raise

    def leave(self) -> None:
        """The place passes to the first in line, ahead of anyone who comes now."""
        while self._line:
            turn, _ = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._places += 1

    def turn_away(self, reason: str) -> None:
        """Everyone in line gets `LedgerUnavailable`; operations in flight go on."""
        while self._line:
            turn, _ = self._line.popleft()
            if not turn.done():
                turn.set_exception(LedgerUnavailable(reason))

    def _expire(self) -> None:
        """One timer serves the whole line: all wait equally long, so the first in line is due first."""
        loop, self._timer = asyncio.get_running_loop(), None
        while self._line and self._line[0][1] <= loop.time():
            turn, _ = self._line.popleft()
            if not turn.done():
                turn.set_exception(LedgerUnavailable("the ledger cannot keep up with the calls"))
        if self._line:
            self._timer = loop.call_at(self._line[0][1], self._expire)
