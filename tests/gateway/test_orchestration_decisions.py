"""Intents of calls, the audit of decisions, observing, changes of settings, errors inside orchestration, and agent scores."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.orchestration.declarations import read
from gateway.pipeline.events import tool_results
from gateway.store import settings as settings_store
from gateway.store.database import StoreUnavailable
from gateway.store.workflows import Workflow
from tests.gateway.orchestrated import Orchestrated, orchestrated, words


def intent_of(reply: Any) -> tuple[str, str]:
    intent, _, source = reply.headers["x-workflow-intent"].split("; ")
    return intent, source.removeprefix("source=")


SOURCES: tuple[tuple[str, dict[str, Any], str, tuple[str, str]], ...] = (
    # step, more tags, prompt, (intent, source)
    ("read", {"intent": "filter"}, "Summarize this text.", ("filter", "header")),
    ("declared", {}, "Summarize this text.", ("validate", "declared")),
    ("declared", {"intent": "send"}, "Summarize this text.", ("send", "header")),
    ("summarize", {}, "Summarize the following report in three sentences.", ("summarize", "rules")),
    ("default", {}, "Translate this sentence into German.", ("transform", "model")),
)


@pytest.mark.parametrize(("step", "tags", "prompt", "expected"), SOURCES)
async def test_intent_comes_from_header_declaration_rules_or_model_in_this_order(
    tmp_path: Path, step: str, tags: dict[str, Any], prompt: str, expected: tuple[str, str]
) -> None:
    async with orchestrated(tmp_path) as farebox:
        await farebox.declare("wf", steps=[{"id": "declared", "intent": "validate"}, {"id": "read"}])
        assert intent_of(await farebox.call("wf", "r1", step, prompt, **tags)) == expected


@pytest.mark.parametrize("step", ["default", "task1", "prompt"])
async def test_generic_step_name_is_classified_by_each_prompt(tmp_path: Path, step: str) -> None:
    async with orchestrated(tmp_path) as farebox:
        first = await farebox.call("wf", "r1", step, "Translate this sentence into German.")
        second = await farebox.call("wf", "r1", step, "Summarize the following report in three sentences.")
        assert [intent_of(reply)[0] for reply in (first, second)] == ["transform", "summarize"]


async def test_new_decisions_are_audited_once(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        await farebox.declare("wf", steps=[{"id": "post", "intent": "send"}])
        for _ in range(3):
            await farebox.call("wf", "r1", "post")
        await farebox.call("wf", "r1", "post", words(800))
        (classified,) = await farebox.audit("intent.classified")
        assert (classified["actor"], classified["target"], classified["run"]) == ("gateway", "post", "r1")
        assert classified["detail"]["intent"] == "send"
        (allocated,) = await farebox.audit("budget.allocated", run="r1")
        assert (allocated["detail"]["tokens"], allocated["detail"]["hard_limit_tokens"]) == (625, 750)
        (refused,) = await farebox.audit("call.")
        assert (refused["action"], refused["target"]) == ("call.refused", "step/r1/post")
        assert refused["detail"]["reason"] == "too_large"
        assert refused["request_id"]


async def test_announced_run_is_audited_with_its_plan_and_actor(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        steps = [{"id": "post", "intent": "send"}]
        await farebox.ask("POST", "/api/runs", {"workflow": "wf", "run": "r1", "steps": steps})
        (planned,) = await farebox.audit("run.planned")
        assert planned["detail"]["steps"] == {"post": ["send", 625, 750]}
        (initialised,) = await farebox.audit("run.initialised")
        assert initialised["actor"] != planned["actor"] == "gateway"


async def test_routing_is_audited(tmp_path: Path) -> None:
    more = "tiers: {fast: [mock], balanced: [mock], powerful: [mock]}\n"
    async with orchestrated(tmp_path, more, ais_routing_enabled=True) as farebox:
        reply = await farebox.call("wf", "r1", "read", body={"model": "auto"})
        assert reply.headers["x-budget-actions"] == "route=mock"
        (routed,) = await farebox.audit("model.routed")
        assert (routed["target"], routed["detail"]["asked"]) == ("mock", "auto")


async def test_compression_is_audited_and_can_be_turned_off_per_workflow(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "compression_enabled": True,
        "compression_min_quality": 0.1,
        "compression_aggressiveness": "high",
    }
    text = "\n".join(
        f"The meeting of day {day} was long and nothing much was decided in it by anyone." for day in range(60)
    )
    async with orchestrated(tmp_path, **settings) as farebox:
        await farebox.declare("plain", steps=[], compression=False)
        history = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "Noted."},
            {"role": "user", "content": text},
            {"role": "assistant", "content": "Noted again."},
            {"role": "user", "content": "What was decided in the meetings?"},
        ]
        for workflow, is_smaller in (("free", True), ("plain", False)):
            reply = await farebox.call(workflow, f"r-{workflow}", "summarize", body={"messages": history})
            assert reply.status_code == 200
            assert ("compress=" in reply.headers.get("x-budget-actions", "")) is is_smaller
        (compressed,) = await farebox.audit("prompt.compressed")
        assert compressed["detail"]["tokens"] > 0


async def test_observed_workflow_passes_calls_and_reports_would_refuse(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        await farebox.declare("wf", mode="observe", budget={"tokens": 300}, steps=[{"id": "post", "intent": "send"}])
        fits = await farebox.call("wf", "r1", "post")
        assert "x-budget-actions" not in fits.headers
        over = await farebox.call("wf", "r1", "post", words(900))
        assert (over.status_code, over.headers["x-budget-actions"]) == (200, "observe=would_refuse, overage")
        assert (over.headers["x-budget-run-limit"], over.headers["x-budget-run-remaining"]) == ("300", "0")
        calls = (await farebox.ask("GET", "/api/runs/r1/calls"))["calls"]
        assert [(call["status"], call["code"]) for call in calls] == [("ok", "would_refuse"), ("ok", "")]
        assert farebox.metric("farebox_admissions_total", result="observed", reason="step") == 1
        assert farebox.metric("farebox_admissions_total", result="granted", reason="") == 1
        (observed,) = await farebox.audit("call.observed")
        assert "step/r1/post~observe" in observed["detail"]["accounts"]
        await farebox.declare("wf", mode="enforce", budget={"tokens": 300}, steps=[{"id": "post", "intent": "send"}])
        assert (await farebox.call("wf", "r1", "post", words(900))).status_code == 402


async def test_tightened_budget_is_enforced_even_when_observing(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        await farebox.declare("wf", mode="observe", steps=[])
        reply = await farebox.call("wf", "r1", "post", words(200), headers={"budget_tokens": "100"})
        assert reply.status_code == 402


async def test_setting_change_applies_to_the_next_call(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        assert (await farebox.call("wf", "r1", "post", intent="send")).headers["x-budget-step-limit"] == "750"
        await farebox.set("token_budget_send", 1000)
        assert (await farebox.call("wf", "r1", "post", intent="send")).headers["x-budget-step-limit"] == "1500"
        await farebox.set("enabled", False)
        off = (await farebox.call("wf", "r1", "post", intent="send")).headers
        assert off["x-workflow-intent"] == "send; confidence=1.00; source=header"
        assert "x-workflow-intent" not in (await farebox.call("wf", "r1", "post")).headers


async def test_setting_change_by_another_process_applies_within_2_seconds(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        await farebox.call("wf", "r1", "post", intent="send")
        store = farebox.application.parts.store
        await settings_store.put(store, "orchestration_token_budget_send", 1000, "somebody", 1)

        async def sees_it() -> None:
            while (await farebox.call("wf", "r1", "post", intent="send")).headers["x-budget-step-limit"] != "1500":
                await asyncio.sleep(0.05)

        await asyncio.wait_for(sees_it(), 2.0)


PARTS = ("plans.step", "intents.of", "histories.of")


@pytest.mark.parametrize("part", PARTS)
async def test_error_inside_orchestration_never_fails_a_call(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with orchestrated(tmp_path) as farebox:
        await farebox.declare("wf", budget={"tokens": 60}, steps=[])
        holder, _, method = part.partition(".")

        async def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("an unexpected error")

        monkeypatch.setattr(getattr(farebox.orchestration, holder), method, broken)
        reply = await farebox.call("wf", "r1", "post")
        assert reply.status_code == 200
        assert farebox.metric("farebox_orchestration_errors_total") == 1
        assert reply.headers["x-budget-run-limit"] == "60"  # a declared budget is enforced all the same
        assert (await farebox.call("wf", "r1", "post", words(100))).status_code == 402


async def test_error_in_routing_keeps_the_requested_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = "tiers: {fast: [mock]}\n"
    async with orchestrated(tmp_path, more, ais_routing_enabled=True) as farebox:
        await farebox.declare("wf", routing=True, steps=[])

        def broken(*_: Any) -> None:
            raise RuntimeError("an unexpected error")

        monkeypatch.setattr("gateway.orchestration.routing.route", broken)
        reply = await farebox.call("wf", "r1", "post")
        assert reply.status_code == 200
        assert farebox.metric("farebox_orchestration_errors_total") == 1


UNREADABLE: tuple[dict[str, Any], ...] = (
    {"steps": [{"prompt": "no id"}]},
    {"steps": "none"},
    {"steps": [1, 2]},
    {"on_pressure": ["dance"]},
    {"on_pressure": 3},
)


@pytest.mark.parametrize("declaration", UNREADABLE)
def test_readable_parts_of_an_invalid_declaration_apply(declaration: dict[str, Any]) -> None:
    declared = read(Workflow("default", "wf", "observe", {"budget_tokens": 7, **declaration}))
    assert (declared.limit.tokens, declared.observes, declared.ladder, dict(declared.steps)) == (7, True, None, {})


async def test_store_outage_fails_no_call_and_delays_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise StoreUnavailable("the store is away")

    async with orchestrated(tmp_path) as farebox:
        with monkeypatch.context() as outage:
            for way in ("begin", "read"):
                outage.setattr(farebox.application.parts.store, way, away)
            reply = await farebox.call("wf", "r1", "post", intent="send")
            assert (reply.status_code, reply.headers["x-budget-step-limit"]) == (200, "750")
            await farebox.orchestration.trail.flush()
        assert len(await farebox.audit("budget.allocated")) == 1  # written after the outage


async def runs_of(farebox: Orchestrated, agent: str, count: int, **options: Any) -> None:
    for number in range(count):
        reply = await farebox.call("wf", f"{agent}-{number}", "post", words(50), headers={"agent": agent}, **options)
        assert reply.status_code == 200


async def caught_up(farebox: Orchestrated) -> None:
    await farebox.ask("GET", "/api/runs")


async def test_agent_has_an_execution_score_from_its_fifth_run(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        await runs_of(farebox, "few", 4)
        await runs_of(farebox, "many", 5)
        await caught_up(farebox)
        assert await farebox.orchestration.scoring.measure() == 1
        few = await farebox.ask("GET", "/api/agents/few/intensity")
        many = await farebox.ask("GET", "/api/agents/many/intensity")
        assert (few["execution"], few["runs"], few["source"]) == (5.0, 0, "unknown")
        assert (many["execution"] < 2.0, many["runs"]) == (True, 5)
        assert many["metrics"]["seen"]["total_tokens"] > 250
        assert await farebox.orchestration.scoring.measure() == 0  # nothing has changed


async def test_manually_set_score_is_kept(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        await farebox.ask("PUT", "/api/agents/boss/intensity", {"creation": 9, "execution": 9})
        await runs_of(farebox, "boss", 6)
        await caught_up(farebox)
        assert await farebox.orchestration.scoring.measure() == 0
        assert (await farebox.ask("GET", "/api/agents/boss/intensity"))["combined"] == 9.0
        reply = await farebox.call("wf", "new", "fresh", intent="send", headers={"agent": "boss"})
        assert reply.headers["x-budget-step-limit"] == str(int(725 * 1.2))  # 500 × 1.45


async def test_scoring_counts_tools_and_retries(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("find", "read", "mail")]
    results = [
        {"role": "user", "content": "Find it."},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": tool_call_id, "type": "function", "function": {"name": "find", "arguments": "{}"}}
                for tool_call_id in ("1", "2")
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "a"},
        {"role": "tool", "tool_call_id": "2", "content": "b"},
    ]
    async with orchestrated(tmp_path) as farebox:
        await runs_of(farebox, "handy", 5, body={"tools": tools, "messages": results})
        await caught_up(farebox)
        await farebox.orchestration.scoring.measure()
        observed = (await farebox.ask("GET", "/api/agents/handy/intensity"))["metrics"]["seen"]
        assert (observed["distinct_tools"], observed["tool_calls"], observed["retries"]) == (3, 10, 0)


async def test_on_pressure_of_a_declaration_beats_the_default(tmp_path: Path) -> None:
    async with orchestrated(tmp_path) as farebox:
        await farebox.declare("strict", budget={"tokens": 100}, on_pressure=["refuse"], steps=[])
        await farebox.declare("soft", budget={"tokens": 100}, steps=[])
        refused = await farebox.call("strict", "r1", "a", output_max=500)
        clamped = await farebox.call("soft", "r2", "a", output_max=500)
        assert refused.status_code == 402
        assert (clamped.status_code, clamped.headers["x-budget-actions"]) == (200, "clamp")


def test_tool_results_are_counted_in_every_protocol() -> None:
    chat = [{"role": "assistant"}, {"role": "tool"}, {"role": "tool"}]
    messages = [{"role": "user", "content": [{"type": "tool_result"}, {"type": "text"}, {"type": "tool_result"}]}]
    responses = [{"type": "function_call"}, {"type": "function_call_output"}]
    nothing: list[Any] = [
        None,
        "text",
        [],
        ["x"],
        [{"role": "user", "content": "hi"}],
        [{"role": "tool"}, {"role": "user"}],
    ]
    assert [tool_results(request_body) for request_body in (chat, messages, responses)] == [2, 2, 1]
    assert [tool_results(request_body) for request_body in nothing] == [0] * len(nothing)
