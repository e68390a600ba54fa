"""Settings, workflows, classification, agents, audit and maintenance, through the control API of a running gateway."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.bookkeeping.reconcile import run_accounts
from gateway.store import workflows as workflows_store
from gateway.store.database import StoreUnavailable
from policies.amounts import Amount
from policies.settings import SETTINGS
from tests.api_client import Api

pytest_plugins = ("tests.api_fixtures",)

STEP = "orchestration_max_tokens_per_step"


async def test_settings_are_listed_with_type_range_and_origin(api: Api) -> None:
    listed = (await api.get("/api/settings"))["settings"]
    assert [setting["key"] for setting in listed] == list(SETTINGS)
    setting = await api.get(f"/api/settings/{STEP}")
    assert {"key", "value", "type", "range", "category", "description", "updated_at", "updated_by"} <= setting.keys()
    assert (setting["value"], setting["type"], setting["category"], setting["origin"]) == (
        4000,
        "integer",
        "budgets",
        "default",
    )


async def test_setting_change_takes_effect_at_once_and_can_be_reverted(api: Api) -> None:
    changed = await api.put(f"/api/settings/{STEP}", {"value": 5000})
    assert (changed["value"], changed["origin"], changed["updated_by"]) == (5000, "store", "local")
    assert changed["updated_at"].endswith("Z")
    assert api.application.parts.control.snapshot.settings.max_tokens_per_step == 5000
    await api.put(f"/api/settings/{STEP}", {"value": 6000})
    changes = (await api.get(f"/api/settings/{STEP}/history"))["changes"]
    assert [(change["old"], change["new"], change["changed_by"]) for change in changes] == [
        (5000, 6000, "local"),
        (4000, 5000, "local"),
    ]
    reverted = await api.post(f"/api/settings/history/{changes[1]['id']}/revert")
    assert reverted["value"] == 4000
    everything = await api.get("/api/settings/history?limit=2")
    assert [change["new"] for change in everything["changes"]] == [4000, 6000]
    await api.put(
        f"/api/settings/{STEP}", {"value": 7000}
    )  # which must not push a change from the first page onto the next
    following = await api.get(f"/api/settings/history?limit=2&cursor={everything['next']}")
    assert [change["new"] for change in following["changes"]] == [5000]
    assert following["next"] is None


REFUSED_SETTINGS: list[tuple[str, Any, int, str]] = [
    (STEP, {"value": 0}, 400, "1 to 10000000"),
    (STEP, {"value": "many"}, 400, "1 to 10000000"),
    (STEP, {"value": True}, 400, "whole number"),
    (STEP, {"value": None}, 400, "a whole number from 1 to 10000000; given null"),
    (STEP, {"value": [5]}, 400, "given a list"),
    (STEP, {}, 400, "value"),
    (STEP, {"value": 5, "more": 1}, 400, "more"),
    ("orchestration_compression_aggressiveness", {"value": "brutal"}, 400, "low, medium, high"),
    ("orchestration_enabled", {"value": "perhaps"}, 400, "true or false"),
    ("orchestration_ais_fast_tier_max_score", {"value": 9.5}, 400, "above"),  # contradicts the balanced threshold
    ("no_such_setting", {"value": 1}, 404, "no_such_setting"),
]


async def test_refused_setting_says_which_values_are_allowed(api: Api) -> None:
    for key, body, expected, words in REFUSED_SETTINGS:
        status, error = await api.refused("PUT", f"/api/settings/{key}", body)
        assert status == expected, (key, body)
        assert words in error["message"], error
    assert (await api.get("/api/settings/history"))["changes"] == []


async def test_several_settings_change_atomically(api: Api) -> None:
    both = {"orchestration_ais_fast_tier_max_score": 7.5, "orchestration_ais_balanced_tier_max_score": 8}
    status, _ = await api.refused("PUT", "/api/settings", {"values": {**both, STEP: 0}})
    assert status == 400
    assert (await api.get("/api/settings/orchestration_ais_fast_tier_max_score"))["value"] == 3.0
    both["orchestration_ais_powerful_tier_min_score"] = 8
    assert len((await api.put("/api/settings", {"values": both}))["settings"]) == 3
    assert (await api.get("/api/settings/orchestration_ais_fast_tier_max_score"))["value"] == 7.5


MALFORMED = (
    (b"{", "invalid_json"),
    (b"[]", "invalid_json"),
    (b'"x"', "invalid_json"),
    (b"", "invalid_json"),
    (b'{"value": NaN}', "invalid_json"),
    (b'{"value": 1, "value": 2}', "duplicate_key"),
    (b'\xef\xbb\xbf{"value": 1}', "invalid_json"),
    (b'{"value":' + b"[" * 100_000, "invalid_json"),
    (b'{"value": 1' + b"0" * 5_000 + b"}", "invalid_json"),
    (b'{"value": "' + b"x" * 5_000_000 + b'"}', "request_too_large"),
)


async def test_malformed_body_is_refused_with_its_error_code(api: Api) -> None:
    for content, code in MALFORMED:
        status, error = await api.refused("PUT", f"/api/settings/{STEP}", content=content)
        assert (status, error["code"]) == (413 if code == "request_too_large" else 400, code), content[:40]


BAD_QUERIES = ("limit=0", "limit=many", "limit=1&limit=2", "surprise=1", "project=a%20b", "from=yesterday", "state=odd")


async def test_invalid_queries_paths_and_methods_are_refused(api: Api) -> None:
    for query in BAD_QUERIES:
        assert (await api.refused("GET", f"/api/runs?{query}"))[0] == 400, query
    for method, path, status in (
        ("GET", "/api/nothing", 404),
        ("GET", "/api/", 404),
        ("PATCH", "/api/settings", 405),
        ("DELETE", "/api/settings", 405),
    ):
        actual_status, error = await api.refused(method, path)
        assert actual_status == status, path
        assert error["type"] == "invalid_request_error"


DECLARATION = {
    "description": "Every night.",
    "mode": "enforce",
    "strategy": "priority",
    "budget": {"tokens": 9000, "usd": 0.25},
    "steps": [
        {"id": "read", "description": "Extract the totals.", "intent": "Extract"},
        {
            "id": "loop",
            "kind": "loop",
            "steps": [{"id": "check", "prompt": "Verify it.", "budget": 700, "priority": "high"}],
        },
    ],
}


LISTS = ("settings/history", f"settings/{STEP}/history", "workflows", "budgets", "keys", "usage", "agents", "audit")


@pytest.mark.parametrize("path", [*LISTS, "runs", "runs/r1/calls"])
async def test_invalid_cursor_is_refused(api: Api, path: str) -> None:
    await api.chat("r1")
    is_of_rows = path.startswith("runs")
    wrong = ("nonsense", "-3", "1:\x00", "9" * 200, *(("7", "x:r1", ":") if is_of_rows else ("12x", "1:r1", "٣")))
    for cursor in wrong:
        status, error = await api.refused("GET", f"/api/{path}", params={"cursor": cursor})
        assert (status, error["param"]) == (400, "cursor"), cursor
        assert error["message"] == "cursor: must be the `next` of the page before, or left out for the first page."
    first = await api.get(f"/api/{path}")
    for cursor in ("", "1" * 18 + ":r1" if is_of_rows else "0"):
        assert await api.get(f"/api/{path}", params={"cursor": cursor}) == first, cursor


async def test_workflow_can_be_declared_read_replaced_and_deleted(api: Api) -> None:
    put = await api.put("/api/workflows/nightly", DECLARATION)
    assert (put["workflow"], put["mode"], put["strategy"]) == ("nightly", "enforce", "priority")
    assert put["budget"] == {"tokens": 9000, "usd": 0.25}
    assert put["steps"][0] == {
        "id": "read",
        "prompt": "Extract the totals.",
        "description": "Extract the totals.",
        "intent": "extract",
    }
    assert put["steps"][1]["steps"][0]["budget"] == {"tokens": 700}
    assert await api.get("/api/workflows/nightly") == put
    assert [workflow["workflow"] for workflow in (await api.get("/api/workflows"))["workflows"]] == ["nightly"]
    assert (await api.get("/api/workflows?project=other"))["workflows"] == []
    run = await api.post("/api/runs", {"workflow": "nightly", "run": "r"})
    assert run["tokens"]["limit"] == 9000
    await api.put("/api/workflows/nightly", {"steps": [{"id": "only"}]})
    assert len((await api.get("/api/workflows/nightly"))["steps"]) == 1
    assert (await api.delete("/api/workflows/nightly"))["deleted"] is True
    assert (await api.refused("GET", "/api/workflows/nightly"))[0] == 404
    assert (await api.refused("DELETE", "/api/workflows/nightly"))[0] == 404


async def test_invalid_declaration_is_refused_and_not_stored(api: Api) -> None:
    nested: dict[str, Any] = {"id": "deep"}
    for level in range(40):
        nested = {"id": f"g{level}", "steps": [nested]}
    for name, body in (
        ("w", {"steps": [{"id": "a"}, {"id": "a"}]}),
        ("w", {"steps": [{"id": "g", "steps": [{"id": "a"}]}, {"id": "a"}]}),
        ("w", {"steps": [nested]}),
        ("w", {"mode": "maybe"}),
        ("w", {"budget": {"tokens": -1}}),
        ("w", {"steps": [{"id": "a b"}]}),
        ("a b", {"steps": []}),
    ):
        assert (await api.refused("PUT", f"/api/workflows/{name}", body))[0] == 400, body
    assert (await api.get("/api/workflows"))["workflows"] == []


async def test_validation_errors_name_the_field_and_what_is_expected(api: Api) -> None:
    name = "must be 1 to 128 letters, digits and . _ : @ / -, without . or .. alone between slashes"
    for method, path, body, message in (
        ("POST", "/api/classify", {"steps": []}, "steps: must have 1 or more items."),
        ("POST", "/api/classify", {"workflow": "w"}, "prompt: is missing."),
        ("POST", "/api/classify", {"steps": {}}, "steps: must be a list."),
        ("PUT", "/api/workflows/w", {"budget": "x"}, "budget: must be an object."),
        ("PUT", "/api/workflows/w", {"budget": -1}, "budget.tokens: Input should be greater than or equal to 0."),
        ("PUT", "/api/workflows/a b", {"steps": []}, f"workflow: {name}."),
        ("PUT", "/api/workflows/w", {"x-y": 1}, "x-y: is not a field."),
        (
            "POST",
            "/api/allocate",
            {"steps": [{"id": "a", "intent": "sing"}]},
            "steps.0.intent: Input should be 'extract', 'summarize', 'generate', 'validate', 'send', 'transform',"
            " 'conditional', 'aggregate', 'filter' or 'enrich'.",
        ),
    ):
        status, error = await api.refused(method, path, body)
        assert (status, error["message"]) == (400, message)


async def test_duplicate_step_ids_are_refused_by_every_endpoint(api: Api) -> None:
    twice = [{"id": "a"}, {"id": "g", "steps": [{"id": "a"}]}]
    for method, path, body in (
        ("PUT", "/api/workflows/w", {}),
        ("POST", "/api/runs", {"workflow": "w", "run": "twice"}),
        ("POST", "/api/allocate", {}),
    ):
        status, error = await api.refused(method, path, {**body, "steps": twice})
        assert (status, error["param"]) == (400, "steps")
        assert "two steps have the id 'a'" in error["message"]
    assert (await api.refused("GET", "/api/runs/twice"))[0] == 404


async def test_classify_takes_one_step_or_several(api: Api) -> None:
    step = {"workflow": "w", "step": "summarize_thread", "prompt": "Summarize the following thread in three sentences."}
    single = await api.post("/api/classify", step)
    french = {"prompt": "Translate this to French: hello", "response_format": {"seed": 2**64}}
    many = await api.post("/api/classify", {"steps": [step, french]})
    assert single["classifications"] == many["classifications"][:1]
    assert [classification["intent"] for classification in many["classifications"]] == ["summarize", "transform"]
    for classification in many["classifications"]:
        assert classification.keys() == {"intent", "confidence", "source", "reasoning", "alternatives"}
        assert 0 < classification["confidence"] <= 1
    await api.put("/api/workflows/w", {"steps": [{"id": "summarize_thread", "intent": "filter"}]})
    assert (await api.post("/api/classify", step))["classifications"][0]["source"] == "declared"
    bodies: tuple[dict[str, Any], ...] = ({}, {"steps": []}, {"steps": [{}]}, {"prompt": 5})
    for body in bodies:
        assert (await api.refused("POST", "/api/classify", body))[0] == 400, body


async def test_allocate_tries_each_strategy_without_creating_a_run(api: Api) -> None:
    steps = [{"id": "a", "intent": "extract"}, {"id": "b", "intent": "generate", "priority": "critical"}]
    for strategy in ("equal", "proportional", "adaptive", "priority"):
        plan = await api.post("/api/allocate", {"strategy": strategy, "tokens": 2000, "ais": 0, "steps": steps})
        assert plan["strategy"] == strategy
        assert plan["pool_tokens"] == 2000
        assert sum(allocation["tokens"] for allocation in plan["allocations"]) == 2000
        assert [allocation["step"] for allocation in plan["allocations"]] == ["a", "b"]
        assert all(
            allocation["hard_limit_tokens"] >= allocation["tokens"] and allocation["reason"]
            for allocation in plan["allocations"]
        )
    bodies: tuple[dict[str, Any], ...] = (
        {"steps": []},
        {"strategy": "best", "steps": steps},
        {"ais": 11, "steps": steps},
    )
    for body in bodies:
        assert (await api.refused("POST", "/api/allocate", body))[0] == 400, body
    assert (await api.get("/api/runs"))["runs"] == []


async def test_requests_with_300_steps_do_not_block_the_event_loop(api: Api) -> None:
    turns, done = 0, False

    async def take_turns() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(take_turns())
    for path in ("classify", "allocate", "runs"):
        turns = 0
        steps = [{"id": f"s{number}", "prompt": f"Summarize {path} {number}."} for number in range(300)]
        asked = [{"prompt": step["prompt"]} for step in steps] if path == "classify" else steps
        await api.post(f"/api/{path}", {"steps": asked} | ({"workflow": "w"} if path == "runs" else {}))
        assert turns >= 300, path
    done = True
    await others


async def test_intensity_of_an_unknown_agent_is_neutral_until_set(api: Api) -> None:
    unknown = await api.get("/api/agents/ada/intensity")
    assert (unknown["combined"], unknown["source"], unknown["history"]) == (5.0, "unknown", [])
    score = await api.put("/api/agents/ada/intensity", {"creation": 2, "execution": 8})
    assert (score["creation"], score["execution"], score["source"]) == (2.0, 8.0, "set")
    assert score["combined"] == 6.2
    again = await api.put("/api/agents/ada/intensity", {"execution": 4})
    assert (again["creation"], again["execution"], len(again["history"])) == (2.0, 4.0, 2)
    assert [agent["agent"] for agent in (await api.get("/api/agents"))["agents"]] == ["ada"]
    for body in ({}, {"creation": 11}, {"creation": -1}, {"combined": 5}):
        assert (await api.refused("PUT", "/api/agents/ada/intensity", body))[0] == 400, body


async def test_every_change_is_audited(api: Api) -> None:
    await api.put(f"/api/settings/{STEP}", {"value": 5000})
    await api.put("/api/workflows/w", {"steps": []})
    budget = await api.post("/api/budgets", {"scope": "run", "tokens": 5000})
    await api.delete(f"/api/budgets/{budget['id']}")
    await api.post("/api/runs", {"workflow": "w", "run": "r"})
    for action in ("pause", "resume", "reset", "complete"):
        await api.post(f"/api/runs/r/{action}")
    await api.put("/api/agents/ada/intensity", {"creation": 1})
    await api.delete("/api/workflows/w")
    # The gateway's own decisions are audited too, under another actor.
    events = (await api.get("/api/audit?actor=local"))["events"]
    assert [event["action"] for event in reversed(events)] == [
        "setting.changed",
        "workflow.declared",
        "budget.created",
        "budget.deleted",
        "run.initialised",
        "run.paused",
        "run.resumed",
        "run.reset",
        "run.completed",
        "agent.intensity",
        "workflow.deleted",
    ]
    assert events[-1]["detail"] == {"old": 4000, "new": 5000}
    assert all(event["actor"] == "local" and event["at"] and event["request_id"] for event in events)
    assert len((await api.get("/api/audit?actor=local&action=run."))["events"]) == 5
    assert len((await api.get("/api/audit?run=r&action=run.paused"))["events"]) == 1
    page = await api.get("/api/audit?actor=local&limit=6")
    second_page = await api.get(f"/api/audit?actor=local&limit=6&cursor={page['next']}")
    assert [event["id"] for event in page["events"] + second_page["events"]] == [event["id"] for event in events]


async def test_doctor_reports_the_status_of_every_check(api: Api) -> None:
    report = await api.get("/api/doctor")
    by_check = {finding["check"]: finding for finding in report["findings"]}
    assert report["is_fit"] is True
    for check in (
        "versions",
        "ledger",
        "ledger clock",
        "outbox",
        "store",
        "store schema",
        "store permissions",
        "models",
    ):
        assert by_check[check]["status"] == "ok", by_check[check]
    assert by_check["ledger policy"]["status"] == "warn"  # the in-memory ledger persists nothing
    assert by_check["access"]["status"] == "warn"  # no key exists yet


async def test_reconcile_finds_and_repairs_drift(api: Api) -> None:
    await api.chat("r1")
    assert (await api.post("/api/reconcile"))["drifts"] == []
    parts = api.application.parts
    accounts = await run_accounts(parts.store, "default", 0)
    booked = (await parts.ledger.balances("default", ["run/r1"]))[0].settled
    more = replace(booked, tokens=booked.tokens + 7)
    assert isinstance(more, Amount)
    for account in accounts:
        await parts.ledger.restore("default", account, more, 10**9)
    report = await api.post("/api/reconcile", {"repair": True})
    assert [drift["difference"]["tokens"] for drift in report["drifts"]] == [7, 7]
    assert report["repaired"] == 1  # the entry of the step is also one of its run
    assert (await api.post("/api/reconcile"))["drifts"] == []


async def test_unreachable_store_is_503_and_unexpected_error_is_500(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> None:
        raise StoreUnavailable("The store cannot be reached: connection refused")

    async def broken(*_: Any) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(workflows_store, "list_all", away)
    reply = await api.ask("GET", "/api/workflows")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
    assert reply.headers["retry-after"] == "1"
    monkeypatch.setattr(workflows_store, "list_all", broken)
    status, error = await api.refused("GET", "/api/workflows")
    assert (status, error["code"]) == (500, "internal_error")
    assert "secret" not in error["message"]


async def test_resource_as_shown_can_be_edited_and_put_back(api: Api) -> None:
    steps = [{"id": "draft", "description": "Write it.", "budget": 400}, {"id": "post", "prompt": "Post it."}]
    await api.put("/api/workflows/nightly", {"budget": {"usd": 0.5}, "on_pressure": [{"clamp": 0.5}], "steps": steps})
    created = await api.post(
        "/api/budgets", {"scope": "workflow", "match": "w", "tokens": 5, "usd": 0.1, "window": "day"}
    )
    for path, change, named in (
        ("workflows/nightly", {"mode": "observe"}, ("workflow", "project")),
        (f"budgets/{created['id']}", {"tokens": 7}, ("id",)),
    ):
        shown = await api.get(f"/api/{path}")
        put = await api.put(f"/api/{path}", {**shown, **change})
        volatile = {"updated_at": None, "accounts": None}
        assert {**put, **volatile} == {**shown, **change, **volatile}
        for name in named:
            status, error = await api.refused("PUT", f"/api/{path}", {**shown, name: "other"})
            assert (status, error["param"]) == (400, name)
