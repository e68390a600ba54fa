"""What the orchestration reads and writes, on SQLite and on Postgres: allocations, learned steps, active agents."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text

from gateway.ledger.port import EntryKind
from gateway.store import active_agents, known_steps, runs, step_history, tables, usage
from gateway.store.active_agents import ActiveAgent, ToolUse
from gateway.store.database import Database
from gateway.store.known_steps import KnownStep
from gateway.store.runs import Run, RunStep
from tests.store_events import DAY_MS, NOW_MS, entry

pytest_plugins = ("tests.store_fixtures",)


async def store_calls(db: Database, *events: dict[str, Any]) -> None:
    entries = [entry(f"e{number}", **event) for number, event in enumerate(events)]
    await usage.insert_entries(db, entries, NOW_MS)


async def test_allocations_and_events_of_a_step_merge_in_any_order(db: Database) -> None:
    allocation: dict[str, Any] = {"allocation_tokens": 500, "hard_limit_tokens": 600, "position": 1}
    await runs.save_allocations(db, [("default", RunStep("r1", "draft", intent="generate", tier="fast", **allocation))])
    await store_calls(
        db, {"run": "r1", "step": "draft", "intent": "filter"}, {"run": "r1", "step": "post", "tokens": 7}
    )
    await runs.save_allocations(
        db,
        [
            ("default", RunStep("r1", "post", allocation_tokens=10, hard_limit_tokens=12)),
            ("default", RunStep("r1", "draft", allocation_tokens=1, hard_limit_tokens=1, position=1)),
            ("default", RunStep("r1", "draft", **{**allocation, "allocation_tokens": 550}, plan={"reason": "more"})),
        ],
    )
    run = await runs.get(db, "default", "r1")
    assert run is not None
    assert [(step.step, step.allocation_tokens, step.hard_limit_tokens) for step in run.steps] == [
        ("draft", 550, 600),
        ("post", 10, 12),
    ]
    draft, post = run.steps
    assert (draft.intent, draft.sums.total_tokens, draft.plan) == ("filter", 150, {"reason": "more"})
    assert post.sums.total_tokens == 7


async def test_known_steps_have_their_latest_intent_and_model_in_call_order(db: Database) -> None:
    await store_calls(
        db,
        {"run": "old", "step": "a", "intent": "send", "model": "large", "at_ms": NOW_MS - DAY_MS},
        {"run": "new", "step": "b", "intent": "filter", "at_ms": NOW_MS - 2_000},
        {"run": "new", "step": "a", "intent": "generate", "model": "small", "at_ms": NOW_MS - 1_000},
        {"run": "new", "step": "free", "tokens": 0, "at_ms": NOW_MS - 1_000},
        {"run": "stale", "step": "gone", "at_ms": NOW_MS - 40 * DAY_MS},
        {"run": "other", "workflow": "other", "step": "c"},
    )
    steps = await known_steps.of_workflow(db, "default", "wf", NOW_MS)
    assert steps == {"b": KnownStep("filter", "small", 0), "a": KnownStep("generate", "small", 1)}


async def test_known_steps_are_read_from_the_newest_runs_only(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_history, "RUNS_MAX", 2)
    await store_calls(db, *({"run": f"r{age}", "step": f"s{age}", "at_ms": NOW_MS - age} for age in range(4)))
    assert set(await known_steps.of_workflow(db, "default", "wf", NOW_MS)) == {"s0", "s1"}


async def test_key_of_a_run_is_that_of_its_latest_call(db: Database) -> None:
    await store_calls(
        db,
        {"run": "r1", "key_id": "k1", "at_ms": NOW_MS - 2_000},
        {"run": "r1", "key_id": "k2", "at_ms": NOW_MS - 1_000},
        {"run": "r2", "key_id": ""},
        {"run": "r1", "key_id": "k3", "project": "other"},
        {"run": "r3", "key_id": "k3"},
    )
    assert await runs.latest_keys(db, "default", ["r1", "r2", "gone"]) == {"r1": "k2", "r2": ""}
    assert await runs.latest_keys(db, "default", []) == {}


async def test_active_agents_are_listed_with_their_workflows(db: Database) -> None:
    await store_calls(
        db,
        {"run": "1", "agent": "ada", "workflow": "x", "at_ms": NOW_MS - 10},
        {"run": "2", "agent": "ada", "workflow": "x", "at_ms": NOW_MS - 5},
        {"run": "3", "agent": "ada", "workflow": "y", "at_ms": NOW_MS - 7},
        {"run": "4", "agent": "bob", "at_ms": NOW_MS - 5_000},
        {"run": "5", "agent": "", "at_ms": NOW_MS},
    )
    assert await active_agents.active_since(db, NOW_MS - 1_000) == [
        ActiveAgent("default", "ada", NOW_MS - 5, {"x": 2, "y": 1})
    ]


async def test_only_the_latest_50_runs_count(db: Database) -> None:
    await store_calls(db, *({"run": f"r{n}", "at_ms": NOW_MS - n * 1_000} for n in range(60)))
    assert await active_agents.latest_runs_since(db, "default", "ada", 0) == NOW_MS - 49_000
    assert await active_agents.latest_runs_since(db, "default", "bob", 7) == 7


async def test_tool_use_and_retries_are_summed_over_calls(db: Database) -> None:
    def seen_detail(**figures: int) -> dict[str, Any]:
        return {"detail": {"seen": figures}}

    await store_calls(
        db,
        {"run": "1", "detail": seen_detail(tools=3, tool_calls=2)},
        {"run": "1", "detail": seen_detail(tools=5, retry=2)},
        {"run": "2", "detail": {"detail": {"decisions": [1]}}},
        {"run": "2", "detail": {"detail": "words"}},
        {"run": "2", "detail": {"status": "refused", **seen_detail(tools=9)}},
        {"run": "2", "kind": EntryKind.LATE, "detail": seen_detail(tools=9)},  # corrects a call that was counted
        {"run": "3", "agent": "bob", "detail": seen_detail(tools=9)},
    )
    assert await active_agents.tool_use(db, "default", "ada", 0) == ToolUse(4, tool_calls=2, retries=1, tools_max=5)


async def test_runs_of_an_agent_are_found_by_their_index(db: Database) -> None:
    """Without it, each round of scoring reads all runs of the project for each agent that runs seldom."""
    many = [Run("default", f"r{number}", agent="often", first_at_ms=NOW_MS + number) for number in range(3_000)]
    await runs.begin(db, [*many, Run("default", "rare", agent="ada", first_at_ms=NOW_MS)])
    query = select(tables.runs.c.last_at).where(active_agents.runs_of_agent("default", "ada", 0))
    async with db.begin() as connection:
        if db.is_postgres:
            await connection.execute(text("ANALYZE runs"))
        explain = "EXPLAIN" if db.is_postgres else "EXPLAIN QUERY PLAN"
        statement = query.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        plan = " ".join(str(tuple(row)) for row in await connection.execute(text(f"{explain} {statement}")))
    assert "ix_runs_agent" in plan
