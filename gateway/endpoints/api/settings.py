"""/api/settings: the 40 settings, the history of their changes, and reverting changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from gateway.control import EffectiveSetting, Snapshot
from gateway.endpoints.api.route import ApiRequest, Route, not_found
from gateway.endpoints.api.schema import ListQuery, NoBody, ProjectQuery, Strict, page_start
from gateway.errors import BadRequest
from gateway.store import settings as settings_store
from gateway.store.settings import SettingChange
from gateway.timestamps import iso
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


async def list_settings(request: ApiRequest[ProjectQuery, NoBody]) -> SettingList:
    return _views(request.services.parts.control.snapshot, tuple(SETTINGS))


async def get_setting(request: ApiRequest[ProjectQuery, NoBody]) -> SettingView:
    key = _known(request.path["key"])
    return _view(request.services.parts.control.snapshot.setting_rows[key])


async def put_setting(request: ApiRequest[ProjectQuery, ValueBody]) -> SettingView:
    key = _known(request.path["key"])
    await _put(request, {key: request.body.value})
    return _view(request.services.parts.control.snapshot.setting_rows[key])


async def put_settings(request: ApiRequest[ProjectQuery, ValuesBody]) -> SettingList:
    for key in request.body.values:
        _known(key)
    await _put(request, request.body.values)
    return _views(request.services.parts.control.snapshot, tuple(request.body.values))


async def list_changes(request: ApiRequest[ListQuery, NoBody]) -> ChangeList:
    return await _changes(request, None)


async def list_changes_of_one(request: ApiRequest[ListQuery, NoBody]) -> ChangeList:
    return await _changes(request, _known(request.path["key"]))


async def revert_change(request: ApiRequest[ProjectQuery, NoBody]) -> SettingView:
    """Set a setting back to what it was before a change. This is a change of its own."""
    text = request.path["id"]
    values_before = {key: row.value for key, row in request.services.parts.control.snapshot.setting_rows.items()}
    control, row = request.services.parts.control, None
    if text.isascii() and text.isdigit() and len(text) < 16:
        actor, now_ms = request.actor.name, request.services.now_ms()
        row = await control.change(settings_store.revert(request.store, int(text), actor, now_ms, control.first_values))
    if row is None:
        raise not_found("change", text)
    await request.audit("setting.reverted", row.key, old=values_before[row.key], new=row.value, change=int(text))
    return _view(request.services.parts.control.snapshot.setting_rows[row.key])


async def _put(request: ApiRequest[Any, Any], values: dict[str, Any]) -> None:
    control = request.services.parts.control
    values_before = {key: control.snapshot.setting_rows[key].value for key in values}
    actor, now_ms = request.actor.name, request.services.now_ms()
    await control.change(settings_store.put_many(request.store, values, actor, now_ms, control.first_values))
    for key, old in values_before.items():
        await request.audit("setting.changed", key, old=old, new=control.snapshot.setting_rows[key].value)


async def _changes(request: ApiRequest[ListQuery, NoBody], key: str | None) -> ChangeList:
    limit, before_id = request.query.limit, page_start(request.query.cursor) or None
    changes = await settings_store.history(request.store, key, limit + 1, before_id)
    page = changes[:limit]
    return ChangeList(tuple(map(_change, page)), str(page[-1].id) if len(changes) > limit else None)


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


def _view(setting: EffectiveSetting) -> SettingView:
    spec = SETTINGS[setting.key]
    return SettingView(
        key=setting.key,
        value=setting.value,
        type=spec.type,  # type: ignore[arg-type]
        range=spec.range,
        category=spec.category,
        description=spec.description,
        default=spec.default,
        minimum=spec.minimum,
        maximum=spec.maximum,
        choices=spec.choices,
        origin=setting.origin,
        updated_at=iso(setting.updated_at_ms),
        updated_by=setting.updated_by,
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
