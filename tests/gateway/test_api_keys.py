"""Keys through the control API of a running gateway."""

from __future__ import annotations

from tests.api_client import Api

pytest_plugins = ("tests.api_fixtures",)


async def test_patching_a_key_changes_only_the_given_fields(api: Api) -> None:
    admin = await api.post("/api/keys", {"name": "ops", "admin": True})
    api.headers["authorization"] = f"Bearer {admin['key']}"
    made = await api.post(
        "/api/keys",
        {
            "name": "ci",
            "agent": "ada",
            "step": "draft",
            "priority": "low",
            "limits": {"usd": 0.5},
            "expires_in_days": 1,
        },
    )
    where = f"/api/keys/{made['id']}"
    wished = {"limits": {"requests": 2, "window": "day"}, "allowed_models": ["openai/*"], "user": "bo", "step": None}
    changed = await api.patch(where, wished)
    assert (changed["limits"], changed["allowed_models"]) == ({"requests": 2, "window": "day"}, ["openai/*"])
    assert (changed["agent"], changed["step"], changed["user"], changed["priority"]) == ("ada", "", "bo", "low")
    assert (changed["expires_at"], changed["prefix"]) == (made["expires_at"], made["prefix"])
    ci_headers = {"authorization": f"Bearer {made['key']}"}
    assert (await api.chat("r1", **ci_headers)).status_code == 403, "the key may no longer use this model"
    freed = await api.patch(where, {"allowed_models": None, "expires_at": None})
    assert (freed["allowed_models"], freed["expires_at"], freed["limits"]) == ([], None, changed["limits"])
    assert (changed["warning"], freed["warning"]) == ("No model has the name 'openai/*' now.", None)
    assert [(await api.chat("r1", **ci_headers)).status_code for _ in range(3)] == [200, 200, 429]
    await api.patch(where, {"limits": {"requests": 3, "window": "day"}})
    assert [(await api.chat("r1", **ci_headers)).status_code for _ in range(2)] == [200, 429], (
        "usage is kept when the limit changes"
    )
    for body in (
        {},
        {"name": "other"},
        {"limits": {"tokens": -1}},
        {"expires_at": "2020-01-01"},
        {"priority": "urgent"},
    ):
        assert (await api.refused("PATCH", where, body))[0] == 400, body
    await api.delete(where)
    assert (await api.refused("PATCH", where, {"limits": None}))[1]["code"] == "key_revoked"
    detail = (await api.get("/api/audit?action=key.changed"))["events"][0]["detail"]
    assert detail["changed"] == ["limits"]
    assert [detail[side]["limits"]["requests"] for side in ("old", "new")] == [2, 3]


async def test_key_name_is_unique_within_its_project(api: Api) -> None:
    admin = await api.post("/api/keys", {"name": "ops", "admin": True})
    api.headers["authorization"] = f"Bearer {admin['key']}"
    wanted = {"name": "ci", "limits": {"requests": 1}}
    made = await api.post("/api/keys", wanted)
    status, error = await api.refused("POST", "/api/keys", wanted)
    assert (status, error["code"]) == (409, "key_name_taken")
    assert "'ci'" in error["message"]
    elsewhere = await api.post("/api/keys", wanted | {"project": "team"})
    for key in (made, elsewhere):
        caller = {"authorization": f"Bearer {key['key']}"}
        assert [(await api.chat("r1", **caller)).status_code for _ in range(2)] == [200, 402]


async def test_key_can_be_created_listed_rotated_and_revoked(api: Api) -> None:
    admin = await api.post("/api/keys", {"name": "ops", "admin": True})
    assert admin["key"].startswith("fb_")
    assert (admin["role"], admin["state"], admin["warning"]) == ("admin", "active", None)
    api.headers["authorization"] = f"Bearer {admin['key']}"
    made = await api.post(
        "/api/keys",
        {"name": "ci", "project": "team", "agent": "ada", "limits": {"tokens": 500, "window": "day", "concurrency": 2}},
    )
    assert (made["project"], made["limits"]) == ("team", {"tokens": 500, "window": "day", "concurrency": 2})
    listed = await api.get("/api/keys")
    assert [key["name"] for key in listed["keys"]] == ["ci", "ops"]
    assert all("key" not in key and "digest" not in key for key in listed["keys"])
    assert made["key"] not in str(listed)
    ci_headers = {"authorization": f"Bearer {made['key']}"}
    assert (await api.chat("r1", **ci_headers)).status_code == 200
    rotated = await api.post(f"/api/keys/{made['id']}/rotate", {"grace_seconds": 60})
    assert rotated["id"] == made["id"]
    assert rotated["key"] != made["key"]
    assert (await api.chat("r1", **ci_headers)).status_code == 200
    again = await api.post("/api/keys/ci/rotate")
    assert (await api.chat("r1", **ci_headers)).status_code == 401
    revoked = await api.delete(f"/api/keys/{made['id']}")
    assert revoked["state"] == "revoked"
    assert (await api.chat("r1", authorization=f"Bearer {again['key']}")).status_code == 401
    assert (await api.refused("POST", f"/api/keys/{made['id']}/rotate"))[1]["code"] == "key_revoked"
    expiring = await api.post("/api/keys", {"name": "short", "expires_in_days": 1})
    assert expiring["expires_at"] > expiring["created_at"]
    for body in (
        {},
        {"name": ""},
        {"name": "x", "expires_at": "2020-01-01"},
        {"name": "x", "admin": True, "role": "viewer"},
    ):
        assert (await api.refused("POST", "/api/keys", body))[0] == 400, body
    events = (await api.get("/api/audit?action=key."))["events"]
    assert [event["action"] for event in reversed(events)] == [
        "key.created",
        "key.created",
        "key.rotated",
        "key.rotated",
        "key.revoked",
        "key.created",
    ]
    assert made["key"] not in str(events)
