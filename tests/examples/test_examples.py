"""Every example runs offline as its page says: a budget is kept, an answer is clamped, a refusal is handled.

Those that need a framework run by `make test-clients`, in its interpreter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config.loading import load_config
from tests.clients.client_process import need_outside_clients, python_with
from tests.docs.fences import blocks
from tests.farebox_process import FareboxProcess, Reply, running_farebox

pytestmark = [pytest.mark.xdist_group("examples"), pytest.mark.timeout(170)]

EXAMPLES = Path(__file__).parents[2] / "examples"
OFFLINE, ONLINE = EXAMPLES / "offline.yaml", EXAMPLES / "online.yaml"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxProcess]:
    with running_farebox(tmp_path_factory.mktemp("examples"), yaml.safe_load(OFFLINE.read_text())) as running:
        yield running


def run_example(gateway: FareboxProcess, folder: Path, python: str, script: str, run: str) -> str:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("FAREBOX_", "OPENAI_", "PYTEST_"))
    }
    done = subprocess.run(
        [python, str(EXAMPLES / script)],
        cwd=folder,
        env={
            **inherited,
            "HOME": str(folder),
            "RUN_ID": run,
            "FAREBOX_BASE_URL": f"{gateway.url}/v1",
            "CREWAI_DISABLE_TELEMETRY": "true",
            "OTEL_SDK_DISABLED": "true",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_of(gateway: FareboxProcess, run: str) -> dict[str, Any]:
    run_view: dict[str, Any] = gateway.get(f"/api/runs/{run}").json()
    assert run_view["tokens"]["settled"] <= run_view["tokens"]["limit"]
    assert run_view["tokens"]["reserved"] == 0
    return run_view


def test_openai_sdk_example_writes_chapters_until_the_budget_is_spent(gateway: FareboxProcess, tmp_path: Path) -> None:
    output = run_example(gateway, tmp_path, sys.executable, "openai_sdk/guide.py", "e-guide").splitlines()
    assert "stop, clamp" in output[0]
    assert "length, clamp" in output[-3]
    assert re.fullmatch(
        r"chapter \d+: refused, run_budget_exceeded: Run 'e-guide' has \d+ of 730 tokens left; this call needs \d+\.",
        output[-2],
    )
    assert output[-1].startswith(f"The guide has {len(output) - 2} chapters")
    run_view = run_of(gateway, "e-guide")
    assert (run_view["requests"]["settled"], run_view["refused"]) == (len(output) - 2, 1)


def test_langgraph_example_concludes_when_the_budget_is_spent(gateway: FareboxProcess, tmp_path: Path) -> None:
    need_outside_clients()
    output = run_example(
        gateway, tmp_path, python_with("langgraph"), "langgraph_agent/agent.py", "e-research"
    ).splitlines()
    assert "clamp" in output[0]
    assert output[-2].startswith("conclude: run_budget_exceeded: Run 'e-research' has ")
    assert output[-1].startswith("After 4 searches: Three pages about quiet places in Lisbon")
    assert run_of(gateway, "e-research")["refused"] == 1


def test_crewai_example_keeps_finished_tasks_after_a_refusal(gateway: FareboxProcess, tmp_path: Path) -> None:
    need_outside_clients()
    output = run_example(gateway, tmp_path, python_with("crewai"), "crewai_crew/crew.py", "e-crew")
    assert "e-crew-roomy: finished, " in output
    assert "e-crew-tight: stopped with 1 of 2 tasks done, run_budget_exceeded: Run 'e-crew-tight' has " in output
    assert {step["step"] for step in run_of(gateway, "e-crew-roomy")["steps"]} == {"research", "report"}
    assert run_of(gateway, "e-crew-tight")["tokens"]["limit"] == 260


def test_openai_agents_example_shares_a_budget_across_a_handoff(gateway: FareboxProcess, tmp_path: Path) -> None:
    need_outside_clients()
    output = run_example(
        gateway, tmp_path, python_with("agents"), "openai_agents_handoffs/handoffs.py", "e-desk"
    ).splitlines()
    assert output[0].startswith("e-desk-1: Booking says: Lisbon")
    assert output[1].startswith("e-desk-2: Booking says: Lisbon")
    assert output[2].startswith("e-desk-3: we have to stop here: run_budget_exceeded at step booking, ")
    assert {step["step"] for step in run_of(gateway, "e-desk-1")["steps"]} == {"desk", "booking"}
    assert run_of(gateway, "e-desk-2")["tokens"]["settled"] > run_of(gateway, "e-desk-3")["tokens"]["settled"]


def n8n_call(gateway: FareboxProcess, execution: str) -> Reply:
    """What the HTTP Request node sends in one execution."""
    nodes = {node["name"]: node for node in json.loads((EXAMPLES / "n8n/workflow.json").read_text())["nodes"]}
    asked = nodes["Ask the model"]["parameters"]
    assert asked["url"].startswith("http://127.0.0.1:4000/")
    headers = {
        header["name"]: header["value"].removeprefix("=").replace("{{ $execution.id }}", execution)
        for header in asked["headerParameters"]["parameters"]
    }
    match = re.fullmatch(r"=\{\{ JSON\.stringify\((.+)\) \}\}", asked["jsonBody"])
    assert match is not None
    body = yaml.safe_load(match[1])  # an object literal of JavaScript with plain values is YAML
    path = asked["url"].removeprefix("http://127.0.0.1:4000")
    return gateway.request(asked["method"], path, body, headers)


def test_n8n_example_has_a_budget_for_each_execution(gateway: FareboxProcess) -> None:
    workflow = json.loads((EXAMPLES / "n8n/workflow.json").read_text())
    names = {node["name"] for node in workflow["nodes"]}
    targets = {target["node"] for out in workflow["connections"].values() for way in out["main"] for target in way}
    assert set(workflow["connections"]) | targets == names
    replies = [n8n_call(gateway, "7")]
    while replies[-1].status == 200:
        replies.append(n8n_call(gateway, "7"))
    first, last = replies[0], replies[-1]
    assert (first.headers["x-workflow-run-id"], first.headers["x-budget-run-limit"]) == ("n8n-7", "340")
    assert int(first.headers["x-budget-run-remaining"]) > 0
    assert (last.status, last.json()["error"]["code"]) == (402, "run_budget_exceeded")
    assert replies[-2].json()["choices"][0]["finish_reason"] == "length"
    assert n8n_call(gateway, "8").status == 200, "another execution is another run"


def session(gateway: FareboxProcess, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
    reply = gateway.request("POST", path, {"model": "mock", **body}, headers)
    assert reply.status == 200, reply.body
    assert reply.headers["x-budget-run-limit"] == "200000"
    return reply


def test_claude_code_example_uses_its_session_as_run(gateway: FareboxProcess) -> None:
    env = json.loads((EXAMPLES / "claude_code/settings.json").read_text())["env"]
    headers = dict(line.split(": ", 1) for line in env["ANTHROPIC_CUSTOM_HEADERS"].splitlines())
    headers |= {"authorization": f"Bearer {env['ANTHROPIC_AUTH_TOKEN']}", "x-claude-code-session-id": "session-1"}
    body = {"max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
    assert session(gateway, "/v1/messages", body, headers).headers["x-workflow-run-id"] == "session-1"


def test_codex_example_uses_its_session_as_run(gateway: FareboxProcess) -> None:
    provider = tomllib.loads((EXAMPLES / "codex/config.toml").read_text())["model_providers"]["farebox"]
    assert provider["wire_api"] == "responses"
    headers = {**provider["http_headers"], "session_id": "session-2"}
    assert session(gateway, "/v1/responses", {"input": "hi"}, headers).headers["x-workflow-run-id"] == "session-2"


def test_offline_and_online_examples_have_the_same_budgets() -> None:
    offline, online = load_config(OFFLINE, {}), load_config(ONLINE, {"OPENAI_API_KEY": "k"})
    assert online.budgets == offline.budgets
    assert {entry.model_name for entry in online.model_list} == {entry.model_name for entry in offline.model_list}


def test_every_example_page_describes_a_kept_budget_a_clamp_and_a_refusal() -> None:
    folders = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
    assert len(folders) == 7
    index = (EXAMPLES / "README.md").read_text()
    for folder in folders:
        page = (folder / "README.md").read_text()
        assert f"({folder.name}/README.md)" in index
        for word in ("**Kept", "lamped**", "**Refused**"):
            assert word in page, f"{folder.name}: {word}"
        for target in re.findall(r"\]\(([^)#]+)", page):
            assert "://" in target or (folder / target).exists(), target
        assert all(block.language for block in blocks(folder / "README.md"))
