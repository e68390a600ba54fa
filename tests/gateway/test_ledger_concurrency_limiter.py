"""The limit on operations in flight, and the queue of those that wait."""

from __future__ import annotations

import asyncio

import pytest

from gateway.ledger.concurrency_limiter import ConcurrencyLimiter
from gateway.ledger.port import LedgerUnavailable


class Story:
    """Callers by name, who enter and stay until they are told to leave."""

    def __init__(self, in_flight_max: int, queue_wait_max_s: float = 60.0) -> None:
        self.limiter = ConcurrencyLimiter(in_flight_max, queue_wait_max_s)
        self.entered: list[str] = []
        self._release: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, names: str) -> None:
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


async def test_those_who_wait_go_in_the_order_in_which_they_came() -> None:
    story = Story(in_flight_max=2)
    await story.come("abcde")
    assert story.entered == ["a", "b"]
    await story.release("b")
    assert story.entered == ["a", "b", "c"]
    await story.come("f")
    await story.release("ac")
    assert story.entered == ["a", "b", "c", "d", "e"]
    await story.release("de")
    await story.come("g")
    assert story.entered == ["a", "b", "c", "d", "e", "f", "g"]


async def test_who_comes_in_the_moment_of_a_change_does_not_push_in() -> None:
    story = Story(in_flight_max=1)
    await story.come("ab")
    story._release["a"].set()
    await story.come("c")
    assert story.entered == ["a", "b"]


async def test_a_caller_who_gave_up_in_the_line_is_passed_over() -> None:
    story = Story(in_flight_max=1)
    await story.come("abc")
    story.tasks["b"].cancel()
    await story.release("a")
    assert story.entered == ["a", "c"]


async def test_a_place_given_to_a_caller_who_gives_up_then_goes_on() -> None:
    story = Story(in_flight_max=1)
    await story.come("abc")
    story._release["a"].set()
    # One turn for `a` to leave; `b` has the place, and has not heard of it yet.
    await asyncio.sleep(0)
    story.tasks["b"].cancel()
    await turns()
    assert story.entered == ["a", "c"]
    await story.release("c")
    await story.come("d")
    assert story.entered == ["a", "c", "d"]


async def test_all_who_wait_are_turned_away_and_those_under_way_are_not() -> None:
    story = Story(in_flight_max=1)
    await story.come("abc")
    story.limiter.reject_queued("the ledger is away")
    await turns()
    for name in "bc":
        with pytest.raises(LedgerUnavailable, match="is away"):
            await story.tasks[name]
    assert not story.tasks["a"].done()
    await story.release("a")
    await story.come("d")
    assert story.entered == ["a", "d"]


async def test_nobody_waits_for_ever() -> None:
    story = Story(in_flight_max=1, queue_wait_max_s=0.05)
    await story.come("ab")
    with pytest.raises(LedgerUnavailable, match="cannot keep up"):
        await story.tasks["b"]
    await story.release("a")
    await story.come("c")
    assert story.entered == ["a", "c"]
