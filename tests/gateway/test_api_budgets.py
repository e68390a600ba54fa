"""Budgets through the control API of a running gateway."""

from __future__ import annotations

from tests.api_client import Api

pytest_plugins = ("tests.api_fixtures",)


async def test_budgets_of_file_and_store_are_listed_with_their_accounts(api: Api) -> None:
    used = (await api.chat("r1")).json()["usage"]["total_tokens"]
    created = await api.post(
        "/api/budgets", {"scope": "project", "match": "default", "tokens": 10_000, "window": "day"}
    )
    assert (created["origin"], created["scope"], created["tokens"], created["window"]) == (
        "store",
        "project",
        10_000,
        "day",
    )
    await api.chat("r1")
    budgets = {budget["id"]: budget for budget in (await api.get("/api/budgets"))["budgets"]}
    assert [budget["origin"] for budget in budgets.values()] == ["file", "file", "store"]
    (workflow,) = budgets["file:1"]["accounts"]
    assert (workflow["scope_id"], workflow["tokens_settled"], workflow["tokens_limit"]) == (
        "nightly",
        2 * used,
        100_000,
    )
    assert workflow["tokens_remaining"] == 100_000 - 2 * used
    assert workflow["resets_at"] is not None
    (project,) = budgets[created["id"]]["accounts"]
    assert project["tokens_settled"] == used  # usage counts from when the budget exists
    assert budgets["file:0"]["accounts"] == []


async def test_budgets_of_another_project_are_not_listed(api: Api) -> None:
    for project in (None, "default", "other"):
        await api.post("/api/budgets", {"scope": "run", "match": "w", "tokens": 5, "project": project})
    for asked, projects in (("default", {None, "default"}), ("other", {None, "other"})):
        budgets = (await api.get(f"/api/budgets?project={asked}"))["budgets"]
        assert {budget["project"] for budget in budgets if budget["origin"] == "store"} == projects


async def test_account_of_a_key_is_shown_by_its_name(api: Api) -> None:
    api.headers["authorization"] = f"Bearer {(await api.post('/api/keys', {'name': 'ops', 'admin': True}))['key']}"
    budget = await api.post("/api/budgets", {"scope": "key", "match": "*", "tokens": 10_000, "window": "day"})
    key = await api.post("/api/keys", {"name": "ci"})
    assert (await api.chat("r1", authorization=f"Bearer {key['key']}")).status_code == 200
    await api.application.parts.flusher.drain(5_000)
    (account,) = (await api.get(f"/api/budgets/{budget['id']}"))["accounts"]
    assert account["scope_id"] == "ci"


async def test_budgets_sharing_an_account_are_shown_with_their_own_limits(api: Api) -> None:
    used = (await api.chat("r1", workflow="two")).json()["usage"]["total_tokens"]
    for match, tokens in (("two", 100_000), ("t*", 100)):
        await api.post("/api/budgets", {"scope": "workflow", "match": match, "tokens": tokens, "window": "day"})
    await api.chat("r1", workflow="two")
    await api.application.parts.flusher.drain(5_000)
    accounts_by_match = {budget["match"]: budget["accounts"] for budget in (await api.get("/api/budgets"))["budgets"]}
    for match, tokens in (("two", 100_000), ("t*", 100)):
        (account,) = accounts_by_match[match]
        assert (account["tokens_limit"], account["tokens_remaining"]) == (tokens, tokens - used)
        assert account["used"] == round(used / tokens, 4)


async def test_budget_changes_take_effect_at_the_next_call(api: Api) -> None:
    created = await api.post(
        "/api/budgets", {"scope": "run", "match": "nightly", "tokens": 5, "on_pressure": ["refuse"]}
    )
    assert (await api.chat("r1")).status_code == 402
    changed = await api.put(f"/api/budgets/{created['id']}", {"scope": "run", "match": "nightly", "tokens": 5000})
    assert changed["tokens"] == 5000
    assert (await api.chat("r1")).headers["x-budget-run-limit"] == "5000"
    await api.delete(f"/api/budgets/{created['id']}")
    assert (await api.chat("r1")).headers["x-budget-run-limit"] == "20000"
    assert (await api.refused("DELETE", f"/api/budgets/{created['id']}"))[0] == 404
    for method, body in (("PUT", {"scope": "run", "tokens": 1}), ("DELETE", None)):
        status, error = await api.refused(method, "/api/budgets/file:0", body)
        assert (status, error["code"]) == (409, "budget_of_file")


