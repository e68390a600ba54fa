"""An agent that repeats itself is stopped; one that only seems to repeat itself is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.acceptance.serving import Served, serving
from tests.farebox_process import Reply, tagged

pytestmark = pytest.mark.xdist_group("acceptance-loops")
REPEATS = 4
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("loops"), loops={"repeats": REPEATS}) as running:
        yield running


def ask(served: Served, run: str, content: str = "hi", headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    return served.chat({**tagged("circles", run), **(headers or {})}, content, max_tokens=20, tools=TOOLS, **fields)


def conversation(at: int, result: str) -> list[dict[str, Any]]:
    """The conversation grows by a turn each time, and the ids of calls differ."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": "find it"}]
    for number in range(at + 1):
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
        turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
        turns.append({"role": "tool", "tool_call_id": f"call_{number}", "content": result})
    return turns


def send_turn(served: Served, run: str, at: int, result: str) -> Reply:
    body = {"model": "fake", "messages": conversation(at, result), "max_tokens": 20, "tools": TOOLS}
    return served.gateway.request("POST", "/v1/chat/completions", body, tagged("circles", run))


def run_of(served: Served, run: str) -> dict[str, Any]:
    run_view: dict[str, Any] = served.gateway.get(f"/api/runs/{run}").json()
    return run_view


def test_identical_requests_pause_the_run_with_loop_detected(served: Served) -> None:
    replies = [ask(served, "r-same") for _ in range(REPEATS + 1)]
    assert [reply.status for reply in replies] == [200] * REPEATS + [402]
    error = replies[-1].json()["error"]
    assert (error["code"], error["type"]) == ("loop_detected", "run_not_active")
    assert replies[-1].headers["x-should-retry"] == "false"
    facts = error["metadata"]
    assert (facts["scope"], facts["scope_id"], facts["repeated"], facts["times"]) == (
        "run",
        "r-same",
        "request",
        REPEATS + 1,
    )
    assert (facts["workflow"], facts["run"], facts["step"]) == ("circles", "r-same", "s")
    requests_before = served.seen()
    other = ask(served, "r-same", "something else")
    assert (other.status, other.json()["error"]["code"]) == (402, "loop_detected"), (
        "the run is stopped, not the request"
    )
    assert served.seen() == requests_before


def test_paused_loop_is_reported_and_resuming_resets_the_count(served: Served) -> None:
    for _ in range(REPEATS + 1):
        last = ask(served, "r-resumed")
    assert last.status == 402
    run = run_of(served, "r-resumed")
    assert (run["state"], run["state_reason"]) == ("paused", "loop_detected")
    listed = served.gateway.get("/api/runs?state=paused&limit=100").json()["runs"]
    assert "r-resumed" in {listed_run["run"] for listed_run in listed}
    assert served.metric("farebox_admissions_total", result="refused", reason="loop_detected") >= 1
    assert "loop_detected" in served.gateway.log
    page = served.gateway.get("/admin/runs/r-resumed").body.decode()
    assert "repeats itself" in page
    resumed = served.gateway.request("POST", "/api/runs/r-resumed/resume")
    assert (resumed.json()["state"], resumed.json()["state_reason"]) == ("active", "")
    assert [ask(served, "r-resumed").status for _ in range(REPEATS)] == [200] * REPEATS, "counted anew"


def test_same_tool_calls_with_same_results_pause_the_run(served: Served) -> None:
    """Every request is longer than the one before, and yet the agent gets nowhere."""
    replies = [send_turn(served, "r-tools", at, "no such file") for at in range(REPEATS + 1)]
    assert [reply.status for reply in replies] == [200] * REPEATS + [402]
    assert replies[-1].json()["error"]["metadata"]["repeated"] == "tools"


def test_same_tool_calls_with_new_results_are_no_loop(served: Served) -> None:
    replies = [send_turn(served, "r-progress", at, f"line {at}") for at in range(3 * REPEATS)]
    assert {reply.status for reply in replies} == {200}


@pytest.mark.parametrize("scope", ["step", "run", "workflow"])
def test_repeats_are_counted_per_step_run_and_workflow(served: Served, scope: str) -> None:
    headers = {"step": "x-workflow-step", "run": "x-workflow-run-id", "workflow": "x-workflow-id"}
    for at in range(2 * REPEATS):
        changed = {headers[scope]: f"other-{scope}-{at}"}
        if scope == "workflow":
            changed["x-workflow-run-id"] = f"w-{at}"
        assert ask(served, "r-place", headers=changed).status == 200


def test_identical_requests_without_tools_are_no_loop(served: Served) -> None:
    for _ in range(3 * REPEATS):
        assert served.chat(tagged("circles", "r-lone"), max_tokens=20).status == 200


def test_untagged_calls_and_implicit_runs_are_no_loops(served: Served) -> None:
    for _ in range(2 * REPEATS):
        assert served.chat(None, max_tokens=20, tools=TOOLS).status == 200
        assert served.chat({"x-workflow-id": "implicit"}, max_tokens=20, tools=TOOLS).status == 200


def test_sdk_retries_are_no_loop(served: Served) -> None:
    for _ in range(2 * REPEATS):
        assert ask(served, "r-retry", headers={"x-stainless-retry-count": "1"}).status == 200


def test_replays_of_an_idempotent_call_are_no_loop(served: Served) -> None:
    for _ in range(2 * REPEATS):
        assert ask(served, "r-idem", headers={"idempotency-key": "the-same"}).status == 200


def test_repeats_of_failed_calls_are_no_loop(served: Served) -> None:
    served.provider.script(times=2 * REPEATS, status=503)
    for _ in range(2 * REPEATS):
        assert ask(served, "r-failed").status == 503
    assert ask(served, "r-failed").status == 200


def test_concurrent_identical_requests_are_no_loop(served: Served) -> None:
    """Ten drafts of one answer, to choose the best: they are requested before any of them is seen."""
    served.provider.script(times=10, delay_ms=800)
    with ThreadPoolExecutor(10) as pool:
        assert {reply.status for reply in pool.map(lambda _: ask(served, "r-drafts"), range(10))} == {200}


def test_identical_streamed_requests_pause_the_run(served: Served) -> None:
    for _ in range(REPEATS):
        assert ask(served, "r-stream", stream=True).status == 200
    last = ask(served, "r-stream", stream=True)
    assert (last.status, json.loads(last.body)["error"]["code"]) == (402, "loop_detected")
