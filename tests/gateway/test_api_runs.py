"""Runs through the control API: announced, called, paused, ended and reset. Calls are real, through the mock model."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.bookkeeping import reconcile
from gateway.store import runs as runs_store
from policies.amounts import ZERO, Amount
from policies.reservation import Demand, Gate, Hold, Reserve
from tests.api_client import Api

pytest_plugins = ("tests.api_fixtures",)

STEPS = [
    {"id": "extract", "prompt": "Extract the invoice numbers from the attached mails."},
    {
        "id": "both",
        "steps": [{"id": "draft", "intent": "generate", "priority": "high"}, {"id": "check", "intent": "validate"}],
    },
]
PLANNED = {"workflow": "nightly", "run": "r1", "agent": "ada", "budget_tokens": 4000, "steps": STEPS}


async def ledger_matches_store(api: Api) -> bool:
    """Whether ledger and store agree on every run and step."""
    parts = api.application.parts

    async def flush() -> bool:
        return await parts.flusher.drain(5_000)

    await flush()
    accounts = await reconcile.run_accounts(parts.store, "default", 0)
    reconciliation = await reconcile.reconcile(parts.ledger, parts.store, "default", accounts, flush)
    return not reconciliation.drifts and not reconciliation.moving and reconciliation.checked > 0


async def test_announced_run_lists_nested_steps_flattened(api: Api) -> None:
    run = await api.post("/api/runs", PLANNED)
    assert (run["run"], run["workflow"], run["agent"], run["state"]) == ("r1", "nightly", "ada", "active")
    assert [step["step"] for step in run["steps"]] == ["extract", "draft", "check"]
    assert [step["intent"] for step in run["steps"]] == ["extract", "generate", "validate"]
    assert run["tokens"] == {"limit": 4000, "settled": 0, "reserved": 0, "remaining": 4000, "overrun": 0, "saved": 0}
    assert run["cost_usd"]["limit"] == 0.5  # the budget in the configuration still limits the money
    assert sum(step["allocation_tokens"] for step in run["steps"]) == run["pool_tokens"] <= 4000
    assert all(step["tier"] in ("fast", "balanced", "powerful") for step in run["steps"])
    assert all(step["tokens"]["limit"] == step["hard_limit_tokens"] for step in run["steps"])


async def test_run_belongs_to_the_first_workflow_that_names_it(api: Api) -> None:
    announced = await api.post("/api/runs", {"workflow": "nightly", "run": "i1", "budget_tokens": 4000})
    status, error = await api.refused("POST", "/api/runs", {"workflow": "other", "run": "i1", "budget_tokens": 9})
    assert (status, error["code"]) == (409, "run_of_other_workflow")
    assert error["message"] == "Run 'i1' is one of workflow 'nightly': choose another id."
    assert await api.get("/api/runs/i1") == announced
    # A call may name it under another workflow: it is still the same run and spends from it.
    reply = await api.chat("i1", **{"x-workflow-id": "other"})
    run = await api.get("/api/runs/i1")
    assert (reply.status_code, run["workflow"], run["calls"]) == (200, "nightly", 1)
    # A run that calls created belongs to their workflow, too.
    await api.chat("called")
    assert (await api.refused("POST", "/api/runs", {"workflow": "other", "run": "called"}))[0] == 409
    assert (await api.post("/api/runs", {"workflow": "nightly", "run": "called"}))["calls"] == 1


async def test_announced_budget_refuses_calls(api: Api) -> None:
    await api.post("/api/runs", {"workflow": "nightly", "run": "tight", "budget_tokens": 12})
    assert (await api.chat("tight")).status_code == 402
    run = await api.get("/api/runs/tight")
    assert (run["calls"], run["refused"], run["tokens"]["settled"]) == (0, 1, 0)


async def test_call_is_shown_at_once_in_run_list_and_call_list(api: Api) -> None:
    reply = await api.chat("seen", "draft")
    used = reply.json()["usage"]["total_tokens"]
    run = await api.get("/api/runs/seen")
    assert (run["tokens"]["settled"], run["calls"], run["requests"]["settled"]) == (used, 1, 1)
    assert run["tokens"]["remaining"] == 20_000 - used
    assert run["cost_usd"]["settled"] == pytest.approx(7e-6 + 3 * 4e-6, abs=1e-4)
    assert run["steps"][0]["step"] == "draft"
    assert run["steps"][0]["tokens"]["settled"] == used
    assert run["metrics"]["total_tokens"] == used
    listed = await api.get("/api/runs")
    assert [(run["run"], run["tokens"]["settled"]) for run in listed["runs"]] == [("seen", used)]
    calls = await api.get("/api/runs/seen/calls")
    assert [(call["total_tokens"], call["status"], call["model"]) for call in calls["calls"]] == [(used, "ok", "mock")]


STEERED = (
    # actions in order, the state after them, and the status and code of a call
    (("pause",), "paused", 402, "run_paused"),
    (("pause", "pause"), "paused", 402, "run_paused"),
    (("pause", "resume"), "active", 200, None),
    (("resume",), "active", 200, None),
    (("cancel",), "cancelled", 402, "run_cancelled"),
    (("pause", "cancel", "cancel"), "cancelled", 402, "run_cancelled"),
    (("complete",), "completed", 402, "run_completed"),
    (("complete", "complete"), "completed", 402, "run_completed"),
)


async def test_pause_resume_cancel_and_complete_set_state_and_answer_calls_accordingly(api: Api) -> None:
    for number, (actions, state, status, code) in enumerate(STEERED):
        run = f"r{number}"
        await api.chat(run)
        for action in actions:
            shown = await api.post(f"/api/runs/{run}/{action}")
        assert shown["state"] == state, actions
        assert (await api.get(f"/api/runs/{run}"))["state"] == state, actions
        reply = await api.chat(run)
        assert reply.status_code == status, actions
        assert code is None or reply.json()["error"]["code"] == code, actions


async def test_ended_run_refuses_every_other_action(api: Api) -> None:
    for end in ("cancel", "complete"):
        await api.chat(end)
        ended = await api.post(f"/api/runs/{end}/{end}")
        for action in {"pause", "resume", "cancel", "complete", "reset", "budget"} - {end}:
            body = {"tokens": 5} if action == "budget" else None
            status, error = await api.refused("POST", f"/api/runs/{end}/{action}", body)
            assert (status, error["code"]) == (409, f"run_{ended['state']}"), action
        assert (await api.get(f"/api/runs/{end}"))["state"] == ended["state"]


async def test_completing_a_run_returns_its_metrics(api: Api) -> None:
    await api.post("/api/runs", PLANNED)
    used = (await api.chat("r1", "extract")).json()["usage"]
    metrics = (await api.post("/api/runs/r1/complete"))["metrics"]
    assert metrics["total_tokens"] == used["total_tokens"]
    assert (metrics["input_tokens"], metrics["output_tokens"]) == (used["prompt_tokens"], used["completion_tokens"])
    assert metrics["calls"] == 1
    assert metrics["budget_used"] == pytest.approx(used["total_tokens"] / 4000, abs=1e-4)
    assert metrics["allocated_tokens"] == sum(
        step["allocation_tokens"] for step in (await api.get("/api/runs/r1"))["steps"]
    )


async def test_ending_interrupted_after_the_gate_is_finished_by_a_retry(api: Api) -> None:
    parts = api.application.parts
    for end, gate in (("complete", Gate.COMPLETED), ("cancel", Gate.CANCELLED)):
        await api.chat(end)
        await api.get(f"/api/runs/{end}")
        await parts.ledger.set_gate("default", f"run/{end}", gate)
        assert (await api.post(f"/api/runs/{end}/{end}"))["completed_at"] is not None
        stored = await runs_store.get(parts.store, "default", end)
        assert stored is not None
        assert (stored.state, bool(stored.metrics)) == (gate.value, end == "complete")


async def test_reannounced_run_has_the_new_steps_and_those_with_calls(api: Api) -> None:
    await api.post("/api/runs", PLANNED)
    await api.chat("r1", "draft")
    assert [step["calls"] for step in (await api.get("/api/runs/r1"))["steps"]] == [0, 1, 0]
    run = await api.post("/api/runs", {**PLANNED, "steps": [{"id": "send", "intent": "send"}, STEPS[0]]})
    planned = {step["step"]: step["allocation_tokens"] for step in run["steps"]}
    assert list(planned) == ["send", "extract", "draft"], "`draft` has a call, `check` has none"
    assert planned["draft"] is None
    assert run["metrics"]["allocated_tokens"] == planned["send"] + planned["extract"] == run["pool_tokens"]
    assert run["steps"][2]["calls"] == 1


@pytest.mark.parametrize("is_other_process", [False, True])
async def test_reannounced_run_keeps_omitted_fields(api: Api, is_other_process: bool) -> None:
    await api.put("/api/settings/orchestration_enabled", {"value": True})
    await api.post("/api/runs", {"workflow": "nightly", "run": "whole", "budget_tokens": 9000})
    announced = {**PLANNED, "agent": "a-7", "user": "u-3", "parent_run": "whole", "budget_usd": 2.5}
    first = await api.post("/api/runs", announced)
    await api.chat("r1", "draft")
    again = await api.post("/api/runs", {"workflow": "nightly", "run": "r1"})
    assert [_shares(step) for step in again["steps"]] == [_shares(step) for step in first["steps"]]
    assert [step["calls"] for step in (await api.get("/api/runs/r1"))["steps"]] == [0, 1, 0]
    omitted = ("agent", "user", "parent_run", "pool_tokens", "strategy")
    assert [again[name] for name in omitted] == [first[name] for name in omitted]
    assert again["cost_usd"]["limit"] == 2.5
    if is_other_process:  # simulates a process that did not announce the run
        api.application.parts.orchestration.plans.forget()
    reply = await api.chat("r1", "extract")
    assert reply.headers["x-budget-step-limit"] == str(first["steps"][0]["hard_limit_tokens"])


async def test_reannouncing_budget_or_strategy_reallocates_the_kept_steps(api: Api) -> None:
    first = await api.post("/api/runs", PLANNED)
    names = [step["step"] for step in first["steps"]]
    smaller = await api.post("/api/runs", {"workflow": "nightly", "run": "r1", "budget_tokens": 900})
    assert [step["step"] for step in smaller["steps"]] == names
    assert smaller["pool_tokens"] == sum(step["allocation_tokens"] for step in smaller["steps"]) <= 900
    equal = await api.post("/api/runs", {"workflow": "nightly", "run": "r1", "strategy": "equal"})
    assert equal["strategy"] == "equal"
    assert {step["allocation_tokens"] for step in equal["steps"]} == {300}
    assert equal["tokens"]["limit"] == 900
    others = await api.post("/api/runs", {"workflow": "nightly", "run": "r1", "steps": [{"id": "a"}, {"id": "b"}]})
    assert others["strategy"] == "equal"
    assert {step["allocation_tokens"] for step in others["steps"]} == {450}


async def test_announcing_an_empty_step_list_takes_the_steps_of_the_declaration(api: Api) -> None:
    await api.post("/api/runs", PLANNED)
    run = await api.post("/api/runs", {"workflow": "nightly", "run": "r1", "steps": []})
    assert run["steps"] == []
    await api.put("/api/workflows/nightly", {"steps": [{"id": "post", "intent": "send"}]})
    run = await api.post("/api/runs", {"workflow": "nightly", "run": "r1", "steps": []})
    assert [step["step"] for step in run["steps"]] == ["post"]


def _shares(step: dict[str, Any]) -> list[Any]:
    return [step[name] for name in ("step", "intent", "tier", "allocation_tokens", "hard_limit_tokens")]


async def test_run_budget_can_be_raised_and_cleared(api: Api) -> None:
    await api.post("/api/runs", {"workflow": "nightly", "run": "r1", "budget_tokens": 12})
    assert (await api.chat("r1")).status_code == 402
    assert (await api.post("/api/runs/r1/budget", {"tokens": 30_000}))["tokens"]["limit"] == 30_000
    reply = await api.chat("r1")
    assert reply.status_code == 200
    assert reply.headers["x-budget-run-limit"] == "30000"
    run = await api.post("/api/runs/r1/budget", {"usd": 2.5, "requests": 3})
    assert (run["tokens"]["limit"], run["cost_usd"]["limit"], run["requests"]["limit"]) == (30_000, 2.5, 3)
    named = {"budget_tokens": 31_000, "budget_usd": 2, "budget_requests": 4}
    run = await api.post("/api/runs/r1/budget", named)
    assert (run["tokens"]["limit"], run["cost_usd"]["limit"], run["requests"]["limit"]) == (31_000, 2, 4)
    run = await api.post("/api/runs/r1/budget", {"requests": 3})
    run = await api.post("/api/runs/r1/budget", {"tokens": None})
    assert (run["tokens"]["limit"], run["requests"]["limit"]) == (20_000, 3)


async def test_run_with_nothing_remaining_is_exhausted_and_listed_as_such(api: Api) -> None:
    used = (await api.chat("r1")).json()["usage"]["total_tokens"]
    assert (await api.post("/api/runs/r1/budget", {"tokens": used}))["state"] == "exhausted"
    await api.chat("r2")
    for state, runs in (("exhausted", ["r1"]), ("active", ["r2"]), ("paused", [])):
        listed = await api.get("/api/runs", params={"state": state})
        assert [run["run"] for run in listed["runs"]] == runs, state


async def test_run_tightened_by_a_call_shows_the_smaller_limit(api: Api) -> None:
    reply = await api.chat("r1", **{"x-workflow-budget-tokens": "500"})
    assert reply.headers["x-budget-run-limit"] == "500"
    assert (await api.get("/api/runs/r1"))["tokens"]["limit"] == 500


async def test_step_limit_is_shown_as_at_most_the_limit_of_its_run(api: Api) -> None:
    await api.put("/api/settings/orchestration_enabled", {"value": True})
    steps = [{"id": "draft", "intent": "generate"}, {"id": "check", "intent": "validate"}]
    await api.post("/api/runs", {"workflow": "nightly", "run": "r1", "steps": steps})
    assert int((await api.chat("r1")).headers["x-budget-step-limit"]) > 500
    reply = await api.chat("r1", **{"x-workflow-budget-tokens": "500"})
    assert reply.headers["x-budget-step-limit"] == reply.headers["x-budget-run-limit"] == "500"
    run = await api.get("/api/runs/r1")
    assert [step["tokens"]["limit"] for step in run["steps"]] == [500, 500]
    draft = next(step["tokens"] for step in run["steps"] if step["step"] == "draft")
    assert draft["remaining"] == 500 - draft["settled"] == int(reply.headers["x-budget-step-remaining"])
    assert all(step["hard_limit_tokens"] > 500 for step in run["steps"])


async def test_reset_clears_the_run_and_keeps_usage_totals(api: Api) -> None:
    for step in ("draft", "check", "draft"):
        await api.chat("r1", step)
    totals = await api.get("/api/usage", params={"group_by": "workflow"})
    answer = await api.post("/api/runs/r1/reset")
    assert answer["summary"]["tokens"]["settled"] == totals["total"]["total_tokens"] > 0
    run = answer["run"]
    assert answer["summary"]["state"] == run["state"] == "active"
    assert run["tokens"]["settled"] == run["requests"]["settled"] == run["cost_usd"]["settled"] == 0
    assert [step["tokens"]["settled"] for step in run["steps"]] == [0, 0]
    assert await ledger_matches_store(api)
    for group in ("workflow", "step"):
        after = await api.get("/api/usage", params={"group_by": group})
        assert after["total"]["total_tokens"] == totals["total"]["total_tokens"]
        assert after["total"]["cost_usd"] == totals["total"]["cost_usd"]
    assert (await api.chat("r1")).status_code == 200
    assert await ledger_matches_store(api)


async def test_reset_clears_the_overrun_and_savings_of_a_run_and_keeps_their_totals(api: Api) -> None:
    ledger = api.application.parts.ledger
    names = b'{"workflow": "nightly", "run": "r1", "step": "draft"}'
    holds = (Hold("step/r1/draft"), Hold("run/r1"))
    await ledger.reserve("default", Reserve("x", "me", holds, Demand(10, 0, 0), 60_000, names))
    await ledger.settle("default", "x", Amount(50, 300, 1), b'{"saved_tokens": 7, "saved_nano_usd": 70}')
    answer = await api.post("/api/runs/r1/reset")
    before, run = answer["summary"], answer["run"]
    assert (before["tokens"]["overrun"], before["tokens"]["saved"], before["cost_usd"]["overrun"]) == (40, 7, 3e-07)
    for shown in (run, run["steps"][0]):
        assert {shown["tokens"][name] for name in ("settled", "overrun", "saved")} == {0}
        assert {shown["cost_usd"][name] for name in ("settled", "overrun", "saved")} == {0}
        assert shown["calls"] == 1, "what happened is still known"
    assert run["metrics"]["saved_share"] == run["metrics"]["overrun_tokens"] == 0
    total = (await api.get("/api/usage", params={"group_by": "workflow"}))["total"]
    assert (total["overrun_tokens"], total["saved_tokens"], total["total_tokens"]) == (40, 7, 50)
    assert await ledger_matches_store(api)


async def test_reset_leaves_a_run_stopped_that_the_loop_breaker_stopped(api: Api) -> None:
    await api.chat("r1")
    ledger = api.application.parts.ledger
    await ledger.set_gate("default", "run/r1", Gate.LOOPING)
    answer = await api.post("/api/runs/r1/reset")
    assert (answer["run"]["state"], answer["run"]["state_reason"]) == ("paused", "loop_detected")
    assert answer["run"]["tokens"]["settled"] == 0
    assert (await api.chat("r1")).json()["error"]["code"] == "loop_detected"
    assert (await api.post("/api/runs/r1/resume"))["state"] == "active"


@pytest.mark.parametrize(("mode", "status"), [("enforce", 402), ("observe", 200)])
async def test_declared_budget_of_the_parent_workflow_limits_child_runs(api: Api, mode: str, status: int) -> None:
    await api.put("/api/workflows/elder", {"budget_tokens": 150, "mode": mode, "steps": []})
    assert (await api.chat("above", workflow="elder", body={"max_tokens": 20})).status_code == 200
    inside: dict[str, Any] = {
        "x-workflow-parent-run-id": "above",
        "x-workflow-options": "no-clamp",
        "body": {"max_tokens": 100},
    }
    replies = [await api.chat(f"inside-{number}", workflow="younger", **inside) for number in range(9)]
    assert replies[-1].status_code == status
    if status == 402:
        facts = replies[-1].json()["error"]["metadata"]
        assert (facts["scope_id"], facts["limit"]) == ("above", 150)


@pytest.mark.parametrize(("enabled", "is_other_process"), [(False, False), (True, False), (True, True)])
async def test_announced_child_run_spends_from_its_parent(api: Api, enabled: bool, is_other_process: bool) -> None:
    await api.put("/api/settings/orchestration_enabled", {"value": enabled})
    await api.post("/api/runs", {"workflow": "elder", "run": "above"})
    await api.post("/api/runs", {"workflow": "younger", "run": "inside", "parent_run": "above"})
    if is_other_process:  # simulates a process that did not announce the run
        api.application.parts.orchestration.plans.forget()
        api.application.parts.runs._parent_of.clear()
    used = (await api.chat("inside", workflow="younger")).json()["usage"]["total_tokens"]
    assert (await api.get("/api/runs/above"))["tokens"]["settled"] == used
    assert await ledger_matches_store(api)


async def test_nested_runs_cannot_be_reset(api: Api) -> None:
    await api.chat("outer")
    await api.chat("inner", **{"x-workflow-parent-run-id": "outer"})
    for run in ("inner", "outer"):
        assert (await api.refused("POST", f"/api/runs/{run}/reset"))[1]["code"] == "run_nested"


async def test_run_with_a_call_in_flight_cannot_be_reset_and_stays_open(api: Api) -> None:
    await api.chat("r1")
    ledger = api.application.parts.ledger
    await ledger.reserve("default", Reserve("x", "me", (Hold("run/r1"),), Demand(10, 0, 0), 60_000, b"{}"))
    assert (await api.refused("POST", "/api/runs/r1/reset"))[1]["code"] == "run_busy"
    assert (await api.get("/api/runs/r1"))["tokens"]["reserved"] == 10
    assert (await api.chat("r1")).status_code == 200  # the gate was reopened
    await ledger.void("default", "x")
    assert (await ledger.balances("default", ["run/r1"]))[0].reserved == ZERO


UNKNOWN = [("GET", ""), ("GET", "/calls")]
UNKNOWN += [("POST", f"/{action}") for action in ("pause", "resume", "reset", "complete", "cancel", "budget")]


async def test_unknown_run_is_404_for_every_action(api: Api) -> None:
    for method, action in UNKNOWN:
        body = {"tokens": 5} if action == "/budget" else None
        status, error = await api.refused(method, f"/api/runs/nobody{action}", body)
        assert (status, error["code"]) == (404, "run_not_found"), action


async def test_run_without_calls_has_an_empty_call_list(api: Api) -> None:
    await api.post("/api/runs", {"workflow": "w", "run": "quiet"})
    assert await api.get("/api/runs/quiet/calls") == {"calls": [], "next": None}
    assert (await api.refused("GET", "/api/runs/quiet/calls?project=other"))[0] == 404


BAD_BODIES: list[tuple[dict[str, Any], str]] = [
    ({}, "workflow"),
    ({"workflow": "a b"}, "workflow"),
    ({"workflow": "w", "run": ".."}, "run"),
    ({"workflow": "w", "parent_run": "a/../b"}, "parent_run"),
    ({"workflow": "w", "budget_tokens": -1}, "budget_tokens"),
    ({"workflow": "w", "budget_tokens": "5"}, "budget_tokens"),
    ({"workflow": "w", "budget_tokens": 2**53}, "budget_tokens"),
    ({"workflow": "w", "budget_usd": -0.1}, "budget_usd"),
    ({"workflow": "w", "budget_usd": True}, "budget_usd"),
    ({"workflow": "w", "strategy": "best"}, "strategy"),
    ({"workflow": "w", "steps": [{"prompt": "x"}]}, "steps.0.id"),
    ({"workflow": "w", "steps": [{"id": "a", "intent": "invent"}]}, "steps.0.intent"),
    ({"workflow": "w", "steps": [{"id": "a", "priority": "urgent"}]}, "steps.0.priority"),
    ({"workflow": "w", "surprise": 1}, "surprise"),
]


async def test_invalid_announcement_is_refused_naming_the_field(api: Api) -> None:
    for body, param in BAD_BODIES:
        status, error = await api.refused("POST", "/api/runs", body)
        assert (status, error["param"]) == (400, param), body
    assert (await api.get("/api/runs"))["runs"] == []


async def test_run_list_pages_contain_each_run_once(api: Api) -> None:
    for number in range(5):
        await api.post("/api/runs", {"workflow": "w", "run": f"r{number}"})
    listed: list[str] = []
    cursor = None
    for _ in range(5):
        page = await api.get("/api/runs", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        listed += [run["run"] for run in page["runs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(listed) == [f"r{number}" for number in range(5)]
    assert len(listed) == 5


async def test_run_view_shows_the_same_limits_as_the_answer_headers(api: Api) -> None:
    await api.put(
        "/api/workflows/nightly", {"budget": 9000, "steps": [{"id": "draft", "budget": 400}, {"id": "check"}]}
    )
    for enabled in (False, True):
        await api.put("/api/settings/orchestration_enabled", {"value": enabled})
        for workflow, step in (("nightly", "draft"), ("nightly", "check"), ("nightly", "surprise"), ("other", "draft")):
            run = f"{workflow}-{step}-{enabled}"
            headers = (await api.chat(run, step, workflow)).headers
            shown = await api.get(f"/api/runs/{run}")
            limits = {step["step"]: step["tokens"]["limit"] for step in shown["steps"]}
            assert str(shown["tokens"]["limit"]) == headers["x-budget-run-limit"], run
            assert (limits[step] or shown["tokens"]["limit"]) == int(headers["x-budget-step-limit"]), run


async def test_run_ids_may_contain_slashes(api: Api) -> None:
    await api.chat("2026/11/22:a")
    assert (await api.get("/api/runs/2026/11/22:a"))["calls"] == 1
    assert (await api.post("/api/runs/2026/11/22:a/pause"))["state"] == "paused"


async def test_same_run_id_in_two_projects_is_two_runs(api: Api) -> None:
    await api.chat("r1")
    assert (await api.refused("GET", "/api/runs/r1?project=other"))[0] == 404
    await api.post("/api/runs?project=other", {"workflow": "w", "run": "r1", "budget_tokens": 7})
    assert (await api.get("/api/runs/r1?project=other"))["workflow"] == "w"
    assert (await api.get("/api/runs/r1"))["workflow"] == "nightly"


async def test_run_announced_without_steps_takes_those_of_the_declaration(api: Api) -> None:
    await api.put(
        "/api/workflows/nightly",
        {"steps": [{"id": "a", "intent": "filter", "budget": 300}, {"id": "b", "prompt": "Summarize the thread."}]},
    )
    run = await api.post("/api/runs", {"workflow": "nightly", "run": "r1"})
    assert [(step["step"], step["intent"]) for step in run["steps"]] == [("a", "filter"), ("b", "summarize")]
    assert run["steps"][0]["allocation_tokens"] == 300
