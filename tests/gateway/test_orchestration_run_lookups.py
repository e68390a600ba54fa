"""Concurrent lookups of runs share a query and its outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from gateway.orchestration import run_lookups
from gateway.orchestration.run_lookups import RunLookups
from gateway.store import runs as run_store
from gateway.store.database import Database, StoreUnavailable
from gateway.store.runs import Run


class FakeStore:
    """Replaces the queries of the store: each takes a while, and is recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queries: list[tuple[str, list[str]]] = []
        self.error: Exception | None = None
        self.takes_s = 0.01
        monkeypatch.setattr(run_store, "get_many", self.get_many)

    async def get_many(self, db: Database, project: str, names: Sequence[str]) -> dict[str, Run]:
        self.queries.append((project, list(names)))
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        return {name: Run(project, name) for name in names if name != "unknown"}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    return FakeStore(monkeypatch)


@pytest.fixture
def lookups() -> RunLookups:
    return RunLookups(Database("sqlite://"))


async def test_lookups_made_during_a_query_share_the_next_one(store: FakeStore, lookups: RunLookups) -> None:
    first = asyncio.ensure_future(lookups.get("p", "r0"))
    await asyncio.sleep(0.005)
    others = [asyncio.ensure_future(lookups.get("p", f"r{number}")) for number in range(1, 50)]
    others.append(asyncio.ensure_future(lookups.get("p", "r7")))
    runs = await asyncio.gather(first, *others)
    assert [run.run if run else None for run in runs] == [*(f"r{number}" for number in range(50)), "r7"]
    assert store.queries == [("p", ["r0"]), ("p", [f"r{number}" for number in range(1, 50)])]


async def test_projects_are_looked_up_separately_and_an_unknown_run_is_none(
    store: FakeStore, lookups: RunLookups
) -> None:
    first, second, none = await asyncio.gather(
        lookups.get("a", "r"), lookups.get("b", "r"), lookups.get("a", "unknown")
    )
    assert first is not None
    assert second is not None
    assert (first.project, second.project, none) == ("a", "b", None)


async def test_hanging_store_delays_only_the_first_lookup(
    store: FakeStore, lookups: RunLookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, if a firewall drops the packets from Postgres, whose driver would wait for half a minute."""
    monkeypatch.setattr(run_lookups, "_WAIT_S", 0.2)
    store.takes_s = 1.0
    started = time.monotonic()
    for _ in range(20):  # the first one waits, the others fail at once
        with pytest.raises(StoreUnavailable):
            await lookups.get("p", "r")
    assert time.monotonic() - started < 0.9
    await asyncio.sleep(1.0)
    store.takes_s = 0.01
    run = await lookups.get("p", "r")
    assert run is not None


async def test_store_outage_fails_all_waiting_lookups_and_is_retried_later(
    store: FakeStore, lookups: RunLookups
) -> None:
    store.error = StoreUnavailable("away")
    errors = await asyncio.gather(lookups.get("p", "r"), lookups.get("p", "s"), return_exceptions=True)
    assert [type(error) for error in errors] == [StoreUnavailable, StoreUnavailable]
    store.error = None
    assert await lookups.get("p", "r") is not None


async def test_cancelled_lookup_does_not_cancel_the_others(store: FakeStore, lookups: RunLookups) -> None:
    gone, stays = (asyncio.ensure_future(lookups.get("p", "r")) for _ in range(2))
    await asyncio.sleep(0.005)
    gone.cancel()
    assert await stays is not None
    assert gone.cancelled()
