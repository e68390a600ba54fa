"""The store's schema, usage and runs, on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from gateway.ledger.port import EntryKind
from gateway.store import audit, keys, runs, settings, usage
from gateway.store.audit import AuditEvent, AuditFilter
from gateway.store.database import Database, SchemaMismatch, StoreInUse
from gateway.store.keys import KeyRequest
from gateway.store.migration import downgrade
from gateway.store.runs import Run, RunFilter, RunStep
from gateway.store.tables import METADATA, SCHEMA_REVISION, run_steps, usage_dead_letter, usage_hourly
from policies.amounts import Amount
from tests.store_events import DAY_MS, NOW_MS, entry, rows_of

pytest_plugins = ("tests.store_fixtures",)


async def run_of(db: Database, run: str = "r1", project: str = "default") -> Run:
    stored_run = await runs.get(db, project, run)
    assert stored_run is not None
    return stored_run


# --- schema


async def test_migration_creates_the_schema_of_the_code(empty_url: str) -> None:
    database = Database(empty_url)
    await database.open()
    try:
        with pytest.raises(SchemaMismatch, match="no tables yet: run `farebox migrate`"):
            await database.check_schema()
        assert await database.migrate(NOW_MS) == SCHEMA_REVISION
        await database.check_schema()
        async with database.begin() as connection:
            differences = await connection.run_sync(_differences)
        assert differences == []
        async with database.begin() as connection:
            await downgrade(connection, "base")
        assert await database.schema_revision() is None
        await database.migrate(NOW_MS)
        await database.check_schema()
    finally:
        await database.close()


@pytest.mark.parametrize("before", ["0002", "0003"])
async def test_downgrade_and_upgrade_keep_stored_data(db: Database, before: str) -> None:
    """As when an upgrade is reverted, and repeated later."""
    await usage.insert_entries(db, [entry(f"e{number}", run=f"r{number % 3}") for number in range(20)], NOW_MS)
    await audit.append(db, [AuditEvent(NOW_MS, "ada", "key.created", "k1")])
    key = await keys.create(db, KeyRequest("k1"), "ada", NOW_MS)

    async def stored_data() -> tuple[object, ...]:
        rows, stored = await rows_of(db), await runs.get_many(db, "default", ["r0", "r1", "r2"])
        return rows, stored, await audit.query(db, AuditFilter())

    known = await stored_data()
    async with db.begin() as connection:
        await downgrade(connection, before)
    assert await db.schema_revision() == before
    with pytest.raises(SchemaMismatch, match="older than this gateway's"):
        await db.check_schema()
    assert await db.migrate(NOW_MS) == SCHEMA_REVISION
    await db.check_schema()
    assert await stored_data() == known
    assert [stored_key.id for stored_key in await keys.list_all(db)] == [key.key.id]


def _differences(connection: Connection) -> Any:
    def ours(_thing: object, name: str | None, _kind: str, _reflected: bool, _other: object) -> bool:
        return not (name or "").startswith("token_usage_2")  # the months of token_usage

    return compare_metadata(MigrationContext.configure(connection, opts={"include_object": ours}), METADATA)


@pytest.mark.parametrize(
    ("revision", "sentence"),
    [
        ("0001", "is older than this gateway's .*: run `farebox migrate`"),
        ("0999", "is newer than .*: upgrade the gateway"),
    ],
)
async def test_other_schema_revision_is_refused_with_advice(db: Database, revision: str, sentence: str) -> None:
    async with db.begin() as connection:
        await connection.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    with pytest.raises(SchemaMismatch, match=sentence):
        await db.check_schema()


async def test_migrating_a_newer_store_is_refused(db: Database) -> None:
    async with db.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    with pytest.raises(SchemaMismatch, match="newer"):
        await db.migrate(NOW_MS)


async def test_concurrent_migrations_of_a_new_database_all_succeed(empty_postgres_url: str) -> None:
    starters = [Database(empty_postgres_url) for _ in range(3)]
    for starter in starters:
        await starter.open()
    try:
        assert await asyncio.gather(*(starter.migrate(NOW_MS) for starter in starters)) == [SCHEMA_REVISION] * 3
        assert len(await settings.get_all(starters[0])) == 40
    finally:
        for starter in starters:
            await starter.close()


async def test_failed_migration_is_rolled_back(empty_url: str) -> None:
    database = Database(empty_url)
    await database.open()
    try:
        async with database.begin() as connection:
            await connection.execute(text("CREATE TABLE runs (x INTEGER)"))  # makes the migration fail
        with pytest.raises(DBAPIError):
            await database.migrate(NOW_MS)
        assert await database.schema_revision() is None
        async with database.begin() as connection:
            await connection.execute(text("DROP TABLE runs"))
        await database.migrate(NOW_MS)
        await database.check_schema()
    finally:
        await database.close()


async def test_second_open_of_an_sqlite_file_is_refused(tmp_path: Path) -> None:
    first, second = Database(f"sqlite:///{tmp_path}/store.db"), Database(f"sqlite:///{tmp_path}/store.db")
    await first.open()
    with pytest.raises(StoreInUse, match="used by another process"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


# --- usage


async def test_entry_is_stored_as_a_row_with_the_amounts_of_the_ledger(db: Database) -> None:
    ledger_entry = entry(
        tokens=777,
        nano_usd=123_456_789,
        overrun=Amount(7, 8, 0),
        intent="summarize",
        intent_confidence=0.93,
        user="u",
        stream=True,
        actions="clamp, compress=1240, route=small",
        unknown="ignored",
        detail={"duration_ms": 12.6, "detail": {"ladder": ["clamp"]}, "step": "final"},
    )
    done = await usage.insert_entries(db, [ledger_entry], NOW_MS)
    assert (done.inserted, done.known, done.dead_lettered) == (1, 0, 0)
    (row,) = await rows_of(db)
    expected = {
        "id": "e1",
        "at": NOW_MS,
        "project": "default",
        "step": "final",  # the detail beats the draft
        "user": "u",
        "stream": True,
        "intent": "summarize",
        "intent_confidence": 0.93,
        "total_tokens": 777,
        "cost_nano_usd": 123_456_789,
        "requests": 1,
        "overrun_tokens": 7,
        "overrun_nano_usd": 8,
        "input_tokens": 100,
        "output_tokens": 50,
        "savings": "clamp+compress+route",
        "duration_ms": 13,
        "first_byte_ms": None,
        "status": "ok",
        "code": "",
        "detail": '{"ladder":["clamp"]}',
    }
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("kind", "detail_status", "status"),
    [
        (EntryKind.SETTLED, "ok", "ok"),
        (EntryKind.SETTLED, "error", "error"),
        (EntryKind.SETTLED, "cancelled", "cancelled"),
        (EntryKind.SETTLED, "what?", "ok"),
        (EntryKind.EXPIRED, "ok", "lost"),
        (EntryKind.LATE, "ok", "late"),
        (EntryKind.RECORDED, "refused", "refused"),
        (EntryKind.REPAIR, "ok", "repair"),
    ],
)
async def test_status_follows_the_kind_of_entry(db: Database, kind: EntryKind, detail_status: str, status: str) -> None:
    await usage.insert_entries(db, [entry(kind=kind, detail={"status": detail_status})], NOW_MS)
    assert [row["status"] for row in await rows_of(db)] == [status]


async def test_repeated_ids_are_stored_once(db: Database) -> None:
    batch = [entry(f"e{number}") for number in range(20)]
    await usage.insert_entries(db, batch, NOW_MS)
    again = [*batch[10:], entry("e20"), entry("e20"), entry("e3", at_ms=NOW_MS + 3 * DAY_MS, tokens=999)]
    done = await usage.insert_entries(db, again, NOW_MS)
    assert (done.inserted, done.known) == (1, 12)
    rows = await rows_of(db)
    assert sorted(row["id"] for row in rows) == sorted(f"e{number}" for number in range(21))
    assert sum(row["total_tokens"] for row in rows) == 21 * 150
    (hour,) = await rows_of(db, usage_hourly)
    assert (hour["calls"], hour["total_tokens"]) == (21, 21 * 150)


async def test_concurrent_writers_store_each_entry_once(db: Database) -> None:
    batch = [entry(f"e{number}", run=f"r{number % 7}") for number in range(200)]
    slices = [batch[start : start + 80] for start in (0, 40, 80, 120)]
    done = await asyncio.gather(*(usage.insert_entries(db, entries, NOW_MS) for entries in slices * 2))
    assert sum(insertion.inserted for insertion in done) == 200
    page = await runs.list_runs(db, RunFilter(project="default"))
    assert sum(run.sums.total_tokens for run in page.runs) == 200 * 150


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"draft": b"{not json"}, "draft is not JSON"),
        ({"draft": b"[1]"}, "draft is not a JSON object"),
        ({"detail": b"\xff\xfe"}, "detail is not JSON"),
        ({"draft": b'{"workflow": "a\\u0000b"}'}, "workflow contains NUL"),
        ({"draft": b'{"workflow": "\\ud800"}'}, "draft is not JSON"),
        ({"draft": orjson.dumps({"model": "x" * 600})}, "model is longer than 512"),
        ({"detail": b'{"input_tokens": "many"}'}, "input_tokens is not a whole number"),
        ({"detail": b'{"input_tokens": 1e300}'}, "input_tokens is not a whole number"),
        ({"detail": b'{"saved_tokens": true}'}, "saved_tokens is not a whole number"),
        ({"detail": b'{"reserved_tokens": 9223372036854775808}'}, "reserved_tokens is not a whole number of 64 bits"),
        ({"detail": b'{"overhead_us": "long"}'}, "overhead_us is not a whole number"),
        ({"draft": b'{"intent_confidence": "high"}'}, "intent_confidence is not a number"),
        ({"detail": b'{"actions": {"clamp": 1}}'}, "actions is not a text"),
        ({"draft": b'{"run": 7}'}, "run is not a text"),
        ({"at_ms": 5}, "not a time between"),
        ({"project": "a\x00b"}, "project contains NUL"),
        ({"project": ""}, "project is empty"),
        ({"project": "\ud800"}, "project is not valid unicode"),
        ({"amount": Amount(2**70, 0, 0)}, ""),  # refused by the database
    ],
)
async def test_invalid_entry_is_dead_lettered_and_the_rest_is_stored(
    db: Database, fault: dict[str, Any], reason: str
) -> None:
    bad = replace(entry("bad"), **fault)
    done = await usage.insert_entries(db, [entry("a"), bad, entry("b")], NOW_MS)
    assert (done.inserted, done.dead_lettered) == (2, 1)
    assert sorted(row["id"] for row in await rows_of(db)) == ["a", "b"]
    (parked,) = await rows_of(db, usage_dead_letter)
    assert (parked["id"], parked["parked_at"]) == ("bad", NOW_MS)
    assert reason in parked["reason"]
    assert (await usage.insert_entries(db, [bad], NOW_MS)).dead_lettered == 1
    assert len(await rows_of(db, usage_dead_letter)) == 1


async def test_unusual_but_valid_values_are_stored(db: Database) -> None:
    """Texts that are long together, or not ASCII; fields that are null; a whole number written as a float."""
    long: dict[str, Any] = {name: name[0] * 400 for name in ("workflow", "agent", "user")}
    detail = {
        "input_tokens": 7.0,
        "output_tokens": None,
        "duration_ms": 2.5,
        "first_byte_ms": -1,
        "actions": ["clamp", "x=1"],
    }
    await usage.insert_entries(db, [entry("é", project="grün", step="日本", model=None, detail=detail, **long)], NOW_MS)
    (row,) = await rows_of(db)
    assert {name: row[name] for name in long} == long
    assert (row["id"], row["project"], row["step"], row["model"]) == ("é", "grün", "日本", "")
    assert (row["input_tokens"], row["output_tokens"], row["duration_ms"], row["first_byte_ms"]) == (7, 0, 2, -1)
    assert (row["actions"], row["savings"]) == ("clamp, x=1", "clamp+x")


async def test_run_and_step_sums_follow_events(db: Database) -> None:
    events = [
        entry("a", step="plan", intent="generate", intent_confidence=0.8, at_ms=NOW_MS),
        entry("b", step="plan", tokens=50, at_ms=NOW_MS + 5, actions="compress=20", saved_tokens=20),
        entry(
            "c",
            0,
            0,
            step="draft",
            kind=EntryKind.RECORDED,
            at_ms=NOW_MS + 9,
            detail={"status": "refused", "code": "step_budget_exceeded"},
        ),
        entry("d", step="draft", kind=EntryKind.EXPIRED, at_ms=NOW_MS + 20, overrun=Amount(3, 4, 0)),
        entry("d:late", -100, -1000, step="draft", kind=EntryKind.LATE, at_ms=NOW_MS + 30),
        entry("e", run=None, workflow=None),
    ]
    await usage.insert_entries(db, events, NOW_MS)
    run = await run_of(db)
    assert run is not None
    assert (run.workflow, run.agent, run.state) == ("wf", "ada", "active")
    assert (run.first_at_ms, run.last_at_ms) == (NOW_MS, NOW_MS + 30)
    assert (run.sums.calls, run.sums.refused, run.sums.errors) == (3, 1, 1)
    assert (run.sums.total_tokens, run.sums.cost_nano_usd) == (250, 3_500)
    assert (run.sums.saved_tokens, run.sums.overrun_tokens) == (20, 3)
    steps = {step.step: step for step in run.steps}
    assert (steps["plan"].intent, steps["plan"].confidence, steps["plan"].sums.calls) == ("generate", 0.8, 2)
    assert (steps["draft"].sums.calls, steps["draft"].sums.refused, steps["draft"].sums.total_tokens) == (1, 1, 50)
    assert len((await runs.list_runs(db, RunFilter())).runs) == 1


async def test_run_begins_when_its_earliest_call_began(db: Database) -> None:
    events = [
        entry("quick", step="draft", at_ms=NOW_MS, detail={"duration_ms": 100}),
        entry("slow", step="draft", at_ms=NOW_MS + 500, detail={"duration_ms": 2_500}),
        entry("lost", step="draft", at_ms=NOW_MS + 900, kind=EntryKind.EXPIRED),
    ]
    await usage.insert_entries(db, events, NOW_MS)
    run = await run_of(db)
    (step,) = run.steps
    assert (run.first_at_ms, run.last_at_ms) == (step.first_at_ms, step.last_at_ms) == (NOW_MS - 2_000, NOW_MS + 900)


async def test_run_is_exhausted_from_a_budget_refusal_to_the_next_success(db: Database) -> None:
    refused = {"status": "refused", "code": "run_budget_exceeded"}
    await usage.insert_entries(db, [entry("a"), entry("b", 0, 0, at_ms=NOW_MS + 1, detail=refused)], NOW_MS)
    assert (await run_of(db)).state == "exhausted"
    await usage.insert_entries(db, [entry("c", at_ms=NOW_MS + 2)], NOW_MS)
    assert (await run_of(db)).state == "active"
    await runs.set_state(db, "default", "r1", "cancelled", NOW_MS)
    await usage.insert_entries(db, [entry("d", at_ms=NOW_MS + 3)], NOW_MS)
    assert (await run_of(db)).state == "cancelled"


async def test_last_of_simultaneous_events_sets_the_state_of_the_run(db: Database) -> None:
    refused = {"status": "refused", "code": "run_budget_exceeded"}
    early = entry("b", at_ms=NOW_MS - 5, workflow="first", step="s", model="old", intent="plan", intent_confidence=0.5)
    batch = [entry("a", step="s", model="new"), early, entry("c", 0, 0, step="s", model="", detail=refused)]
    await usage.insert_entries(db, batch, NOW_MS)
    run = await run_of(db)
    assert (run.state, run.workflow, run.first_at_ms, run.last_at_ms) == ("exhausted", "first", NOW_MS - 5, NOW_MS)
    (step,) = run.steps
    assert (step.model, step.intent, step.confidence) == ("new", "plan", 0.5)


async def test_events_of_other_months_are_stored_and_dropped_by_retention(db: Database) -> None:
    old = NOW_MS - 200 * DAY_MS
    await usage.insert_entries(
        db, [entry("old", at_ms=old), entry("new"), entry("next", at_ms=NOW_MS + 100 * DAY_MS)], NOW_MS
    )
    assert len(await rows_of(db)) == 3
    await usage.create_partitions_ahead(db, NOW_MS)
    dropped = await usage.drop_old_months(db, NOW_MS, months_kept=3)
    assert sorted(row["id"] for row in await rows_of(db)) == ["new", "next"]
    assert bool(dropped) is db.is_postgres
    assert (await run_of(db)).sums.calls == 3


# --- runs


async def test_planned_run_is_merged_with_its_events(db: Database) -> None:
    steps = (
        RunStep(
            "r1", "plan", 1, "generate", 1.0, "declared", "balanced", allocation_tokens=900, hard_limit_tokens=1080
        ),
        RunStep("r1", "send", 2, "send", 1.0, "declared", "fast", plan={"compression": {"strategy": "none"}}),
    )
    planned = Run("default", "r1", "wf", "ada", "u", first_at_ms=NOW_MS, plan={"tokens": 2000}, steps=steps)
    created = await runs.create(db, planned)
    assert (created.state, created.plan, [step.step for step in created.steps]) == (
        "active",
        {"tokens": 2000},
        ["plan", "send"],
    )
    await usage.insert_entries(db, [entry("a", step="plan"), entry("b", step="extra", at_ms=NOW_MS + 5)], NOW_MS)
    run = await run_of(db)
    assert [(step.step, step.sums.calls) for step in run.steps] == [("plan", 1), ("send", 0), ("extra", 1)]
    assert (run.steps[0].allocation_tokens, run.steps[0].intent, run.steps[1].plan) == (
        900,
        "generate",
        {"compression": {"strategy": "none"}},
    )
    with pytest.raises(runs.RunOfOtherWorkflow, match="wf"):
        await runs.create(db, replace(planned, workflow="other", plan={}))
    await runs.create(db, planned)
    again = await run_of(db)
    assert again.plan == {"tokens": 2000}
    assert (again.sums, again.last_at_ms) == (run.sums, NOW_MS + 5)
    done = await runs.set_state(db, "default", "r1", "completed", NOW_MS + 9, {"quality": 1})
    assert done is not None
    assert (done.state, done.completed_at_ms, done.metrics) == ("completed", NOW_MS + 9, {"quality": 1})
    with pytest.raises(ValueError, match="is not a state"):
        await runs.set_state(db, "default", "r1", "gone", NOW_MS)
    assert await runs.set_state(db, "default", "nowhere", "paused", NOW_MS) is None


async def test_run_begun_before_its_first_event_is_merged_with_its_events(db: Database) -> None:
    begun = Run("p", "r1", "w", "ada", first_at_ms=NOW_MS, last_at_ms=NOW_MS, steps=(RunStep("r1", "draft"),))
    await runs.begin(db, [begun, Run("p", "r0", first_at_ms=NOW_MS)])
    await runs.set_state(db, "p", "r1", "paused", NOW_MS)
    await runs.begin(db, [Run("p", "r1", "other", first_at_ms=NOW_MS + 9, steps=(RunStep("r1", "check"),))])
    await usage.insert_entries(db, [entry("e1", project="p", run="r1", step="draft", workflow="w")], NOW_MS)
    stored_run = await runs.get(db, "p", "r1")
    assert stored_run is not None
    assert (stored_run.workflow, stored_run.agent, stored_run.state, stored_run.sums.calls) == ("w", "ada", "paused", 1)
    assert {step.step: step.sums.calls for step in stored_run.steps} == {"draft": 1, "check": 0}


async def test_runs_are_listed_in_pages_without_gaps_or_repeats(db: Database) -> None:
    events = [
        entry(f"e{number}", run=f"r{number:02}", at_ms=NOW_MS + number // 3, workflow=f"w{number % 2}")
        for number in range(20)
    ]
    await usage.insert_entries(db, events, NOW_MS)
    listed: list[str] = []
    cursor = None
    while True:
        page = await runs.list_runs(db, RunFilter(project="default", workflow="w0"), 3, cursor)
        listed += [run.run for run in page.runs]
        cursor = page.next
        if cursor is None:
            break
    assert listed == [f"r{number:02}" for number in (18, 16, 14, 12, 10, 8, 6, 4, 2, 0)]
    assert len((await runs.list_runs(db, RunFilter(from_ms=NOW_MS + 6))).runs) == 2
    for malformed in ("7", "x:r1", f"{10**30}:r1", "1:\x00", ":"):
        with pytest.raises(ValueError):
            await runs.list_runs(db, RunFilter(project="default"), cursor=malformed)
    assert (await runs.list_runs(db, RunFilter(project="other"))).runs == ()


async def test_family_of_a_run_is_found_even_with_a_cycle(db: Database) -> None:
    tree = [("a", "z"), ("b", "a"), ("c", "b"), ("z", "c"), ("other", "")]
    for run, parent in tree:
        await runs.create(db, Run("default", run, parent_run=parent, first_at_ms=NOW_MS))
    async with db.begin() as connection:
        assert sorted(await runs.family(connection, "default", "b")) == ["a", "b", "c", "z"]
        assert await runs.family(connection, "default", "other") == ["other"]
        assert await runs.family(connection, "elsewhere", "a") == ["a"]


async def test_steps_are_separate_by_project(db: Database) -> None:
    await usage.insert_entries(db, [entry("a"), entry("b", project="other")], NOW_MS)
    assert len(await rows_of(db, run_steps)) == 2
    assert (await run_of(db, project="other")).sums.calls == 1
