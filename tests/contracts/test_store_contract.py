"""One suite for the store, on SQLite and on Postgres: what is written, what is read, what is refused."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from gateway.ledger.port import EntryKind, OutboxEntry
from gateway.store import budgets, intensity, keys, runs, settings, usage, versions, workflows
from gateway.store.budgets import StoredBudget
from gateway.store.database import Database, SchemaMismatch, StoreInUse
from gateway.store.keys import KeyRequest
from gateway.store.migration import downgrade
from gateway.store.runs import Run, RunFilter, RunStep
from gateway.store.tables import METADATA, SCHEMA_REVISION, run_steps, token_usage, usage_dead_letter, usage_hourly
from gateway.store.workflows import Workflow
from policies.amounts import Amount, Limit
from policies.budgets import Budget, Rung, Scope, Window
from policies.settings import SETTINGS, SettingError, defaults

pytest_plugins = ("tests.postgres_server",)

NOW_MS = time.time_ns() // 1_000_000
DAY_MS = 86_400_000


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request, tmp_path):
    return f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
async def db(store_url):
    database = Database(store_url)
    await database.open()
    await database.migrate(NOW_MS)
    yield database
    await database.close()


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/store.db"
    return request.getfixturevalue("empty_postgres_url")


def entry(
    id: str = "e1",
    tokens: int = 150,
    nano_usd: int = 1_500,
    *,
    kind: EntryKind = EntryKind.SETTLED,
    at_ms: int = NOW_MS,
    project: str = "default",
    overrun: Amount | None = None,
    detail: dict | None = None,
    **draft,
) -> OutboxEntry:
    event = {"workflow": "wf", "run": "r1", "step": "draft", "agent": "ada", "key_id": "k1", "model": "small"} | draft
    late = {"status": "ok", "input_tokens": 100, "output_tokens": 50} | (detail or {})
    return OutboxEntry(
        position=id,
        id=id,
        kind=kind,
        project=project,
        amount=Amount(tokens, nano_usd, 1),
        at_ms=at_ms,
        draft=orjson.dumps(event),
        detail=orjson.dumps(late),
        overrun=overrun or Amount(),
    )


async def rows_of(db: Database, table=token_usage) -> list[dict]:
    async with db.begin() as connection:
        return [dict(row) for row in (await connection.execute(select(table))).mappings()]


# --- schema


async def test_migration_makes_the_tables_of_the_code(empty_url):
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


def _differences(connection):
    def ours(_thing, name, _kind, _reflected, _other):
        return not (name or "").startswith("token_usage_2")  # the months of token_usage

    return compare_metadata(MigrationContext.configure(connection, opts={"include_object": ours}), METADATA)


@pytest.mark.parametrize(
    ("revision", "sentence"),
    [
        ("0001", "is older than this gateway's .*: run `farebox migrate`"),
        ("0999", "is newer than .*: upgrade the gateway"),
    ],
)
async def test_another_schema_is_named_in_one_sentence(db, revision, sentence):
    async with db.begin() as connection:
        await connection.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    with pytest.raises(SchemaMismatch, match=sentence):
        await db.check_schema()


async def test_migrating_a_newer_store_is_refused(db):
    async with db.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    with pytest.raises(SchemaMismatch, match="newer"):
        await db.migrate(NOW_MS)


async def test_two_starters_at_once_are_safe(empty_postgres_url):
    starters = [Database(empty_postgres_url) for _ in range(3)]
    for starter in starters:
        await starter.open()
    try:
        assert await asyncio.gather(*(one.migrate(NOW_MS) for one in starters)) == [SCHEMA_REVISION] * 3
        assert len(await settings.get_all(starters[0])) == 40
    finally:
        for starter in starters:
            await starter.close()


async def test_a_failed_migration_leaves_nothing_behind(empty_url):
    database = Database(empty_url)
    await database.open()
    try:
        async with database.begin() as connection:
            await connection.execute(text("CREATE TABLE runs (x INTEGER)"))  # in the way of the migration
        with pytest.raises(DBAPIError):
            await database.migrate(NOW_MS)
        assert await database.schema_revision() is None
        async with database.begin() as connection:
            await connection.execute(text("DROP TABLE runs"))
        await database.migrate(NOW_MS)
        await database.check_schema()
    finally:
        await database.close()


async def test_a_second_process_is_kept_off_an_sqlite_file(tmp_path):
    first, second = Database(f"sqlite:///{tmp_path}/store.db"), Database(f"sqlite:///{tmp_path}/store.db")
    await first.open()
    with pytest.raises(StoreInUse, match="used by another process"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


# --- usage


async def test_an_entry_becomes_a_row_and_its_amounts_are_the_ledgers(db):
    one = entry(
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
    done = await usage.insert_entries(db, [one], NOW_MS)
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
    ("kind", "given", "status"),
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
async def test_status_follows_the_kind_of_entry(db, kind, given, status):
    await usage.insert_entries(db, [entry(kind=kind, detail={"status": given})], NOW_MS)
    assert [row["status"] for row in await rows_of(db)] == [status]


async def test_an_id_lands_once_whatever_comes_back(db):
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


async def test_many_writers_of_the_same_entries_store_them_once(db):
    batch = [entry(f"e{number}", run=f"r{number % 7}") for number in range(200)]
    slices = [batch[start : start + 80] for start in (0, 40, 80, 120)]
    done = await asyncio.gather(*(usage.insert_entries(db, one, NOW_MS) for one in slices * 2))
    assert sum(one.inserted for one in done) == 200
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
        ({"draft": b'{"run": 7}'}, "run is not a text"),
        ({"at_ms": 5}, "not a time between"),
        ({"project": "a\x00b"}, "project contains NUL"),
        ({"amount": Amount(2**70, 0, 0)}, ""),  # refused by the engine, not by us
    ],
)
async def test_a_poison_record_is_parked_and_the_batch_goes_on(db, fault, reason):
    good = entry("good")
    bad = OutboxEntry(**{name: getattr(good, name) for name in good.__slots__} | {"id": "bad"} | fault)
    done = await usage.insert_entries(db, [entry("a"), bad, entry("b")], NOW_MS)
    assert (done.inserted, done.dead_lettered) == (2, 1)
    assert sorted(row["id"] for row in await rows_of(db)) == ["a", "b"]
    (parked,) = await usage.dead_letters(db)
    assert (parked["id"], parked["parked_at"]) == ("bad", NOW_MS)
    assert reason in parked["reason"]
    assert (await usage.insert_entries(db, [bad], NOW_MS)).dead_lettered == 1
    assert len(await rows_of(db, usage_dead_letter)) == 1


async def test_sums_of_a_run_follow_its_events(db):
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
    run = await runs.get(db, "default", "r1")
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


async def test_a_run_is_exhausted_while_its_budget_refuses(db):
    refused = {"status": "refused", "code": "run_budget_exceeded"}
    await usage.insert_entries(db, [entry("a"), entry("b", 0, 0, at_ms=NOW_MS + 1, detail=refused)], NOW_MS)
    assert (await runs.get(db, "default", "r1")).state == "exhausted"
    await usage.insert_entries(db, [entry("c", at_ms=NOW_MS + 2)], NOW_MS)
    assert (await runs.get(db, "default", "r1")).state == "active"
    await runs.set_state(db, "default", "r1", "cancelled", NOW_MS)
    await usage.insert_entries(db, [entry("d", at_ms=NOW_MS + 3)], NOW_MS)
    assert (await runs.get(db, "default", "r1")).state == "cancelled"


async def test_events_of_other_months_are_stored_and_retention_forgets_them(db):
    old = NOW_MS - 200 * DAY_MS
    await usage.insert_entries(
        db, [entry("old", at_ms=old), entry("new"), entry("next", at_ms=NOW_MS + 100 * DAY_MS)], NOW_MS
    )
    assert len(await rows_of(db)) == 3
    await usage.make_months_ahead(db, NOW_MS)
    dropped = await usage.drop_old_months(db, NOW_MS, months_kept=3)
    assert sorted(row["id"] for row in await rows_of(db)) == ["new", "next"]
    assert bool(dropped) is db.is_postgres
    assert (await runs.get(db, "default", "r1")).sums.calls == 3


# --- runs


async def test_a_planned_run_meets_its_events(db):
    steps = (
        RunStep(
            "r1", "plan", 1, "generate", 1.0, "declared", "balanced", allocation_tokens=900, hard_limit_tokens=1080
        ),
        RunStep("r1", "send", 2, "send", 1.0, "declared", "fast", plan={"compression": {"strategy": "none"}}),
    )
    planned = Run("default", "r1", "wf", "ada", "u", first_at_ms=NOW_MS, plan={"tokens": 2000}, steps=steps)
    made = await runs.create(db, planned)
    assert (made.state, made.plan, [step.step for step in made.steps]) == ("active", {"tokens": 2000}, ["plan", "send"])
    await usage.insert_entries(db, [entry("a", step="plan"), entry("b", step="extra", at_ms=NOW_MS + 5)], NOW_MS)
    run = await runs.get(db, "default", "r1")
    assert [(step.step, step.sums.calls) for step in run.steps] == [("plan", 1), ("send", 0), ("extra", 1)]
    assert (run.steps[0].allocation_tokens, run.steps[0].intent, run.steps[1].plan) == (
        900,
        "generate",
        {"compression": {"strategy": "none"}},
    )
    await runs.create(db, planned)
    again = await runs.get(db, "default", "r1")
    assert (again.sums, again.last_at_ms) == (run.sums, NOW_MS + 5)
    done = await runs.set_state(db, "default", "r1", "completed", NOW_MS + 9, {"quality": 1})
    assert (done.state, done.completed_at_ms, done.metrics) == ("completed", NOW_MS + 9, {"quality": 1})
    with pytest.raises(ValueError, match="is not a state"):
        await runs.set_state(db, "default", "r1", "gone", NOW_MS)
    assert await runs.set_state(db, "default", "nowhere", "paused", NOW_MS) is None


async def test_runs_are_listed_in_pages_without_gaps_or_repeats(db):
    events = [
        entry(f"e{number}", run=f"r{number:02}", at_ms=NOW_MS + number // 3, workflow=f"w{number % 2}")
        for number in range(20)
    ]
    await usage.insert_entries(db, events, NOW_MS)
    seen: list[str] = []
    cursor = None
    while True:
        page = await runs.list_runs(db, RunFilter(project="default", workflow="w0"), 3, cursor)
        seen += [run.run for run in page.runs]
        cursor = page.next
        if cursor is None:
            break
    assert seen == [f"r{number:02}" for number in (18, 16, 14, 12, 10, 8, 6, 4, 2, 0)]
    assert len((await runs.list_runs(db, RunFilter(from_ms=NOW_MS + 6))).runs) == 2
    assert (await runs.list_runs(db, RunFilter(project="other"))).runs == ()


async def test_the_family_of_a_run_ends_even_in_a_cycle(db):
    tree = [("a", "z"), ("b", "a"), ("c", "b"), ("z", "c"), ("other", "")]
    for run, parent in tree:
        await runs.create(db, Run("default", run, parent_run=parent, first_at_ms=NOW_MS))
    async with db.begin() as connection:
        assert sorted(await runs.family(connection, "default", "b")) == ["a", "b", "c", "z"]
        assert await runs.family(connection, "default", "other") == ["other"]
        assert await runs.family(connection, "elsewhere", "a") == ["a"]


# --- settings


async def test_the_forty_settings_are_seeded_with_their_defaults(db):
    stored = await settings.get_all(db)
    assert {key: row.value for key, row in stored.items()} == defaults()
    assert {row.updated_by for row in stored.values()} == {""}
    async with db.begin() as connection:
        found = (
            await connection.execute(
                text("SELECT key, type, category, minimum, maximum, choices FROM system_settings_config")
            )
        ).all()
    for key, kind, category, minimum, maximum, choices in found:
        spec = SETTINGS[key]
        assert (kind, category, tuple(orjson.loads(choices))) == (spec.type, spec.category, spec.choices)
        assert (minimum, maximum) == (spec.minimum, spec.maximum)


async def test_a_change_is_kept_with_who_when_old_and_new(db):
    key = "orchestration_max_tokens_per_step"
    before = (await versions.read(db))["settings"]
    row = await settings.put(db, key, "5000", "ada", NOW_MS)
    assert (row.value, row.updated_by, row.updated_at_ms) == (5000, "ada", NOW_MS)
    assert await settings.get(db, key) == row
    await settings.put(db, key, 6000, "bob", NOW_MS + 1)
    await settings.put(db, key, 6000, "bob", NOW_MS + 2)  # no change, no history
    changes = await settings.history(db, key)
    assert [(one.old, one.new, one.changed_by, one.changed_at_ms) for one in changes] == [
        (5000, 6000, "bob", NOW_MS + 1),
        (4000, 5000, "ada", NOW_MS),
    ]
    assert (await versions.read(db))["settings"] == before + 3
    reverted = await settings.revert(db, changes[0].id, "eve", NOW_MS + 3)
    assert reverted.value == 5000
    assert await settings.revert(db, 10**9, "eve", NOW_MS) is None


async def test_several_settings_change_together_or_not_at_all(db):
    good, bad = "orchestration_max_tokens_per_step", "orchestration_budget_overage_threshold"
    with pytest.raises(SettingError, match=r"a number from 1 to 10; given 99"):
        await settings.put_many(db, {good: 10, bad: 99}, "ada", NOW_MS)
    with pytest.raises(SettingError, match="is not a setting"):
        await settings.put(db, "orchestration_nothing", 1, "ada", NOW_MS)
    with pytest.raises(settings.SettingsConflict, match="ais_fast_tier_max_score 9 is above"):
        await settings.put_many(db, {good: 10, "orchestration_ais_fast_tier_max_score": 9}, "ada", NOW_MS)
    assert (await settings.get(db, good)).value == 4000
    assert await settings.history(db) == []
    await settings.put_many(db, {good: 10, bad: 1.5}, "ada", NOW_MS)
    assert (await settings.get(db, bad)).value == 1.5


# --- keys


async def test_a_key_is_shown_once_and_stored_as_its_digest(db):
    request = KeyRequest(
        "ci",
        "team",
        workflow="wf",
        agent="ada",
        allowed_models=("gpt-*",),
        limits={"rpm": 5},
        expires_at_ms=NOW_MS + 10,
    )
    made = await keys.create(db, request, "root", NOW_MS)
    (listed,) = await keys.list_all(db, "team")
    assert listed == made.key
    assert (listed.name, listed.workflow, listed.allowed_models, listed.limits) == ("ci", "wf", ("gpt-*",), {"rpm": 5})
    assert keys.looks_like_key(made.plain)
    assert listed.digest == keys.digest_of(made.plain)
    assert listed.is_valid(listed.digest, NOW_MS + 9)
    assert not listed.is_valid(listed.digest, NOW_MS + 10)
    assert await keys.list_all(db, "other") == []
    async with db.begin() as connection:
        stored = str((await connection.execute(text("SELECT * FROM api_keys"))).all())
    assert made.plain not in stored
    assert made.plain[11:] not in stored


async def test_revoking_and_rotating_a_key(db):
    made = await keys.create(db, KeyRequest("ops", admin=True), "root", NOW_MS)
    assert (made.key.admin, made.key.role) == (True, "admin")
    rotated = await keys.rotate(db, made.key.id, NOW_MS, grace_ms=1000)
    assert rotated.key.id == made.key.id
    assert rotated.key.is_valid(keys.digest_of(rotated.plain), NOW_MS)
    assert rotated.key.is_valid(keys.digest_of(made.plain), NOW_MS + 999)
    assert not rotated.key.is_valid(keys.digest_of(made.plain), NOW_MS + 1000)
    at_once = await keys.rotate(db, made.key.id, NOW_MS)
    assert not at_once.key.is_valid(keys.digest_of(rotated.plain), NOW_MS)
    revoked = await keys.revoke(db, made.key.id, NOW_MS + 5)
    assert revoked.revoked_at_ms == NOW_MS + 5
    assert not revoked.is_valid(keys.digest_of(at_once.plain), NOW_MS + 5)
    assert (await keys.revoke(db, made.key.id, NOW_MS + 50)).revoked_at_ms == NOW_MS + 5
    assert await keys.rotate(db, made.key.id, NOW_MS) is None
    assert await keys.revoke(db, "key_none", NOW_MS) is None


# --- workflows, budgets, scores


async def test_workflows_are_declared_replaced_and_deleted(db):
    before = (await versions.read(db))["workflows"]
    first = Workflow("default", "wf", "observe", {"steps": [{"id": "a"}]}, NOW_MS, "ada")
    await workflows.put(db, first)
    assert await workflows.get(db, "default", "wf") == first
    second = Workflow("default", "wf", "enforce", {"steps": []}, NOW_MS + 1, "bob")
    await workflows.put(db, second)
    await workflows.put(db, Workflow("other", "wf"))
    assert await workflows.list_all(db) == [second, Workflow("other", "wf")]
    assert await workflows.list_all(db, "other") == [Workflow("other", "wf")]
    assert await workflows.delete(db, "default", "wf") is True
    assert await workflows.delete(db, "default", "wf") is False
    assert await workflows.get(db, "default", "wf") is None
    assert (await versions.read(db))["workflows"] > before


async def test_budgets_keep_every_field(db):
    full = Budget(
        Scope.KEY,
        Limit(1000, 2**53 - 1, 0),
        "ci-*",
        Window.DAY,
        (Rung.WAIT, Rung.REFUSE),
        project="p",
        timezone="Europe/Berlin",
        wait_ms=500,
    )
    for stored in (
        StoredBudget("b1", full, NOW_MS, "ada"),
        StoredBudget("b2", Budget(Scope.RUN, Limit(tokens=5)), NOW_MS + 1),
    ):
        await budgets.put(db, stored)
        assert await budgets.get(db, stored.id) == stored
    changed = StoredBudget("b1", Budget(Scope.RUN, Limit(requests=3)), NOW_MS + 2, "bob")
    await budgets.put(db, changed)
    assert [stored.id for stored in await budgets.list_all(db)] == ["b2", "b1"]
    assert await budgets.get(db, "b1") == changed
    assert await budgets.delete(db, "b1") is True
    assert await budgets.get(db, "b1") is None


async def test_the_current_score_of_an_agent_is_its_last(db):
    for score in (3.0, 7.5):
        await intensity.put(
            db, intensity.Intensity("default", "ada", 1.0, 2.0, score, 5, metrics={"x": score}, measured_at_ms=NOW_MS)
        )
    await intensity.put(db, intensity.Intensity("default", "bob", 5.0, 5.0, 5.0, source="set", measured_by="root"))
    assert [(one.agent, one.combined) for one in await intensity.current(db)] == [("ada", 7.5), ("bob", 5.0)]
    assert [one.combined for one in await intensity.history(db, "default", "ada")] == [7.5, 3.0]


async def test_what_was_observed_of_an_agent(db):
    events = [
        entry(f"e{number}", run=f"r{number % 2}", step=f"s{number % 4}", at_ms=NOW_MS + number) for number in range(8)
    ]
    await usage.insert_entries(db, [*events, entry("x", agent="bob", run="r9")], NOW_MS)
    await runs.set_state(db, "default", "r0", "completed", NOW_MS)
    seen = await intensity.observed(db, "default", "ada", NOW_MS)
    assert (seen.runs, seen.completed_runs, seen.calls, seen.steps) == (2, 1, 8, 4)
    assert (seen.total_tokens, seen.peak_run_tokens, seen.duration_ms) == (1200, 600, 12)
    assert await intensity.observed(db, "default", "nobody", 0) == intensity.Observed()


async def test_the_audit_cannot_be_changed(db):
    async with db.begin() as connection:
        await connection.execute(text("INSERT INTO audit_events (at, action) VALUES (1, 'x')"))
    for statement in ("UPDATE audit_events SET action = 'y'", "DELETE FROM audit_events"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with db.begin() as connection:
                await connection.execute(text(statement))


async def test_steps_of_two_projects_do_not_meet(db):
    await usage.insert_entries(db, [entry("a"), entry("b", project="other")], NOW_MS)
    async with db.begin() as connection:
        count = (await connection.execute(select(func.count()).select_from(run_steps))).scalar()
    assert count == 2
    assert (await runs.get(db, "other", "r1")).sums.calls == 1
