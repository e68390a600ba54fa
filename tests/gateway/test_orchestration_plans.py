"""Plans of runs: announced, declared, learned or made as steps appear; and how unused allocations are passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.reservation import Demand, Granted, Hold, OnLost, Reserve
from tests.gateway.orchestrated import Orchestrated, orchestrated, words

STEPS: list[dict[str, Any]] = [
    {"id": "read", "prompt": "Extract the invoice numbers from the attached mails.", "priority": "low"},
    {
        "id": "both",
        "kind": "parallel",
        "priority": "high",
        "steps": [
            {"id": "draft", "intent": "generate"},
            {"id": "check", "intent": "validate", "budget": {"tokens": 700}},
        ],
    },
    {"id": "post", "description": "Send the finished letter to the customer.", "intent": "send"},
]
TWO_STEPS = [{"id": "a", "intent": "generate"}, {"id": "b", "intent": "generate"}]
NAMES = ("read", "draft", "check", "post")
STRATEGIES = ("equal", "proportional", "adaptive", "priority")


def shares(steps: dict[str, Any]) -> dict[str, Any]:
    names = ("allocation_tokens", "hard_limit_tokens", "priority", "tier", "compression")
    return {name: tuple(step[key] for key in names) for name, step in steps.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_run_known_from_headers_gets_the_same_plan_as_an_announced_one(tmp_path: Path, strategy: str) -> None:
    async with orchestrated(tmp_path, budget_allocation_strategy=strategy, max_tokens_per_workflow=4000) as farebox:
        await farebox.declare("letters", steps=STEPS)
        announced = await farebox.ask("POST", "/api/runs", {"workflow": "letters", "run": "announced"})
        assert announced["strategy"] == strategy
        assert sum(step["allocation_tokens"] for step in announced["steps"]) == announced["pool_tokens"] <= 4000
        limits = {}
        for run in ("announced", "headers"):
            for step in NAMES:
                reply = await farebox.call("letters", run, step)
                assert reply.status_code == 200
                limits[run, step] = reply.headers["x-budget-step-limit"], reply.headers["x-budget-run-limit"]
        assert all(limits["announced", step] == limits["headers", step] for step in NAMES)
        assert shares(await farebox.steps("announced")) == shares(await farebox.steps("headers"))


async def test_intent_and_priority_of_the_first_call_apply_to_a_grouped_step(tmp_path: Path) -> None:
    async with orchestrated(tmp_path, budget_allocation_strategy="priority") as farebox:
        await farebox.declare("w", steps=STEPS)
        await farebox.call("w", "r", "draft", intent="extract", priority="critical")
        draft = (await farebox.steps("r"))["draft"]
        assert (draft["intent"], draft["priority"]) == ("extract", "critical")
        assert "needs 1,000 (extract" in draft["reason"]


async def test_group_is_flattened_and_its_priority_inherited(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        await farebox.declare("letters", steps=STEPS)
        await farebox.call("letters", "r1", "read")
        steps = await farebox.steps("r1")
        assert tuple(steps) == NAMES
        assert [steps[name]["priority"] for name in NAMES] == ["low", "high", "high", "normal"]


async def test_declared_step_without_intent_is_classified_by_its_own_prompt(tmp_path: Path) -> None:
    """The intent of the step that calls first is not applied to the others."""
    async with orchestrated(tmp_path) as farebox:
        await farebox.declare("letters", steps=STEPS)
        await farebox.call("letters", "r1", "draft")
        steps = await farebox.steps("r1")
        assert steps["read"]["intent"] == "extract"
        assert steps["read"]["allocation_tokens"] == 1000  # 800 × 1.25
        assert steps["draft"]["allocation_tokens"] == 3125  # 2,500 × 1.25


async def test_calls_of_a_planned_step_get_its_declared_or_classified_intent(tmp_path: Path) -> None:
    """A declared intent beats the text of the call, and the prompt of the step beats a text without evidence."""
    prompt = "Summarize the following ticket in one sentence."
    steps = [{"id": "pick", "intent": "filter"}, {"id": "short", "prompt": prompt}, {"id": "clear", "prompt": prompt}]
    async with orchestrated(tmp_path) as farebox:
        await farebox.ask("POST", "/api/runs", {"workflow": "letters", "run": "announced", "steps": steps})
        await farebox.declare("declared", steps=steps)
        for workflow, run in (("letters", "announced"), ("declared", "called")):
            headers = [
                (await farebox.call(workflow, run, step, text, headers=tags)).headers["x-workflow-intent"].split("; ")
                for step, text, tags in (
                    ("pick", prompt, {}),
                    ("pick", prompt, {"intent": "send"}),
                    ("short", "Here it is.", {}),
                    ("clear", "Translate this sentence into French.", {}),
                )
            ]
            assert [(intent, source) for intent, _, source in headers] == [
                ("filter", "source=declared"),
                ("send", "source=header"),
                ("summarize", "source=model"),
                ("transform", "source=model"),
            ]
            call = {
                "model": "mock",
                "messages": [{"role": "user", "content": "Here it is."}],
                "tags": {"workflow": workflow, "run": run, "step": "short"},
            }
            explained = await farebox.ask("POST", "/api/explain", call)
            assert (explained["intent"]["intent"], explained["intent"]["source"]) == ("summarize", "model")


async def test_declared_step_budget_caps_the_allocation_without_raising_it(tmp_path: Path) -> None:
    steps = [
        {"id": "small", "intent": "generate", "budget": {"tokens": 200}},
        {"id": "large", "intent": "send", "budget": 3000},
    ]
    async with orchestrated(tmp_path) as farebox:
        await farebox.declare("capped", steps=steps)
        reply = await farebox.call("capped", "r1", "small", words(30), output_max=1000)
        assert reply.headers["x-budget-step-limit"] == "200"
        assert reply.headers["x-budget-actions"] == "clamp"
        planned = await farebox.steps("r1")
        assert (planned["small"]["allocation_tokens"], planned["small"]["hard_limit_tokens"]) == (200, 200)
        assert planned["large"]["allocation_tokens"] == 625  # 500 × 1.25, not 3,000


async def test_declared_step_budget_is_enforced_with_orchestration_off(tmp_path: Path) -> None:
    async with orchestrated(tmp_path, enabled=False) as farebox:
        await farebox.declare("capped", steps=[{"id": "small", "budget": {"tokens": 200, "requests": 1}}])
        reply = await farebox.call("capped", "r1", "small")
        assert reply.headers["x-budget-step-limit"] == "200"
        assert "x-workflow-intent" not in reply.headers
        assert (await farebox.call("capped", "r1", "small")).status_code == 402


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("step", ["read", "draft", "post"])
async def test_share_of_a_tight_run_does_not_refuse_the_first_call_of_a_step(
    tmp_path: Path, strategy: str, step: str
) -> None:
    async with orchestrated(tmp_path, budget_allocation_strategy=strategy, max_tokens_per_workflow=500) as farebox:
        await farebox.declare("letters", steps=[*STEPS, {"id": "last", "intent": "send"}])
        explained = await farebox.ask("POST", "/api/explain", first_call_of(step))
        first = await farebox.call("letters", "r1", step, words(300), output_max=20)
        assert (first.status_code, explained["verdict"]) == (200, "forward")
        limit = int(first.headers["x-budget-step-limit"])
        assert 300 < limit == (await farebox.steps("r1"))[step]["tokens"]["limit"] <= 500
        second = await farebox.call("letters", "r1", step, words(150))
        assert second.json()["error"]["metadata"]["scope"] == "step"
        too_large = await farebox.call("letters", "r1", "last", words(250))
        assert too_large.json()["error"]["metadata"]["scope"] == "run"


def first_call_of(step: str) -> dict[str, Any]:
    tags = {"workflow": "letters", "run": "r1", "step": step}
    return {"model": "mock", "messages": [{"role": "user", "content": words(300)}], "max_tokens": 20, "tags": tags}


OVERAGE = (
    # overage allowed, threshold, soft limit, hard limit
    (True, 1.2, 625, 750),
    (True, 2.0, 625, 1250),
    (False, 1.2, 625, 625),
)


@pytest.mark.parametrize(("allowed", "threshold", "soft", "hard"), OVERAGE)
async def test_overage_is_flagged_and_refused_at_the_hard_limit(
    tmp_path: Path, allowed: bool, threshold: float, soft: int, hard: int
) -> None:
    settings: dict[str, Any] = {"budget_overage_allowed": allowed, "budget_overage_threshold": threshold}
    async with orchestrated(tmp_path, **settings) as farebox:
        await farebox.declare("mails", steps=[{"id": "post", "intent": "send"}])
        first = await farebox.call("mails", "r1", "post", words(560))
        assert first.headers["x-budget-step-limit"] == str(hard)
        assert "x-budget-actions" not in first.headers
        second = await farebox.call("mails", "r1", "post", words(100))
        if not allowed:
            assert second.json()["error"]["code"] == "step_budget_exceeded"
            return
        assert second.headers["x-budget-actions"] == "overage"
        assert (await farebox.steps("r1"))["post"]["status"] == "over_soft"
        refused = await farebox.call("mails", "r1", "post", words(hard - 600))
        assert refused.status_code == 402
        facts = refused.json()["error"]["metadata"]
        assert (facts["scope"], facts["limit"]) == ("step", hard)
        assert facts["settled"] > soft


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_unused_allocation_of_a_completed_step_goes_to_later_steps(tmp_path: Path, strategy: str) -> None:
    async with orchestrated(tmp_path, budget_allocation_strategy=strategy, max_tokens_per_workflow=2000) as farebox:
        await farebox.declare("two", steps=TWO_STEPS)
        await farebox.call("two", "r1", "a", words(83))
        before = await farebox.steps("r1")
        assert {step["allocation_tokens"] for step in before.values()} == {1000}
        used = before["a"]["tokens"]["settled"]
        reply = await farebox.call("two", "r1", "b")
        assert reply.headers["x-budget-step-limit"] == "2000", "capped at the limit of the run"
        after = await farebox.steps("r1")
        assert after["b"]["hard_limit_tokens"] == int((2000 - used) * 1.2)
        assert after["b"]["allocation_tokens"] == 2000 - used
        assert "from completed steps" in after["b"]["reason"]


async def test_reloaded_plan_does_not_move_unused_allocation_twice(tmp_path: Path) -> None:
    """What was moved is stored with the run, and must not be moved again when it is read back."""
    async with orchestrated(tmp_path, max_tokens_per_workflow=2000) as farebox:
        await farebox.declare("two", steps=TWO_STEPS)
        await farebox.ask("POST", "/api/runs", {"workflow": "two", "run": "r1"})
        await farebox.call("two", "r1", "a", words(83))
        first = await farebox.call("two", "r1", "b")
        await farebox.orchestration.plans.flush()
        farebox.orchestration.plans.forget()
        again = await farebox.call("two", "r1", "b")
        assert again.headers["x-budget-step-limit"] == first.headers["x-budget-step-limit"]


async def test_steps_of_a_loop_complete_together(tmp_path: Path) -> None:
    loop = [
        {"id": "loop", "kind": "loop", "steps": TWO_STEPS},
        {"id": "end", "intent": "generate"},
    ]
    async with orchestrated(tmp_path, max_tokens_per_workflow=3000) as farebox:
        await farebox.declare("looped", steps=loop)
        limits = [
            int((await farebox.call("looped", "r1", step, words(60))).headers["x-budget-step-limit"])
            for step in ("a", "b", "a", "b", "end")
        ]
        assert limits[:4] == [1200] * 4  # steps in the loop do not take from each other
        assert limits[4] > 2 * 1200


async def test_step_with_a_pending_reservation_is_not_completed(tmp_path: Path) -> None:
    async with orchestrated(tmp_path, max_tokens_per_workflow=2000) as farebox:
        await farebox.declare("two", steps=TWO_STEPS)
        await farebox.call("two", "r1", "a")
        ledger = farebox.application.parts.ledger
        held = await hold_of(farebox, "r1", "a")
        reply = await farebox.call("two", "r1", "b")
        assert reply.headers["x-budget-step-limit"] == "1200"
        await ledger.void("default", held)


async def hold_of(farebox: Orchestrated, run: str, step: str) -> str:
    demand = Demand(10, 10, 10, 0, 0)
    request = Reserve(
        "held", "test", (Hold(f"step/{run}/{step}"), Hold(f"run/{run}")), demand, 60_000, b"{}", OnLost.RELEASE
    )
    assert isinstance(await farebox.application.parts.ledger.reserve("default", request), Granted)
    return "held"


async def test_strategy_of_a_workflow_beats_the_setting(tmp_path: Path) -> None:
    steps = [{"id": "a", "intent": "generate"}, {"id": "b", "intent": "send"}]
    async with orchestrated(tmp_path, max_tokens_per_workflow=1000) as farebox:
        await farebox.declare("even", steps=steps, strategy="equal")
        await farebox.declare("uneven", steps=steps)
        assert (await farebox.call("even", "r1", "a")).headers["x-budget-step-limit"] == "600"
        assert (await farebox.call("uneven", "r2", "a")).headers["x-budget-step-limit"] == "999"  # 833 × 1.2
        announced = await farebox.ask("POST", "/api/runs", {"workflow": "even", "run": "r3"})
        assert announced["strategy"] == "equal"


async def test_undeclared_steps_are_allocated_their_demand_as_they_appear(tmp_path: Path) -> None:
    async with orchestrated(tmp_path, max_tokens_per_workflow=1500) as farebox:
        first = await farebox.call("wild", "r1", "one", intent="extract")
        second = await farebox.call("wild", "r1", "two", words(400), intent="send")
        third = await farebox.call("wild", "r1", "three", intent="generate")
        limits = [int(reply.headers["x-budget-step-limit"]) for reply in (first, second, third)]
        assert limits[:2] == [1200, 750]  # 1,000 and 625, × 1.2
        steps = await farebox.steps("r1")
        assert all(step["allocation_tokens"] for step in steps.values())
        assert "not planned" in steps["one"]["reason"]
        used = sum(steps[name]["tokens"]["settled"] for name in ("one", "two"))
        assert limits[2] == int((1500 - used) * 1.2)


async def test_steps_are_learned_after_3_completed_runs(tmp_path: Path) -> None:
    async with orchestrated(tmp_path, max_tokens_per_workflow=1000) as farebox:
        for run in ("r1", "r2", "r3"):
            await farebox.call("habit", run, "a", intent="generate")
            await farebox.call("habit", run, "b", intent="generate")
            if run == "r1":
                await farebox.call("habit", run, "odd")
            await farebox.ask("POST", f"/api/runs/{run}/complete")
        farebox.orchestration.histories.forget()
        reply = await farebox.call("habit", "r4", "a")
        assert reply.headers["x-budget-step-limit"] == "600"
        steps = await farebox.steps("r4")
        assert {name: (step["intent"], step["allocation_tokens"]) for name, step in steps.items() if name != "a"} == {
            "b": ("generate", 500)
        }
        announced = await farebox.ask("POST", "/api/runs", {"workflow": "habit", "run": "r5"})
        assert [step["step"] for step in announced["steps"]] == ["a", "b"]


async def test_adaptive_strategy_uses_past_usage_or_that_of_similar_steps(tmp_path: Path) -> None:
    async with orchestrated(tmp_path, adaptive_budget_enabled=True, max_tokens_per_workflow=1000) as farebox:
        await farebox.declare("habit", steps=TWO_STEPS)
        for number in range(10):
            await farebox.call("habit", f"r{number}", "a", words(282))
            await farebox.call("habit", f"r{number}", "b", words(82))
            await farebox.ask("POST", f"/api/runs/r{number}/complete")
        farebox.orchestration.histories.forget()
        planned = (await farebox.ask("POST", "/api/runs", {"workflow": "habit", "run": "r10"}))["steps"]
        used = [(await farebox.steps("r9"))[name]["tokens"]["settled"] for name in ("a", "b")]
        first = planned[0]["allocation_tokens"]
        assert abs(first - 1000 * used[0] / sum(used)) <= 1
        assert "past runs" in planned[0]["reason"]
        own = await farebox.ask("POST", "/api/runs", {"workflow": "habit", "run": "r11", "strategy": "equal"})
        assert [step["allocation_tokens"] for step in own["steps"]] == [500, 500]
        # A new workflow with one run uses the history of steps with the same intent and model.
        await farebox.declare("young", steps=TWO_STEPS)
        for name in ("a", "b"):
            await farebox.call("young", "y1", name)
        await farebox.ask("POST", "/api/runs/y1/complete")
        farebox.orchestration.histories.forget()
        young = (await farebox.ask("POST", "/api/runs", {"workflow": "young", "run": "y2"}))["steps"]
        assert ["of its intent and model" in step["reason"] for step in young] == [True, True]


async def test_allocate_gives_the_same_plan_as_a_real_run(tmp_path: Path) -> None:
    async with orchestrated(tmp_path, max_tokens_per_workflow=4000) as farebox:
        real = await farebox.ask("POST", "/api/runs", {"workflow": "x", "run": "r1", "steps": STEPS})
        dry = await farebox.ask("POST", "/api/allocate", {"tokens": 4000, "steps": STEPS})
        assert [
            (allocation["step"], allocation["tokens"], allocation["hard_limit_tokens"])
            for allocation in dry["allocations"]
        ] == [(step["step"], step["allocation_tokens"], step["hard_limit_tokens"]) for step in real["steps"]]
        assert dry["pool_tokens"] == real["pool_tokens"]


async def test_completed_run_reports_intents_adherence_and_overhead(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        await farebox.declare("letters", steps=STEPS)
        await farebox.call("letters", "r1", "post", words(620))
        await farebox.call("letters", "r1", "post", words(30))
        await farebox.call("letters", "r1", "read")
        await farebox.run("r1")  # flushes the allocations
        metrics = (await farebox.ask("POST", "/api/runs/r1/complete"))["metrics"]
        assert metrics["intents"] == {"extract": 1, "send": 2}
        assert metrics["adherence"] == 0.5  # `post` exceeded its 625
        assert 0 < metrics["overhead_ms"] < 1000
        assert metrics["calls"] == 3


async def test_calls_without_a_step_are_limited_by_the_run_only(tmp_path: Path) -> None:
    """The intent of the first call, `send` with 625 tokens, does not limit the others."""
    async with orchestrated(tmp_path, max_tokens_per_workflow=2000) as farebox:
        for _ in range(3):
            reply = await farebox.call("plain", "r1", "default", words(500), intent="send")
            assert reply.status_code == 200
            for figure in ("limit", "remaining"):
                assert reply.headers[f"x-budget-step-{figure}"] == reply.headers[f"x-budget-run-{figure}"]
            assert reply.headers["x-budget-run-limit"] == "2000"
        refused = (await farebox.call("plain", "r1", "default", words(500))).json()["error"]
        assert refused["code"] == "run_budget_exceeded"
        assert (await farebox.steps("r1"))["default"]["tokens"]["limit"] is None
        named = await farebox.call("plain", "r1", "post", intent="send")
        assert int(named.headers["x-budget-step-limit"]) <= 750


async def test_default_step_is_not_learned(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        for run in ("r1", "r2", "r3"):
            await farebox.call("habit", run, "default", intent="send")
            await farebox.call("habit", run, "b", intent="generate")
            await farebox.ask("POST", f"/api/runs/{run}/complete")
        farebox.orchestration.histories.forget()
        announced = await farebox.ask("POST", "/api/runs", {"workflow": "habit", "run": "r4"})
        assert [step["step"] for step in announced["steps"]] == ["b"]


@pytest.mark.parametrize("is_other_process", [False, True])
@pytest.mark.parametrize("kind", ["announced", "declared", "unplanned"])
async def test_raised_run_budget_reaches_a_step_that_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_other_process: bool
) -> None:
    """Another gateway is not notified: it asks the ledger before it refuses."""
    async with orchestrated(tmp_path, max_tokens_per_workflow=400) as farebox:
        if kind != "unplanned":
            await farebox.declare("two", steps=TWO_STEPS)
        if kind == "announced":
            await farebox.ask("POST", "/api/runs", {"workflow": "two", "run": "r1"})
        await farebox.call("two", "r1", "b", words(100), intent="generate")
        while (await farebox.call("two", "r1", "a", words(40))).status_code == 200:
            pass
        if is_other_process:
            monkeypatch.setattr(farebox.orchestration, "budget_changed", lambda _project, _run: None)
        await farebox.ask("POST", "/api/runs/r1/budget", {"tokens": 4000})
        more = await farebox.call("two", "r1", "a", words(300), output_max=100)
        assert (more.status_code, more.headers["x-budget-run-limit"]) == (200, "4000")
        step = (await farebox.steps("r1"))["a"]
        assert int(more.headers["x-budget-step-limit"]) == step["tokens"]["limit"] > 1000
        assert (await farebox.call("two", "r1", "a", words(5000))).status_code == 402


@pytest.mark.parametrize("is_other_process", [False, True])
async def test_reset_run_shares_its_tokens_among_its_steps_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_other_process: bool
) -> None:
    """Another gateway is not notified: it asks the ledger before it refuses."""
    async with orchestrated(tmp_path, max_tokens_per_workflow=1000) as farebox:
        await farebox.declare("two", steps=TWO_STEPS)
        await farebox.call("two", "r1", "a", words(500))
        before = await farebox.call("two", "r1", "b", words(300))
        assert int(before.headers["x-budget-step-limit"]) < 600, "the other step has used a part of its share"
        if is_other_process:
            monkeypatch.setattr(farebox.orchestration, "budget_changed", lambda _project, _run: None)
        await farebox.ask("POST", "/api/runs/r1/reset")
        await farebox.call("two", "r1", "a", words(100))
        again = await farebox.call("two", "r1", "b", words(700))
        assert (again.status_code, again.headers["x-budget-step-limit"]) == (200, "1000")


async def test_unplanned_step_keeps_its_limit_after_the_plan_is_reloaded(tmp_path: Path) -> None:
    steps = [{"id": "a", "intent": "conditional"}]
    async with orchestrated(tmp_path, max_tokens_per_workflow=1000) as farebox:
        await farebox.ask("POST", "/api/runs", {"workflow": "w", "run": "r1", "steps": steps})
        first = await farebox.call("w", "r1", "late", words(550), intent="generate")
        farebox.orchestration.plans.forget()
        again = await farebox.call("w", "r1", "late", words(20), intent="generate")
        assert (again.status_code, again.headers["x-budget-step-limit"]) == (200, first.headers["x-budget-step-limit"])
