"""Settings, keys, workflows, budgets and intensity scores in the store, on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.store import budgets, intensity, keys, runs, settings, usage, versions, workflows
from gateway.store.budgets import StoredBudget
from gateway.store.database import Database
from gateway.store.keys import KeyRequest, NewKey
from gateway.store.workflows import Workflow
from policies.amounts import Limit
from policies.budgets import Budget, Scope, Window
from policies.pressure import parse_ladder
from policies.settings import SETTINGS, SettingError, SettingValue, defaults
from tests.store_events import NOW_MS, entry

pytest_plugins = ("tests.store_fixtures",)


async def value_of(db: Database, key: str) -> SettingValue:
    return (await settings.get_all(db))[key].value


def assert_created(new: NewKey | None) -> NewKey:
    assert new is not None
    return new


async def test_40_settings_are_seeded_with_their_defaults(db: Database) -> None:
    stored = await settings.get_all(db)
    assert {key: row.value for key, row in stored.items()} == defaults()
    assert {row.updated_by for row in stored.values()} == {""}
    async with db.begin() as connection:
        rows = (
            await connection.execute(
                text("SELECT key, type, category, minimum, maximum, choices FROM system_settings_config")
            )
        ).all()
    for key, kind, category, minimum, maximum, choices in rows:
        spec = SETTINGS[key]
        assert (kind, category, tuple(orjson.loads(choices))) == (spec.type, spec.category, spec.choices)
        assert (minimum, maximum) == (spec.minimum, spec.maximum)


async def test_setting_change_records_actor_time_old_and_new_value(db: Database) -> None:
    key = "orchestration_max_tokens_per_step"
    before = (await versions.read(db))["settings"]
    row = await settings.put(db, key, "5000", "ada", NOW_MS)
    assert (row.value, row.updated_by, row.updated_at_ms) == (5000, "ada", NOW_MS)
    assert (await settings.get_all(db))[key] == row
    await settings.put(db, key, 6000, "bob", NOW_MS + 1)
    await settings.put(db, key, 6000, "bob", NOW_MS + 2)  # no change, no history
    changes = await settings.history(db, key)
    assert [(change.old, change.new, change.changed_by, change.changed_at_ms) for change in changes] == [
        (5000, 6000, "bob", NOW_MS + 1),
        (4000, 5000, "ada", NOW_MS),
    ]
    assert (await versions.read(db))["settings"] == before + 3
    reverted = await settings.revert(db, changes[0].id, "eve", NOW_MS + 3)
    assert reverted is not None
    assert reverted.value == 5000
    assert await settings.revert(db, 10**9, "eve", NOW_MS) is None


async def test_value_from_the_file_is_the_old_value_of_the_first_change(db: Database) -> None:
    file = {"orchestration_enabled": True, "orchestration_ais_fast_tier_max_score": 5.0}
    await settings.put(db, "orchestration_enabled", False, "ada", NOW_MS, file)
    (change,) = await settings.history(db)
    assert (change.old, change.new) == (True, False), "the old value is that of the file, not the default"
    with pytest.raises(settings.SettingsConflict, match="ais_fast_tier_max_score 5 is above"):
        await settings.put(db, "orchestration_ais_balanced_tier_max_score", 4, "ada", NOW_MS, file)
    await settings.revert(db, change.id, "bob", NOW_MS, file)
    assert await value_of(db, "orchestration_enabled") is True
    assert [(change.old, change.new) for change in await settings.history(db)] == [(False, True), (True, False)]


async def test_several_settings_change_together_or_not_at_all(db: Database) -> None:
    good, bad = "orchestration_max_tokens_per_step", "orchestration_budget_overage_threshold"
    with pytest.raises(SettingError, match=r"a number from 1 to 10; given 99"):
        await settings.put_many(db, {good: 10, bad: 99}, "ada", NOW_MS)
    with pytest.raises(SettingError, match="is not a setting"):
        await settings.put(db, "orchestration_nothing", 1, "ada", NOW_MS)
    with pytest.raises(settings.SettingsConflict, match="ais_fast_tier_max_score 9 is above"):
        await settings.put_many(db, {good: 10, "orchestration_ais_fast_tier_max_score": 9}, "ada", NOW_MS)
    assert await value_of(db, good) == 4000
    assert await settings.history(db) == []
    await settings.put_many(db, {good: 10, bad: 1.5}, "ada", NOW_MS)
    assert await value_of(db, bad) == 1.5


# --- keys


async def test_key_is_stored_only_as_its_digest(db: Database) -> None:
    request = KeyRequest(
        "ci",
        "team",
        workflow="wf",
        agent="ada",
        allowed_models=("gpt-*",),
        limits={"rpm": 5},
        expires_at_ms=NOW_MS + 10,
    )
    new = await keys.create(db, request, "root", NOW_MS)
    (listed,) = await keys.list_all(db, "team")
    assert listed == new.key
    assert (listed.name, listed.workflow, listed.allowed_models, listed.limits) == ("ci", "wf", ("gpt-*",), {"rpm": 5})
    assert keys.looks_like_key(new.plain)
    assert listed.digest == keys.digest_of(new.plain)
    assert listed.is_valid(listed.digest, NOW_MS + 9)
    assert not listed.is_valid(listed.digest, NOW_MS + 10)
    assert await keys.list_all(db, "other") == []
    async with db.begin() as connection:
        stored = str((await connection.execute(text("SELECT * FROM api_keys"))).all())
    assert new.plain not in stored
    assert new.plain[11:] not in stored


async def test_concurrent_limited_keys_of_one_name_are_created_once(db: Database) -> None:
    """Accounts are named after keys: two keys of one name would share one budget."""
    limited = KeyRequest("ci", limits={"tokens": 10})

    async def is_refused(request: KeyRequest) -> bool:
        try:
            await keys.create(db, request, "root", NOW_MS)
        except keys.KeyNameTaken:
            return True
        return False

    assert sum(await asyncio.gather(*(is_refused(limited) for _ in range(6)))) == 5
    assert await is_refused(KeyRequest("ci"))
    elsewhere = [
        KeyRequest("ci", "other"),
        KeyRequest("ci", admin=True),
        KeyRequest("ci", admin=True),
        KeyRequest("ca"),
    ]
    assert not any([await is_refused(key_request) for key_request in elsewhere])
    (first,) = [key for key in await keys.list_all(db, limited.project) if key.limits]
    await keys.revoke(db, first.id, NOW_MS)
    assert [await is_refused(key_request) for key_request in (KeyRequest("ci"), KeyRequest("ci"), limited)] == [
        False,
        False,
        True,
    ]
    known = await keys.list_all(db, limited.project)
    unlimited = next(key for key in known if key.name == "ci" and not (key.role or key.limits))
    with pytest.raises(keys.KeyNameTaken):
        await keys.change(db, unlimited.id, lambda key: replace(key, limits={"usd": 1}))
    assert await keys.change(db, unlimited.id, lambda key: replace(key, limits={"concurrency": 1})) is not None


async def test_rotated_and_revoked_keys_become_invalid(db: Database) -> None:
    first = await keys.create(db, KeyRequest("ops", admin=True), "root", NOW_MS)
    assert (first.key.admin, first.key.role) == (True, "admin")
    rotated = assert_created(await keys.rotate(db, first.key.id, NOW_MS, grace_ms=1000))
    assert rotated.key.id == first.key.id
    assert rotated.key.is_valid(keys.digest_of(rotated.plain), NOW_MS)
    assert rotated.key.is_valid(keys.digest_of(first.plain), NOW_MS + 999)
    assert not rotated.key.is_valid(keys.digest_of(first.plain), NOW_MS + 1000)
    at_once = assert_created(await keys.rotate(db, first.key.id, NOW_MS))
    assert not at_once.key.is_valid(keys.digest_of(rotated.plain), NOW_MS)
    revoked = await keys.revoke(db, first.key.id, NOW_MS + 5)
    assert revoked is not None
    assert revoked.revoked_at_ms == NOW_MS + 5
    assert not revoked.is_valid(keys.digest_of(at_once.plain), NOW_MS + 5)
    assert await keys.revoke(db, first.key.id, NOW_MS + 50) == revoked
    assert await keys.rotate(db, first.key.id, NOW_MS) is None
    assert await keys.revoke(db, "key_none", NOW_MS) is None


# --- workflows, budgets, scores


async def test_workflows_are_declared_replaced_and_deleted(db: Database) -> None:
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


async def test_stored_budget_keeps_every_field(db: Database) -> None:
    full = Budget(
        Scope.KEY,
        Limit(1000, 2**53 - 1, 0),
        "ci-*",
        Window.DAY,
        parse_ladder([{"compress": 0.3}, "wait", "refuse"]),
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


async def test_current_intensity_of_an_agent_is_its_latest(db: Database) -> None:
    for score in (3.0, 7.5):
        await intensity.put(
            db, intensity.Intensity("default", "ada", 1.0, 2.0, score, 5, metrics={"x": score}, measured_at_ms=NOW_MS)
        )
    await intensity.put(db, intensity.Intensity("default", "bob", 5.0, 5.0, 5.0, source="set", measured_by="root"))
    assert [(score.agent, score.combined) for score in await intensity.current(db)] == [("ada", 7.5), ("bob", 5.0)]
    assert [score.agent for score in await intensity.current(db, limit=1)] == ["bob"], "scores set by people come first"
    assert [score.combined for score in await intensity.history(db, "default", "ada")] == [7.5, 3.0]


async def test_old_intensity_is_deleted_unless_set_or_latest_of_an_active_agent(db: Database) -> None:
    long_ago = NOW_MS - 100 * 86_400_000
    for agent, score, source, at_ms in (
        ("ada", 1.0, "computed", long_ago),
        ("ada", 2.0, "computed", long_ago),
        ("gone", 3.0, "computed", long_ago),
        ("bob", 4.0, "set", long_ago),
        ("new", 5.0, "computed", NOW_MS),
    ):
        await intensity.put(
            db, intensity.Intensity("default", agent, 1.0, 1.0, score, source=source, measured_at_ms=at_ms)
        )
    await usage.insert_entries(db, [entry("x", agent="ada", run="r1")], NOW_MS)
    await intensity.forget_old(db, NOW_MS)
    remaining = {score.agent: score.combined for score in await intensity.current(db)}
    assert remaining == {"ada": 2.0, "bob": 4.0, "new": 5.0}
    assert len(await intensity.history(db, "default", "ada")) == 1


async def test_observed_activity_of_an_agent_is_summed(db: Database) -> None:
    events = [
        entry(f"e{number}", run=f"r{number % 2}", step=f"s{number % 4}", at_ms=NOW_MS + number) for number in range(8)
    ]
    await usage.insert_entries(db, [*events, entry("x", agent="bob", run="r9")], NOW_MS)
    await runs.set_state(db, "default", "r0", "completed", NOW_MS)
    activity = await intensity.observed(db, "default", "ada", NOW_MS)
    assert (activity.runs, activity.completed_runs, activity.calls, activity.steps) == (2, 1, 8, 4)
    assert (activity.total_tokens, activity.peak_run_tokens, activity.duration_ms) == (1200, 600, 12)
    assert await intensity.observed(db, "default", "nobody", 0) == intensity.ObservedActivity()


async def test_audit_rejects_update_and_delete(db: Database) -> None:
    async with db.begin() as connection:
        await connection.execute(
            text("INSERT INTO audit_events (at, action) VALUES (:at, 'x')"), {"at": time.time_ns() // 1_000_000}
        )
    for statement in ("UPDATE audit_events SET action = 'y'", "DELETE FROM audit_events"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with db.begin() as connection:
                await connection.execute(text(statement))