async def test_sliced_hold_is_no_larger_than_the_requested_answer(api: Api) -> None:
    """The first slice of a long answer, of 512 tokens, would not fit."""
    body = {"scope": "run", "match": "nightly", "tokens": 60, "hold": "slices", "on_pressure": ["refuse"]}
    await api.post("/api/budgets", body)
    assert (await api.chat("r1", body={"max_tokens": 20})).status_code == 200


async def test_created_budget_shows_its_wait_in_seconds_and_who_created_it(api: Api) -> None:
    body = {"scope": "run", "match": "w", "tokens": 5, "on_pressure": ["wait", "refuse"], "wait_seconds": 1.5}
    created = await api.post("/api/budgets", body)
    assert (created["wait_seconds"], created["updated_by"]) == (1.5, "local")


async def test_invalid_budget_is_refused(api: Api) -> None:
    for body in (
        {"scope": "run"},
        {"scope": "team", "tokens": 1},
        {"scope": "run", "tokens": 1, "window": "day"},
        {"scope": "key", "tokens": 1, "window": "run"},
        {"scope": "run", "tokens": -1},
        {"scope": "run", "tokens": 1.5},
        {"scope": "run", "usd": "much"},
        {"scope": "run", "usd": 9_100_000},
        {"scope": "key", "tokens": 1, "timezone": "Mars/Base"},
        {"scope": "key", "tokens": 1, "project": "a\x00b"},  # which Postgres could not store
        {"scope": "key", "tokens": 1, "project": ""},
        {"scope": "run", "tokens": 1, "surprise": 1},
    ):
        assert (await api.refused("POST", "/api/budgets", body))[0] == 400, body


async def test_audit_of_a_budget_shows_old_and_new_values(api: Api) -> None:
    budget = await api.post("/api/budgets", {"scope": "workflow", "match": "w", "tokens": 5000, "window": "day"})
    where = f"/api/budgets/{budget['id']}"
    await api.put(where, {"scope": "workflow", "match": "w", "tokens": 5000, "window": "month", "mode": "observe"})
    await api.delete(where)
    events = (await api.get("/api/audit?action=budget."))["events"]
    assert [event["action"] for event in events] == ["budget.deleted", "budget.changed", "budget.created"]
    deleted, changed, created = (event["detail"] for event in events)
    assert (created["tokens"], created["window"], created["mode"]) == (5000, "day", "enforce")
    assert (changed["tokens"], changed["window"], changed["mode"]) == (5000, "month", "observe")
    assert changed["old"] == {"window": "day", "mode": "enforce"}
    assert (deleted["tokens"], deleted["window"], deleted["mode"]) == (5000, "month", "observe")


async def test_suggested_budgets_follow_past_usage_and_can_be_applied(api: Api) -> None:
    assert (await api.get("/api/workflows/nightly/suggestions"))["suggestions"] == []
    assert (await api.refused("POST", "/api/workflows/nightly/suggestions"))[0] == 409
    used = 0
    for number in range(3):
        used = (await api.chat(f"r{number}", "draft")).json()["usage"]["total_tokens"]
        await api.post(f"/api/runs/r{number}/complete")
    suggested = await api.get("/api/workflows/nightly/suggestions")
    assert [
        (suggestion["scope"], suggestion["match"], suggestion["samples"], suggestion["p95_tokens"])
        for suggestion in suggested["suggestions"]
    ] == [
        ("run", "nightly", 3, used),
        ("step", "nightly/draft", 3, used),
    ]
    assert all(
        suggestion["tokens"] >= used * 1.2 and not suggestion["is_sure"] for suggestion in suggested["suggestions"]
    )
    assert (await api.get("/api/budgets"))["budgets"][-1]["origin"] == "file"
    for _ in range(2):
        applied = await api.post("/api/workflows/nightly/suggestions")
    stored = [budget for budget in (await api.get("/api/budgets"))["budgets"] if budget["origin"] == "store"]
    assert sorted(budget["id"] for budget in stored) == sorted(applied["applied"])
    assert (await api.chat("r9", "draft")).headers["x-budget-run-limit"] == str(suggested["suggestions"][0]["tokens"])
