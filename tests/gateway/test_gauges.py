"""What is measured beside the calls goes on being measured."""

from __future__ import annotations

import asyncio

import pytest

from gateway import gauges
from gateway.gauges import Gauges
from tests.api_client import Api

pytest_plugins = ("tests.api_fixtures",)


async def test_a_fault_in_one_round_does_not_end_those_that_follow(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_REFRESH_S", 0.01)
    monkeypatch.setattr(gauges, "_COMPARE_S", 0.01)
    rounds: list[int] = []

    async def compare() -> None:
        rounds.append(len(rounds))
        raise ValueError("a bug of ours")

    measured = Gauges(api.application.parts)
    monkeypatch.setattr(measured, "compare", compare)
    measured.start()
    async with asyncio.timeout(5):
        while len(rounds) < 3:
            await asyncio.sleep(0.01)
    await measured.stop()
    assert rounds[:3] == [0, 1, 2]
