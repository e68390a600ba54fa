"""/admin/settings: all 40, by category; what would change before it does; who changed what, and back again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

from gateway.admin.figures import setting_text
from gateway.admin.visit import Page, Visit
from gateway.endpoints.api import settings
from gateway.endpoints.api.schema import ListQuery
from gateway.endpoints.api.settings import SettingView, ValuesBody
from policies.intents import Intent
from policies.settings import PREFIX, SETTINGS, SettingError, SettingValue, conflicts, validated

_BUDGET: Final = PREFIX + "token_budget_"
_COMPRESSION: Final = PREFIX + "compression_strategy_"
_HISTORY_SHOWN: Final = 8
_CATEGORIES: Final = {
    "orchestration": "Orchestration",
    "budgets": "Budgets",
    "compression": "Compression",
    "routing": "Routing",
    "classification": "Classification",
    "quality": "Quality",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One setting in the form. `text` is what the input holds, `fault` what is wrong with it."""

    view: SettingView
    text: str
    fault: str = ""

    @property
    def name(self) -> str:
        name = self.view.key.removeprefix(PREFIX).replace("_", " ").replace("ais ", "AIS ")
        return "orchestration enabled" if name == "enabled" else name


@dataclass(frozen=True, slots=True)
class Difference:
    key: str
    old: SettingValue
    new: SettingValue
    default: SettingValue


async def show_settings(visit: Visit) -> Response:
    return await _form(visit, {}, {}, 200)


async def review_settings(visit: Visit) -> Response:
    """What would change, before anything does."""
    given = {key: text for key, text in visit.form.items() if key in SETTINGS}
    wanted, faults = _read(given)
    now = {view.key: view.value for view in (await visit.ask(settings.list_settings)).settings}
    contradictions = [one for one in conflicts({**now, **wanted}) if one not in conflicts(now)]
    if faults or contradictions:
        return await _form(visit, given, faults, 400, contradictions)
    changes = [
        Difference(key, now[key], value, SETTINGS[key].default) for key, value in wanted.items() if value != now[key]
    ]
    if not changes:
        return visit.go("settings", done="unchanged")
    return visit.show("settings_review", changes=changes)


async def save_settings(visit: Visit) -> Response:
    """Only what was shown: a value that somebody else changed meanwhile is shown again instead of being overwritten."""
    wanted, faults = _read({key: text for key, text in visit.form.items() if key in SETTINGS})
    now = {view.key: view.value for view in (await visit.ask(settings.list_settings)).settings}
    moved = [key for key in wanted if visit.form.get(f"was:{key}") != setting_text(now[key])]
    if faults or moved or not wanted:
        changes = [Difference(key, now[key], value, SETTINGS[key].default) for key, value in wanted.items()]
        return visit.show("settings_review", status=409, changes=changes, moved=moved)
    await visit.ask(settings.put_settings, body=ValuesBody(values=wanted))
    return visit.go("settings", done="saved")


async def show_history(visit: Visit) -> Response:
    query = visit.query(ListQuery, limit=100)
    key = visit.param("key")
    if key:
        found = await visit.ask(settings.list_changes_of_one, path={"key": key}, query=query)
    else:
        found = await visit.ask(settings.list_changes, query=query)
    return visit.show("settings_history", changes=found.changes, following=found.next, key=key)


async def revert_setting(visit: Visit) -> Response:
    await visit.ask(settings.revert_change, path={"id": visit.form.get("id", "")})
    return visit.go("settings/history", done="reverted")


async def _form(
    visit: Visit,
    given: Mapping[str, str],
    faults: Mapping[str, str],
    status: int,
    contradictions: list[str] | None = None,
) -> Response:
    views = {view.key: view for view in (await visit.ask(settings.list_settings)).settings}
    fields = {
        key: Field(view, given.get(key, setting_text(view.value)), faults.get(key, "")) for key, view in views.items()
    }
    matrix = [(intent.value, fields[_BUDGET + intent], fields[_COMPRESSION + intent]) for intent in Intent]
    history = await visit.ask(settings.list_changes, query=ListQuery(limit=_HISTORY_SHOWN))
    return visit.show(
        "settings",
        status=status,
        groups=[(key, title, _group(fields, key)) for key, title in _CATEGORIES.items()],
        matrix=matrix,
        budget_tokens_max=max(field.view.value for _, field, _ in matrix),
        history=history.changes,
        faults=len(faults),
        contradictions=contradictions or [],
    )


def _group(fields: Mapping[str, Field], category: str) -> list[Field]:
    """Those of the matrix are edited there."""
    return [
        field
        for key, field in fields.items()
        if field.view.category == category and not key.startswith((_BUDGET, _COMPRESSION))
    ]


def _read(texts: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """(values, faults), both by key."""
    values: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for key, text in texts.items():
        try:
            values[key] = validated(key, text)
        except SettingError as error:
            faults[key] = error.message
    return values, faults


PAGES = (
    Page("GET", "/settings", show_settings, "viewer"),
    Page("POST", "/settings/review", review_settings, "admin"),
    Page("POST", "/settings", save_settings, "admin"),
    Page("GET", "/settings/history", show_history, "viewer"),
    Page("POST", "/settings/history", revert_setting, "admin"),
)
