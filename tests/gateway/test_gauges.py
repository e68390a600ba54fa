"""Periodic gauges: they survive errors and show current budgets."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from gateway.observability import gauges
from gateway.observability.gauges import Gauges
from tests.api_client import Api, close_api, make_api

pytest_plugins = ("tests.api_fixtures",)

ADMIN = {"authorization": "Bearer a-long-enough-admin-key"}


async def limits_shown(api: Api) -> dict[str, float]:
    """The limits of budgets in USD in /metrics, by name."""
    await api.application._gauges.show_budgets()
    metrics = (await api.ask("GET", "/metrics")).text
    return {
        name: float(usd) for name, usd in re.findall(r'farebox_budget_limit_usd\{name="([^"]+)".*\} (\S+)', metrics)
    }


async def test_error_in_one_round_does_not_stop_later_rounds(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_name_with_several_budgets_shows_the_fullest(tmp_path: Path) -> None:
    api = await make_api(tmp_path, {"FAREBOX_ADMIN_KEY": "a-long-enough-admin-key"})
    try:
        for project, window, usd in (("a", "day", 2), ("a", "total", 1), ("b", "day", 5), ("b", "total", 4)):
            budget = {"scope": "workflow", "match": "nightly", "usd": usd, "window": window}
            await api.post("/api/budgets", budget, headers=ADMIN, params={"project": project})
        for project in ("a", "b"):
            key = await api.post("/api/keys", {"name": project, "project": project}, headers=ADMIN)
            assert (await api.chat("r1", authorization=f"Bearer {key['key']}")).status_code == 200
        assert await limits_shown(api) == {"nightly": 1.0}
    finally:
        await close_api(api)


@pytest.mark.parametrize("several", [False, True], ids=["one process", "several"])
async def test_deleted_budget_is_removed_or_zeroed_with_several_processes(
    api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, several: bool
) -> None:
    budgets = [
        await api.post("/api/budgets", {"scope": "workflow", "match": name, "usd": 1, "window": "day"})
        for name in ("nightly", "weekly")
    ]
    assert await limits_shown(api) == {"nightly": 1.0, "weekly": 1.0}
    await api.delete(f"/api/budgets/{budgets[0]['id']}")
    if several:
        # The process still holds the figures in memory. What is tested: it knows that others cannot remove theirs, and sets them to 0.
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        await api.application._gauges.show_budgets()
        monkeypatch.undo()
        assert await limits_shown(api) == {"nightly": 0.0, "weekly": 1.0}
    else:
        assert await limits_shown(api) == {"weekly": 1.0}
