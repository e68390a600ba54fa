"""The history of a workflow's steps: read from the store once a minute, and shared by the workflows of a project."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.orchestration.histories import NOTHING, WorkflowHistories
from gateway.store import step_history, usage
from gateway.store.database import Database
from gateway.store.step_history import IntentModel, StepSample
from tests.store_events import NOW_MS, entry

LATER_MS = NOW_MS + 3_600_000  # the runs are finished by then


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    await database.open()
    await database.migrate(NOW_MS)
    events = [
        entry(f"{workflow}{run}", run=f"{workflow}{run}", workflow=workflow, intent="send")
        for workflow in ("one", "two")
        for run in range(5)
    ]
    await usage.insert_entries(database, events, NOW_MS)
    yield database
    await database.close()


async def test_history_by_intent_is_read_once_a_minute_per_project(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    by_intent = step_history.by_intent

    async def counted(db: Database, project: str, now_ms: int) -> Mapping[IntentModel, tuple[StepSample, ...]]:
        read.append(now_ms)
        return await by_intent(db, project, now_ms)

    monkeypatch.setattr(step_history, "by_intent", counted)
    clock: dict[str, Any] = {"ms": LATER_MS}
    histories = WorkflowHistories(store, lambda: clock["ms"])
    for workflow in ("one", "two", "one"):
        history = (await histories.of("default", workflow, alike=True)).of("draft", "send")
        assert history is not None
        assert (history.samples, history.of) == (10, "intent"), "five samples of the workflow itself are too few"
    assert read == [LATER_MS]
    clock["ms"] += 60_000
    await histories.of("default", "three", alike=True)
    assert read == [LATER_MS, LATER_MS + 60_000]


async def test_history_is_empty_without_a_store(tmp_path: Path) -> None:
    histories = WorkflowHistories(Database(f"sqlite:///{tmp_path}/never-opened.db"), lambda: LATER_MS)
    assert await histories.of("default", "one", alike=True) is NOTHING
