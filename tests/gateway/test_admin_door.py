"""Guesses at the door of the admin pages: counted by name and address together, and generously by each alone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.admin import door as doors
from gateway.admin.door import FAILURES_MAX, Door
from gateway.errors import AuthenticationFailed, Overloaded


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    async def nobody(*_: object) -> None:
        return None

    monkeypatch.setattr(doors.people, "check_password", nobody)
    unused = cast(Any, None)
    return Door(unused, unused, clock_ms=lambda: 0, timer_s=lambda: 0.0)


async def guess(door: Door, name: str, host: str) -> str:
    request: Any = SimpleNamespace(client=SimpleNamespace(host=host))
    try:
        await door.log_in(request, name, "guess")
    except Overloaded:
        return "locked"
    except AuthenticationFailed:
        return "wrong"
    return "in"


async def guesses(door: Door, names: list[str], hosts: list[str]) -> int:
    """How many were answered before the door was locked."""
    for answered in range(1000):
        if await guess(door, names[answered % len(names)], hosts[answered % len(hosts)]) == "locked":
            return answered
    return 1000


async def test_one_name_from_one_address_is_locked_first_and_locks_no_other(door: Door) -> None:
    assert await guesses(door, ["ada"], ["1.1.1.1"]) == FAILURES_MAX
    assert await guess(door, "bob", "1.1.1.1") == "wrong"
    assert await guess(door, "ada", "2.2.2.2") == "wrong"


@pytest.mark.parametrize("by", ["names", "hosts"])
async def test_neither_an_address_nor_a_name_is_guessed_with_for_ever(door: Door, by: str) -> None:
    many, one = [f"{at}" for at in range(300)], ["one"]
    assert await guesses(door, *((many, one) if by == "names" else (one, many))) == 100


async def test_guesses_sent_at_once_are_counted_like_others(monkeypatch: pytest.MonkeyPatch, door: Door) -> None:
    checked = 0

    async def nobody(*_: object) -> None:
        nonlocal checked
        checked += 1
        await asyncio.sleep(0)

    monkeypatch.setattr(doors.people, "check_password", nobody)
    answers = await asyncio.gather(*(guess(door, "ada", "1.1.1.1") for _ in range(100)))
    assert checked <= FAILURES_MAX + 1  # two are checked at once
    assert answers.count("locked") == 100 - checked
