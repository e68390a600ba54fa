"""/admin/settings: all 40 settings by category, a review of changes before they are saved, and the history, with reverts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

from gateway.admin.formatting import setting_text
from gateway.admin.page_request import Page, PageRequest
from gateway.endpoints.api import settings
from gateway.endpoints.api.schema import ListQuery
from gateway.endpoints.api.settings import SettingView, ValuesBody
from policies.intents import Intent
from policies.settings import PREFIX, SETTINGS, SettingError, SettingValue, conflicts, validated

_BUDGET_PREFIX: Final = PREFIX + "token_budget_"
_COMPRESSION_PREFIX: Final = PREFIX + "compression_strategy_"
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
class SettingField:
    """One setting in the form. `text` is the value of its input, `fault` the fault of that value."""

    view: SettingView
    text: str
    fault: str = ""

    @property
    def name(self) -> str:
        name = self.view.key.removeprefix(PREFIX).replace("_", " ").replace("ais ", "AIS ")
        return "orchestration enabled" if name == "enabled" else name


@dataclass(frozen=True, slots=True)
class SettingChange:
    key: str
    old: SettingValue
    new: SettingValue
    default: SettingValue


async def show_settings(page_request: PageRequest) -> Response:
    return await _settings_page(page_request, {}, {}, 200)


async def review_settings(page_request: PageRequest) -> Response:
    """Show what would change. Changes nothing."""
    texts = {key: text for key, text in page_request.form.items() if key in SETTINGS}
    new_values, faults = _parse_values(texts)
    current_values = {view.key: view.value for view in (await page_request.call_api(settings.list_settings)).settings}
    contradictions = [
        conflict
        for conflict in conflicts({**current_values, **new_values})
        if conflict not in conflicts(current_values)
    ]
    if faults or contradictions:
        return await _settings_page(page_request, texts, faults, 400, contradictions)
    changes = [
        SettingChange(key, current_values[key], value, SETTINGS[key].default)
        for key, value in new_values.items()
        if value != current_values[key]
    ]
    if not changes:
        return page_request.redirect("settings", done="unchanged")
    return page_request.render("settings_review", changes=changes)


async def save_settings(page_request: PageRequest) -> Response:
    """Save the reviewed changes. A value that somebody else changed meanwhile is shown again instead of being overwritten."""
    new_values, faults = _parse_values({key: text for key, text in page_request.form.items() if key in SETTINGS})
    now = {view.key: view.value for view in (await page_request.call_api(settings.list_settings)).settings}
    changed_meanwhile = [key for key in new_values if page_request.form.get(f"was:{key}") != setting_text(now[key])]
    if faults or changed_meanwhile or not new_values:
        changes = [SettingChange(key, now[key], value, SETTINGS[key].default) for key, value in new_values.items()]
        return page_request.render("settings_review", status=409, changes=changes, changed_meanwhile=changed_meanwhile)
    await page_request.call_api(settings.put_settings, body=ValuesBody(values=new_values))
    return page_request.redirect("settings", done="saved")


async def show_history(page_request: PageRequest) -> Response:
    query = page_request.query(ListQuery, limit=100)
    key = page_request.param("key")
    if key:
        page = await page_request.call_api(settings.list_changes_of_one, path={"key": key}, query=query)
    else:
        page = await page_request.call_api(settings.list_changes, query=query)
    return page_request.render("settings_history", changes=page.changes, next_cursor=page.next, key=key)


async def revert_setting(page_request: PageRequest) -> Response:
    await page_request.call_api(settings.revert_change, path={"id": page_request.form.get("id", "")})
    return page_request.redirect("settings/history", done="reverted")


async def _settings_page(
    page_request: PageRequest,
    given: Mapping[str, str],
    faults: Mapping[str, str],
    status: int,
    contradictions: list[str] | None = None,
) -> Response:
    views = {view.key: view for view in (await page_request.call_api(settings.list_settings)).settings}
    fields = {
        key: SettingField(view, given.get(key, setting_text(view.value)), faults.get(key, ""))
        for key, view in views.items()
    }
    matrix = [
        (intent.value, fields[_BUDGET_PREFIX + intent], fields[_COMPRESSION_PREFIX + intent]) for intent in Intent
    ]
    history = await page_request.call_api(settings.list_changes, query=ListQuery(limit=_HISTORY_SHOWN))
    return page_request.render(
        "settings",
        status=status,
        groups=[(key, title, _fields_of_category(fields, key)) for key, title in _CATEGORIES.items()],
        matrix=matrix,
        budget_tokens_max=max(field.view.value for _, field, _ in matrix),
        history=history.changes,
        faults=len(faults),
        contradictions=contradictions or [],
    )


def _fields_of_category(fields: Mapping[str, SettingField], category: str) -> list[SettingField]:
    """The settings of a category, without those that are edited in the matrix."""
    return [
        field
        for key, field in fields.items()
        if field.view.category == category and not key.startswith((_BUDGET_PREFIX, _COMPRESSION_PREFIX))
    ]


def _parse_values(texts: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
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
