"""The limit on operations in flight, and the queue of those that wait."""

from __future__ import annotations

import asyncio

import pytest

from gateway.ledger.concurrency_limiter import ConcurrencyLimiter
from gateway.ledger.port import LedgerUnavailable


class Callers:
    """Named callers, who enter and stay until they are told to leave."""

    def __init__(self, in_flight_max: int, queue_wait_max_s: float = 60.0) -> None:
        self.limiter = ConcurrencyLimiter(in_flight_max, queue_wait_max_s)
        self.entered: list[str] = []
        self._release: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def enter(self, names: str) -> None:
        for name in names:
            self._release[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._stay(name))
        await turns()

    async def release(self, names: str) -> None:
        for name in names:
            self._release[name].set()
        await turns()

    async def _stay(self, name: str) -> None:
        await self.limiter.acquire()
        try:
            self.entered.append(name)
            await self._release[name].wait()
        finally:
            self.limiter.release()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_waiting_callers_enter_in_order_of_arrival() -> None:
    callers = Callers(in_flight_max=2)
    await callers.enter("abcde")
    assert callers.entered == ["a", "b"]
    await callers.release("b")
    assert callers.entered == ["a", "b", "c"]
    await callers.enter("f")
    await callers.release("ac")
    assert callers.entered == ["a", "b", "c", "d", "e"]
    await callers.release("de")
    await callers.enter("g")
    assert callers.entered == ["a", "b", "c", "d", "e", "f", "g"]


async def test_newcomer_does_not_overtake_a_waiting_caller() -> None:
    callers = Callers(in_flight_max=1)
    await callers.enter("ab")
    callers._release["a"].set()
    await callers.enter("c")
    assert callers.entered == ["a", "b"]


async def test_cancelled_waiting_caller_is_skipped() -> None:
    callers = Callers(in_flight_max=1)
    await callers.enter("abc")
    callers.tasks["b"].cancel()
    await callers.release("a")
    assert callers.entered == ["a", "c"]


async def test_place_given_to_a_cancelled_caller_goes_to_the_next() -> None:
    callers = Callers(in_flight_max=1)
    await callers.enter("abc")
    callers._release["a"].set()
    # One turn for `a` to leave: `b` has the place, but has not run yet.
    await asyncio.sleep(0)
    callers.tasks["b"].cancel()
    await turns()
    assert callers.entered == ["a", "c"]
    await callers.release("c")
    await callers.enter("d")
    assert callers.entered == ["a", "c", "d"]


async def test_reject_queued_refuses_waiting_callers_only() -> None:
    callers = Callers(in_flight_max=1)
    await callers.enter("abc")
    callers.limiter.reject_queued("the ledger is away")
    await turns()
    for name in "bc":
        with pytest.raises(LedgerUnavailable, match="is away"):
            await callers.tasks[name]
    assert not callers.tasks["a"].done()
    await callers.release("a")
    await callers.enter("d")
    assert callers.entered == ["a", "d"]


async def test_waiting_longer_than_the_maximum_is_refused() -> None:
    callers = Callers(in_flight_max=1, queue_wait_max_s=0.05)
    await callers.enter("ab")
    with pytest.raises(LedgerUnavailable, match="cannot keep up"):
        await callers.tasks["b"]
    await callers.release("a")
    await callers.enter("c")
    assert callers.entered == ["a", "c"]
