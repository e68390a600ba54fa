"""Failed logins to the admin pages: limited per name and address together, and less strictly per name and per address."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.admin.authentication import FAILURES_PER_SOURCE_MAX, Authenticator
from gateway.errors import AuthenticationFailed, Overloaded
from gateway.store import admin_users


@pytest.fixture
def authenticator(monkeypatch: pytest.MonkeyPatch) -> Authenticator:
    async def no_user(*_: object) -> None:
        return None

    monkeypatch.setattr(admin_users, "check_password", no_user)
    unused = cast(Any, None)
    return Authenticator(unused, unused, clock_ms=lambda: 0, timer_s=lambda: 0.0)


async def guess(authenticator: Authenticator, name: str, host: str) -> str:
    request: Any = SimpleNamespace(client=SimpleNamespace(host=host))
    try:
        await authenticator.log_in(request, name, "guess")
    except Overloaded:
        return "locked"
    except AuthenticationFailed:
        return "wrong"
    return "in"


async def guesses(authenticator: Authenticator, names: list[str], hosts: list[str]) -> int:
    """The number of guesses that were checked before logins were locked."""
    for answered in range(1000):
        if await guess(authenticator, names[answered % len(names)], hosts[answered % len(hosts)]) == "locked":
            return answered
    return 1000


async def test_failed_logins_lock_that_name_from_that_address_and_no_other(authenticator: Authenticator) -> None:
    assert await guesses(authenticator, ["ada"], ["1.1.1.1"]) == FAILURES_PER_SOURCE_MAX
    assert await guess(authenticator, "bob", "1.1.1.1") == "wrong"
    assert await guess(authenticator, "ada", "2.2.2.2") == "wrong"


@pytest.mark.parametrize("by", ["names", "hosts"])
async def test_100_failed_logins_lock_an_address_or_a_name_alone(authenticator: Authenticator, by: str) -> None:
    many, single = [f"{at}" for at in range(300)], ["one"]
    assert await guesses(authenticator, *((many, single) if by == "names" else (single, many))) == 100


async def test_concurrent_failed_logins_are_counted(
    monkeypatch: pytest.MonkeyPatch, authenticator: Authenticator
) -> None:
    checked = 0

    async def no_user(*_: object) -> None:
        nonlocal checked
        checked += 1
        await asyncio.sleep(0)

    monkeypatch.setattr(admin_users, "check_password", no_user)
    answers = await asyncio.gather(*(guess(authenticator, "ada", "1.1.1.1") for _ in range(100)))
    assert checked <= FAILURES_PER_SOURCE_MAX + 1  # two are checked at once
    assert answers.count("locked") == 100 - checked
