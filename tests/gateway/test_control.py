"""The control snapshot: its first values, how changes reach it, and what it keeps while the store is unreachable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.control import Control, Snapshot, first_snapshot
from gateway.store import budgets, intensity, keys, settings, versions, workflows
from gateway.store.budgets import StoredBudget
from gateway.store.database import Database
from gateway.store.intensity import Intensity
from gateway.store.keys import KeyRequest
from gateway.store.workflows import Workflow
from policies.amounts import Limit
from policies.budgets import Budget, Scope
from policies.settings import SETTINGS, Settings
from tests.store_events import NOW_MS
from tests.waiting import eventually

STEP = "orchestration_max_tokens_per_step"
ENABLED = "orchestration_enabled"


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    await database.open()
    await database.migrate(NOW_MS)
    yield database
    await database.close()


@pytest.fixture
async def control(db: Database) -> AsyncIterator[Control]:
    started = Control(db, {ENABLED: True}, poll_ms=20)
    await started.start()
    yield started
    await started.stop()


async def test_without_a_store_settings_come_from_file_and_defaults(tmp_path: Path) -> None:
    closed = Database(f"sqlite:///{tmp_path}/store.db")
    control = Control(closed, {STEP: 1234})
    assert await control.refresh() is False
    snapshot = control.snapshot
    assert (snapshot.is_loaded, snapshot.generation, control.is_store_available) == (False, 0, False)
    assert snapshot.settings == Settings.from_values({STEP: 1234})
    assert len(snapshot.setting_rows) == len(SETTINGS) == 40
    assert snapshot.setting_rows[STEP].origin == "file"
    assert snapshot.keys == {}


async def test_snapshot_loads_once_the_store_becomes_available(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    control = Control(database, poll_ms=10)
    await control.start()
    await database.open()
    await database.migrate(NOW_MS)
    await eventually(lambda: control.snapshot.is_loaded)
    assert control.is_store_available
    await control.stop()
    await database.close()


async def test_snapshot_without_readable_keys_is_not_taken_for_one_of_a_gateway_without_keys(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    await database.open()
    await database.migrate(NOW_MS)
    await keys.create(database, KeyRequest("ci"), "test", NOW_MS)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET limits = 'of a later version'"))
    await database.close()
    control = Control(database, poll_ms=10)
    await control.start()  # the store is unreachable, so that nothing of it is read yet
    await database.open()
    await eventually(lambda: control.snapshot.generation > 0)
    assert (control.snapshot.keys, control.snapshot.is_loaded) == ({}, False)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET limits = ''"))
    await eventually(lambda: control.snapshot.is_loaded)
    assert len(control.snapshot.keys) == 1
    await control.stop()
    await database.close()


async def test_file_value_applies_until_the_store_has_one(control: Control, db: Database) -> None:
    assert control.snapshot.is_loaded
    rows = control.snapshot.setting_rows
    assert (rows[ENABLED].value, rows[ENABLED].origin, rows[STEP].origin) == (True, "file", "default")
    await control.change(settings.put(db, ENABLED, False, "ada", NOW_MS))
    now = control.snapshot.setting_rows[ENABLED]
    assert (now.value, now.origin, now.updated_by, now.updated_at_ms) == (False, "store", "ada", NOW_MS)
    assert control.snapshot.settings.enabled is False


async def test_change_by_another_process_is_loaded_once_by_polling(control: Control, db: Database) -> None:
    before = control.snapshot
    snapshots: list[Snapshot] = []
    control.subscribe(snapshots.append)
    await settings.put(db, STEP, 999, "ada", NOW_MS)
    await eventually(lambda: control.snapshot.settings.max_tokens_per_step == 999)
    assert before.settings.max_tokens_per_step == 4000  # a snapshot is immutable
    assert control.snapshot.generation == before.generation + 1
    assert snapshots == [control.snapshot]
    await asyncio.sleep(0.1)
    assert len(snapshots) == 1  # nothing changed, so nothing was reloaded


async def test_snapshot_holds_keys_workflows_budgets_and_intensity_scores(control: Control, db: Database) -> None:
    new = await keys.create(db, KeyRequest("ci", "team"), "root", NOW_MS)
    declared = Workflow("team", "wf", "observe", {"steps": []}, NOW_MS, "ada")
    await workflows.put(db, declared)
    stored = StoredBudget("b1", Budget(Scope.KEY, Limit(tokens=5)), NOW_MS, "ada")
    await budgets.put(db, stored)
    await intensity.put(db, Intensity("team", "ada", 1.0, 9.0, 6.6))
    await control.refresh()
    snapshot = control.snapshot
    assert snapshot.find_key(new.plain, NOW_MS) == new.key
    assert snapshot.workflow("team", "wf") == declared
    assert snapshot.workflow("default", "wf") is None
    assert snapshot.budgets == (stored,)
    assert (snapshot.ais("team", "ada"), snapshot.ais("team", "bob")) == (6.6, None)


async def test_expired_rotated_or_revoked_key_is_no_longer_found(control: Control, db: Database) -> None:
    expiring = await control.change(keys.create(db, KeyRequest("a", expires_at_ms=NOW_MS + 10), "root", NOW_MS))
    assert control.snapshot.find_key(expiring.plain, NOW_MS) is not None
    assert control.snapshot.find_key(expiring.plain, NOW_MS + 10) is None
    new = await control.change(keys.create(db, KeyRequest("b"), "root", NOW_MS))
    rotated = await control.change(keys.rotate(db, new.key.id, NOW_MS, grace_ms=5))
    assert rotated is not None
    assert control.snapshot.find_key(rotated.plain, NOW_MS) is not None
    assert control.snapshot.find_key(new.plain, NOW_MS + 4) is not None
    assert control.snapshot.find_key(new.plain, NOW_MS + 5) is None
    await control.change(keys.revoke(db, new.key.id, NOW_MS))
    assert control.snapshot.find_key(rotated.plain, NOW_MS) is None


async def test_malformed_key_fails_its_checksum() -> None:
    plain = keys.make_plain_key()
    wrong_check = plain[:-1] + ("A" if plain[-1] != "A" else "B")
    typo = plain[:10] + ("x" if plain[10] != "x" else "y") + plain[11:]
    snapshot = first_snapshot()
    for junk in ("", "fb_", "sk-1234", wrong_check, typo, plain + "0", plain[1:], "fb_" + "ü" * 49, "fb_" + "0" * 49):
        assert not keys.looks_like_key(junk), junk
        assert snapshot.find_key(junk, NOW_MS) is None
    assert keys.looks_like_key(plain)
    assert len({keys.make_plain_key() for _ in range(100)}) == 100
    assert keys.looks_like_key(keys.make_plain_key(lambda count: b"\xff" * count))
    assert keys.looks_like_key(keys.make_plain_key(bytes))


async def test_last_snapshot_stays_while_the_store_is_unreachable(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    await database.open()
    await database.migrate(NOW_MS)
    control = Control(database, poll_ms=10)
    await control.start()
    await settings.put(database, STEP, 777, "ada", NOW_MS)
    await eventually(lambda: control.snapshot.settings.max_tokens_per_step == 777)
    await database.close()
    await eventually(lambda: not control.is_store_available)
    assert control.snapshot.settings.max_tokens_per_step == 777
    assert control.last_error
    await database.open()
    await eventually(lambda: control.is_store_available)
    await control.stop()
    await database.close()


async def test_invalid_setting_row_falls_back_to_its_default_alone(control: Control, db: Database) -> None:
    await settings.put(db, "orchestration_compression_target_ratio", 0.7, "ada", NOW_MS)
    async with db.begin() as connection:
        broken = "UPDATE system_settings_config SET value = '-5', updated_by = 'hand' WHERE key = :key"
        await connection.execute(text(broken), {"key": STEP})
    await control.refresh()
    assert control.snapshot.settings.max_tokens_per_step == 4000
    assert control.snapshot.setting_rows[STEP].origin == "default"
    assert control.snapshot.settings.compression_target_ratio == 0.7


async def test_polling_survives_an_unexpected_store_error(control: Control, db: Database) -> None:
    async with db.begin() as connection:
        await connection.execute(text("ALTER TABLE budgets RENAME TO elsewhere"))
        await connection.execute(text("UPDATE control_versions SET version = version + 1"))
    await eventually(lambda: not control.is_store_available)
    async with db.begin() as connection:
        await connection.execute(text("ALTER TABLE elsewhere RENAME TO budgets"))
    await eventually(lambda: control.is_store_available)


async def test_unreadable_budgets_keep_their_last_values_while_key_changes_apply(
    control: Control, db: Database
) -> None:
    await control.change(budgets.put(db, StoredBudget("b1", Budget(Scope.RUN, Limit(tokens=1)))))
    key = await control.change(keys.create(db, KeyRequest("ci"), "test", NOW_MS))
    async with db.begin() as connection:
        await connection.execute(text("UPDATE budgets SET mode = 'of a later version'"))
        await versions.raise_version(connection, versions.Subject.BUDGETS)
    await keys.revoke(db, key.key.id, NOW_MS)
    await eventually(lambda: control.snapshot.find_key(key.plain, NOW_MS) is None)
    assert [stored.id for stored in control.snapshot.budgets] == ["b1"]  # as last read
    assert "of a later version" in control.last_error
    generation = control.snapshot.generation
    await asyncio.sleep(0.1)
    assert control.snapshot.generation == generation
