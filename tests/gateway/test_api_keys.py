"""Keys through the control API of a running gateway."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from gateway.admin.pages import keys as keys_page
from tests.api_client import Api

pytest_plugins = ("tests.api_fixtures",)


@pytest.fixture
async def admin(api: Api) -> Api:
    """The API once it asks for keys, with the key of an administrator."""
    key = await api.post("/api/keys", {"name": "ops", "admin": True})
    api.headers |= bearer(key)
    return api


def bearer(key: dict[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {key['key']}"}


async def statuses(api: Api, key: dict[str, Any], calls: int = 1) -> list[int]:
    """Of calls with this key."""
    return [(await api.chat("r1", **bearer(key))).status_code for _ in range(calls)]


# ── create ──


async def test_first_admin_key_is_created_without_a_key(api: Api) -> None:
    key = await api.post("/api/keys", {"name": "ops", "admin": True})
    assert key["key"].startswith("fb_")
    assert (key["role"], key["state"], key["warning"]) == ("admin", "active", None)


async def test_created_key_has_the_given_fields_and_may_call(admin: Api) -> None:
    limits = {"tokens": 500, "usd": 0.25, "window": "day", "concurrency": 2}
    key = await admin.post("/api/keys", {"name": "ci", "project": "team", "agent": "ada", "limits": limits})
    assert (key["project"], key["agent"], key["limits"]) == ("team", "ada", limits)
    assert await statuses(admin, key) == [200]


async def test_expiry_in_days_is_after_the_creation(admin: Api) -> None:
    key = await admin.post("/api/keys", {"name": "short", "expires_in_days": 1})
    assert key["expires_at"] > key["created_at"]


async def test_expiry_may_be_a_fraction_of_a_day(admin: Api) -> None:
    key = await admin.post("/api/keys", {"name": "short", "expires_in_days": 0.5})
    created, expires = (datetime.fromisoformat(key[name]) for name in ("created_at", "expires_at"))
    assert (expires - created, key["state"]) == (timedelta(hours=12), "active")
    changed = await admin.patch(f"/api/keys/{key['id']}", {"expires_in_days": 3})
    assert datetime.fromisoformat(changed["expires_at"]) - created > timedelta(days=2)


@pytest.mark.parametrize(("project_of_body", "project"), [({}, "asked"), ({"project": "own"}, "own")])
async def test_key_without_a_project_belongs_to_that_of_the_query(
    admin: Api, project_of_body: dict[str, str], project: str
) -> None:
    key = await admin.post("/api/keys?project=asked", {"name": "ci", **project_of_body})
    assert key["project"] == project


async def test_name_finds_the_key_that_is_in_use_and_only_if_no_other_has_it(admin: Api) -> None:
    first = await admin.post("/api/keys", {"name": "ci"})
    await admin.delete("/api/keys/ci")
    second = await admin.post("/api/keys", {"name": "ci"})
    assert second["id"] != first["id"]
    assert (await admin.get("/api/keys/ci"))["id"] == second["id"]
    await admin.post("/api/keys", {"name": "ci", "project": "team"})
    status, error = await admin.refused("DELETE", "/api/keys/ci")
    assert (status, error["code"]) == (409, "ambiguous_name")


async def test_warning_names_the_allowed_models_that_match_none(admin: Api) -> None:
    key = await admin.post("/api/keys", {"name": "ci", "allowed_models": ["mock", "mo*", "gone"]})
    assert key["warning"] == "No model has the name 'gone' now."


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x", "expires_at": "2020-01-01"},
        {"name": "x", "admin": True, "role": "viewer"},
    ],
)
async def test_invalid_key_is_not_created(admin: Api, body: dict[str, Any]) -> None:
    assert (await admin.refused("POST", "/api/keys", body))[0] == 400


async def test_key_name_is_unique_within_its_project(admin: Api) -> None:
    new_key = {"name": "ci", "limits": {"requests": 1}}
    key = await admin.post("/api/keys", new_key)
    status, error = await admin.refused("POST", "/api/keys", new_key)
    assert (status, error["code"]) == (409, "key_name_taken")
    assert "'ci'" in error["message"]
    same_name_elsewhere = await admin.post("/api/keys", new_key | {"project": "team"})
    assert await statuses(admin, key, 2) == [200, 402]
    assert await statuses(admin, same_name_elsewhere, 2) == [200, 402]


async def test_list_shows_no_key_and_no_digest(admin: Api) -> None:
    key = await admin.post("/api/keys", {"name": "ci"})
    listed = (await admin.get("/api/keys"))["keys"]
    assert [entry["name"] for entry in listed] == ["ci", "ops"]
    assert not {"key", "digest"} & {field for entry in listed for field in entry}
    assert key["key"] not in str(listed)


# ── change ──


async def test_patching_a_key_changes_only_the_given_fields(admin: Api) -> None:
    body = {"name": "ci", "agent": "ada", "step": "draft", "priority": "low", "limits": {"usd": 0.5}}
    key = await admin.post("/api/keys", {**body, "expires_in_days": 1})
    limits = {"requests": 2, "window": "day"}
    changed = await admin.patch(f"/api/keys/{key['id']}", {"limits": limits, "user": "bo", "step": None})
    assert (changed["limits"], changed["user"], changed["step"]) == (limits, "bo", "")
    for field in ("agent", "priority", "expires_at", "prefix"):
        assert changed[field] == key[field]


async def test_allowed_models_are_enforced_until_they_are_removed(admin: Api) -> None:
    key = await admin.post("/api/keys", {"name": "ci", "expires_in_days": 1})
    path = f"/api/keys/{key['id']}"
    narrowed = await admin.patch(path, {"allowed_models": ["openai/*"]})
    assert narrowed["allowed_models"] == ["openai/*"]
    assert narrowed["warning"] == "No model has the name 'openai/*' now."
    assert await statuses(admin, key) == [403]
    freed = await admin.patch(path, {"allowed_models": None, "expires_at": None})
    assert (freed["allowed_models"], freed["expires_at"], freed["warning"]) == ([], None, None)
    assert await statuses(admin, key) == [200]


async def test_usage_is_kept_when_the_limit_of_a_key_changes(admin: Api) -> None:
    key = await admin.post("/api/keys", {"name": "ci", "limits": {"requests": 2, "window": "day"}})
    assert await statuses(admin, key, 3) == [200, 200, 429]
    await admin.patch(f"/api/keys/{key['id']}", {"limits": {"requests": 3, "window": "day"}})
    assert await statuses(admin, key, 2) == [200, 429]
    detail = (await admin.get("/api/audit?action=key.changed"))["events"][0]["detail"]
    assert detail["changed"] == ["limits"]
    assert [detail[side]["limits"]["requests"] for side in ("old", "new")] == [2, 3]


@pytest.mark.parametrize(
    "body",
    [{}, {"name": "other"}, {"limits": {"tokens": -1}}, {"expires_at": "2020-01-01"}, {"priority": "urgent"}],
)
async def test_invalid_change_of_a_key_is_refused(admin: Api, body: dict[str, Any]) -> None:
    key = await admin.post("/api/keys", {"name": "ci"})
    assert (await admin.refused("PATCH", f"/api/keys/{key['id']}", body))[0] == 400


# ── rotate and revoke ──


async def test_rotated_key_is_accepted_until_its_grace_ends(admin: Api) -> None:
    first = await admin.post("/api/keys", {"name": "ci"})
    second = await admin.post(f"/api/keys/{first['id']}/rotate", {"grace_seconds": 60})
    assert second["id"] == first["id"]
    assert second["key"] != first["key"]
    assert await statuses(admin, first) == await statuses(admin, second) == [200]
    third = await admin.post("/api/keys/ci/rotate")
    assert await statuses(admin, first) == [401]
    assert await statuses(admin, third) == [200]


async def test_revoked_key_may_neither_call_nor_be_rotated_or_changed(admin: Api) -> None:
    key = await admin.post("/api/keys", {"name": "ci"})
    path = f"/api/keys/{key['id']}"
    assert (await admin.delete(path))["state"] == "revoked"
    assert await statuses(admin, key) == [401]
    assert (await admin.refused("POST", f"{path}/rotate"))[1]["code"] == "key_revoked"
    assert (await admin.refused("PATCH", path, {"limits": None}))[1]["code"] == "key_revoked"


async def test_creation_rotation_and_revocation_are_audited_without_the_key(admin: Api) -> None:
    key = await admin.post("/api/keys", {"name": "ci"})
    await admin.post(f"/api/keys/{key['id']}/rotate")
    for _ in range(2):
        await admin.delete(f"/api/keys/{key['id']}")
    events = (await admin.get("/api/audit?action=key."))["events"]
    actions = [event["action"] for event in reversed(events)]
    assert actions == ["key.created", "key.created", "key.rotated", "key.revoked"]
    assert key["key"] not in str(events)


async def test_page_of_keys_leads_to_the_older_ones(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_page, "_KEYS_SHOWN", 2)
    api.headers |= bearer(await api.post("/api/keys", {"name": "first", "admin": True}))
    for name in ("second", "third"):
        await api.post("/api/keys", {"name": name, "project": "other"})
    newest = (await api.ask("GET", "/admin/keys")).text
    assert [name in newest for name in ("<b>first</b>", "<b>second</b>", "<b>third</b>")] == [False, True, True]
    older = re.search(r'href="(\?[^"]*cursor=[^"]+)"', newest)
    assert older
    assert "<b>first</b>" in (await api.ask("GET", f"/admin/keys{older[1]}")).text
