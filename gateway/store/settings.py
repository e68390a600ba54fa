"""The 40 settings in `system_settings_config`, and the history of their changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import orjson
from sqlalchemy import select

from gateway.store.database import Database, StoreConnection
from gateway.store.tables import settings_history, system_settings_config
from gateway.store.versions import Subject, raise_version
from policies.settings import SETTINGS, SettingValue, conflicts, validated

_NONE: Final[Mapping[str, SettingValue]] = MappingProxyType({})


class SettingsConflict(ValueError):
    """Values that are each allowed but contradict each other; the message says which."""


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A stored setting. `updated_by` is empty for the seeded default, which nobody has set yet."""

    key: str
    value: SettingValue
    updated_at_ms: int
    updated_by: str


@dataclass(frozen=True, slots=True)
class SettingChange:
    id: int
    key: str
    old: SettingValue
    new: SettingValue
    changed_at_ms: int
    changed_by: str


async def get_all(db: Database) -> dict[str, SettingRow]:
    """Every stored setting that this gateway knows, in the order of `SETTINGS`."""
    async with db.begin() as connection:
        rows = await _rows(connection)
    return {key: rows[key] for key in SETTINGS if key in rows}


async def put(
    db: Database, key: str, value: object, actor: str, now_ms: int, first_values: Mapping[str, SettingValue] = _NONE
) -> SettingRow:
    """Set one. Raises SettingError (unknown key, wrong type, out of range) and SettingsConflict, and then changes nothing."""
    return (await put_many(db, {key: value}, actor, now_ms, first_values))[key]


async def put_many(
    db: Database,
    values: Mapping[str, object],
    actor: str,
    now_ms: int,
    first_values: Mapping[str, SettingValue] = _NONE,
) -> dict[str, SettingRow]:
    """Set several in one transaction, all or none. Unchanged values make no history.

    `first_values` are those of the configuration file: they apply, and are the old values of a change, until somebody sets
    their keys.
    """
    validated_values = {key: validated(key, value) for key, value in values.items()}
    async with db.begin() as connection:
        stored = await _rows(connection, locked=True)
        previous = {
            key: row.value if row.updated_by else first_values.get(key, row.value) for key, row in stored.items()
        }
        _check_conflicts(previous, previous | validated_values)
        rows = {key: SettingRow(key, value, now_ms, actor) for key, value in validated_values.items()}
        for key, row in rows.items():
            await _write(connection, row, is_new=key not in stored)
            await _note_change(connection, previous.get(key, SETTINGS[key].default), row)
        await raise_version(connection, Subject.SETTINGS)
    return rows


async def history(
    db: Database, key: str | None = None, limit: int = 100, before_id: int | None = None
) -> list[SettingChange]:
    """Newest changes first, of one key or of all. For the next page, pass the last change's `id` as `before_id`."""
    table = settings_history.c
    query = select(settings_history).order_by(table.id.desc()).limit(limit)
    if key is not None:
        query = query.where(table.key == key)
    if before_id is not None:
        query = query.where(table.id < before_id)
    async with db.begin() as connection:
        return [_change(row) for row in (await connection.execute(query)).mappings()]


async def revert(
    db: Database, change_id: int, actor: str, now_ms: int, first_values: Mapping[str, SettingValue] = _NONE
) -> SettingRow | None:
    """Restore the value before a change, as a new change. None if there is no such change."""
    query = select(settings_history).where(settings_history.c.id == change_id)
    async with db.begin() as connection:
        change_row = (await connection.execute(query)).mappings().first()
    if change_row is None:
        return None
    change = _change(change_row)
    return await put(db, change.key, change.old, actor, now_ms, first_values)


def _check_conflicts(previous: Mapping[str, SettingValue], changed: Mapping[str, SettingValue]) -> None:
    """Only new contradictions are refused: existing ones must not block the way out of them."""
    new_conflicts = [sentence for sentence in conflicts(changed) if sentence not in conflicts(previous)]
    if new_conflicts:
        raise SettingsConflict(" ".join(new_conflicts))


async def _rows(connection: StoreConnection, *, locked: bool = False) -> dict[str, SettingRow]:
    query = select(system_settings_config)
    if locked:  # of two writers of one key the second sees what the first wrote, so that the history is a chain
        query = query.order_by(system_settings_config.c.key).with_for_update()
    rows = (await connection.execute(query)).mappings()
    return {
        row["key"]: SettingRow(row["key"], orjson.loads(row["value"]), row["updated_at"], row["updated_by"])
        for row in rows
    }


async def _write(connection: StoreConnection, row: SettingRow, *, is_new: bool) -> None:
    spec = SETTINGS[row.key]
    values = {"value": _json(row.value), "updated_at": row.updated_at_ms, "updated_by": row.updated_by}
    if is_new:
        seeded = {"key": row.key, "type": spec.type, "category": spec.category, "description": spec.description}
        await connection.execute(system_settings_config.insert().values(**seeded, **values))
    else:
        condition = system_settings_config.c.key == row.key
        await connection.execute(system_settings_config.update().where(condition).values(**values))


async def _note_change(connection: StoreConnection, old: SettingValue, row: SettingRow) -> None:
    if old != row.value:
        change = {"key": row.key, "old_value": _json(old), "new_value": _json(row.value)}
        stamp = {"changed_at": row.updated_at_ms, "changed_by": row.updated_by}
        await connection.execute(settings_history.insert().values(**change, **stamp))


def _change(row: Any) -> SettingChange:
    old, new = orjson.loads(row["old_value"]), orjson.loads(row["new_value"])
    return SettingChange(row["id"], row["key"], old, new, row["changed_at"], row["changed_by"])


def _json(value: SettingValue) -> str:
    return orjson.dumps(value).decode()
