"""/api/settings: the 40 settings, the history of their changes, and reverting changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from gateway.control import SettingNow, Snapshot
from gateway.endpoints.api.route import Ask, Route, not_found
from gateway.endpoints.api.schema import ListQuery, NoBody, ProjectQuery, Strict, page_start
from gateway.errors import BadRequest
from gateway.moments import iso
from gateway.store import settings as settings_store
from gateway.store.settings import SettingChange
from policies.settings import SETTINGS, SettingValue

# Any JSON value is accepted here: the setting itself checks it, and its error says what the setting takes.
_TYPES = ("boolean", "integer", "number", "string")
GivenValue = Annotated[Any, WithJsonSchema({"anyOf": [{"type": name} for name in _TYPES]})]


@dataclass(frozen=True, slots=True)
class SettingView:
    """`origin` is where the value comes from: the default, the configuration file, or the store, where somebody set it."""

    key: str
    value: SettingValue
    type: Literal["boolean", "integer", "number", "string"]
    range: str
    category: str
    description: str
    default: SettingValue
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    origin: Literal["default", "file", "store"]
    updated_at: str | None
    updated_by: str


@dataclass(frozen=True, slots=True)
class SettingList:
    settings: tuple[SettingView, ...]


@dataclass(frozen=True, slots=True)
class ChangeView:
    id: int
    key: str
    old: SettingValue
    new: SettingValue
    changed_at: str | None
    changed_by: str


@dataclass(frozen=True, slots=True)
class ChangeList:
    changes: tuple[ChangeView, ...]
    next: str | None


class ValueBody(Strict):
    value: GivenValue


class ValuesBody(Strict):
    """Several values at once, all or none, so that settings that depend on each other can change together."""

    values: Annotated[dict[str, GivenValue], Field(min_length=1, max_length=len(SETTINGS))]


async def list_settings(ask: Ask[ProjectQuery, NoBody]) -> SettingList:
    return _views(ask.desk.parts.control.snapshot, tuple(SETTINGS))


async def get_setting(ask: Ask[ProjectQuery, NoBody]) -> SettingView:
    key = _known(ask.path["key"])
    return _view(ask.desk.parts.control.snapshot.setting_rows[key])


async def put_setting(ask: Ask[ProjectQuery, ValueBody]) -> SettingView:
    key = _known(ask.path["key"])
    await _put(ask, {key: ask.body.value})
    return _view(ask.desk.parts.control.snapshot.setting_rows[key])


async def put_settings(ask: Ask[ProjectQuery, ValuesBody]) -> SettingList:
    for key in ask.body.values:
        _known(key)
    await _put(ask, ask.body.values)
    return _views(ask.desk.parts.control.snapshot, tuple(ask.body.values))


async def list_changes(ask: Ask[ListQuery, NoBody]) -> ChangeList:
    return await _changes(ask, None)


async def list_changes_of_one(ask: Ask[ListQuery, NoBody]) -> ChangeList:
    return await _changes(ask, _known(ask.path["key"]))


async def revert_change(ask: Ask[ProjectQuery, NoBody]) -> SettingView:
    """Set a setting back to what it was before a change. This is a change of its own."""
    text = ask.path["id"]
    before = {key: row.value for key, row in ask.desk.parts.control.snapshot.setting_rows.items()}
    control, row = ask.desk.parts.control, None
    if text.isascii() and text.isdigit() and len(text) < 16:
        who, now_ms = ask.actor.name, ask.desk.now_ms()
        row = await control.change(settings_store.revert(ask.store, int(text), who, now_ms, control.first_values))
    if row is None:
        raise not_found("change", text)
    await ask.audit("setting.reverted", row.key, old=before[row.key], new=row.value, change=int(text))
    return _view(ask.desk.parts.control.snapshot.setting_rows[row.key])


async def _put(ask: Ask[Any, Any], values: dict[str, Any]) -> None:
    control = ask.desk.parts.control
    before = {key: control.snapshot.setting_rows[key].value for key in values}
    who, now_ms = ask.actor.name, ask.desk.now_ms()
    await control.change(settings_store.put_many(ask.store, values, who, now_ms, control.first_values))
    for key, old in before.items():
        await ask.audit("setting.changed", key, old=old, new=control.snapshot.setting_rows[key].value)


async def _changes(ask: Ask[ListQuery, NoBody], key: str | None) -> ChangeList:
    start = page_start(ask.query.cursor)
    end = start + ask.query.limit
    found = await settings_store.history(ask.store, key, end + 1)
    page = tuple(_change(change) for change in found[start:end])
    return ChangeList(page, str(end) if len(found) > end else None)


def _known(key: str) -> str:
    if key not in SETTINGS:
        raise BadRequest(
            f"There is no setting {key[:100]!r}; GET /api/settings lists the 40 there are.",
            status=404,
            code="not_found",
        )
    return key


def _views(snapshot: Snapshot, keys: tuple[str, ...]) -> SettingList:
    return SettingList(tuple(_view(snapshot.setting_rows[key]) for key in keys))


def _view(now: SettingNow) -> SettingView:
    spec = SETTINGS[now.key]
    return SettingView(
        key=now.key,
        value=now.value,
        type=spec.type,  # type: ignore[arg-type]
        range=spec.range,
        category=spec.category,
        description=spec.description,
        default=spec.default,
        minimum=spec.minimum,
        maximum=spec.maximum,
        choices=spec.choices,
        origin=now.origin,
        updated_at=iso(now.updated_at_ms),
        updated_by=now.updated_by,
    )


def _change(change: SettingChange) -> ChangeView:
    return ChangeView(change.id, change.key, change.old, change.new, iso(change.changed_at_ms), change.changed_by)


ROUTES = (
    Route("GET", "/settings", list_settings, SettingList, "All settings with their values and ranges."),
    Route(
        "PUT", "/settings", put_settings, SettingList, "Change several settings at once, all or none.", body=ValuesBody
    ),
    Route("GET", "/settings/history", list_changes, ChangeList, "Every change, the newest first.", ListQuery),
    Route("POST", "/settings/history/{id}/revert", revert_change, SettingView, "Revert a change."),
    Route("GET", "/settings/{key}/history", list_changes_of_one, ChangeList, "The changes of one setting.", ListQuery),
    Route("GET", "/settings/{key}", get_setting, SettingView, "One setting."),
    Route("PUT", "/settings/{key}", put_setting, SettingView, "Change one setting.", body=ValueBody),
)
