"""Every client with the snippet that people are given: a tagged run with a budget, a stream, a tool call, a refusal."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli.client_snippets import CLIENTS, SnippetValues, clients_page, snippet
from tests.acceptance.serving import Served
from tests.clients.client_process import ROOT, need_outside_clients, python_with, run, run_node, run_python
from tests.clients.serving_clients import TOOL_ARGUMENTS, refusals, run_of

pytestmark = [pytest.mark.xdist_group("clients-snippets"), pytest.mark.timeout(170)]

TEXT = "time people way"
# client, the module or package to look for, the class of the error that it raises, whether it is among our own dependencies
PYTHON = [
    ("openai-python", "openai", "openai.APIStatusError", True),
    ("anthropic-python", "anthropic", "anthropic.PaymentRequiredError", True),
    ("langchain", "langchain_openai", "openai.APIStatusError", False),
    ("llamaindex", "llama_index", "openai.APIStatusError", False),
    ("crewai", "crewai", "openai.APIStatusError", False),
    ("openai-agents", "agents", "openai.APIStatusError", False),
    ("pydantic-ai", "pydantic_ai", "pydantic_ai.exceptions.ModelHTTPError", False),
    ("litellm", "litellm", "openai.APIError", True),
]
NODE = [
    ("openai-node", "openai", "APIError"),
    ("anthropic-node", "@anthropic-ai/sdk", "APIError"),
    ("vercel-ai", "@ai-sdk/openai-compatible", "AI_APICallError"),
]


def values(served: Served, name: str) -> SnippetValues:
    model = "claude" if name.startswith(("anthropic", "claude")) else "fake"
    return SnippetValues(served.gateway.url, "local", model, "roomy", f"s-{name}", "draft")


def expect_scenario(served: Served) -> None:
    """The first request with tools is answered with a call of one, everything else with a text."""
    served.provider.script(
        tool="weather", arguments=TOOL_ARGUMENTS, when=lambda received: bool(received.body.get("tools"))
    )
    served.provider.script(text=TEXT, times=None)


def check(served: Served, name: str, report: dict[str, Any], refused_before: float) -> None:
    assert report["streamed"] == TEXT
    tool, arguments = report["tool"]
    assert (tool, json.loads(arguments)) == ("weather", {"city": "Bremen"})
    shown = run_of(served, f"s-{name}")
    assert shown["workflow"] == "roomy"
    assert shown["tokens"]["settled"] > 0
    assert shown["requests"]["settled"] == served.seen() >= 3
    assert "draft" in {step["step"] for step in shown["steps"]}
    assert refusals(served) - refused_before == 1, "a refused call is not repeated"


@pytest.mark.parametrize(("name", "module", "error", "ours"), PYTHON, ids=[row[0] for row in PYTHON])
def test_python_snippet_streams_calls_a_tool_and_is_refused_once(
    served: Served, tmp_path: Path, name: str, module: str, error: str, ours: bool
) -> None:
    if not ours or name == "litellm":  # whose import takes seconds
        need_outside_clients()
    expect_scenario(served)
    before = refusals(served)
    done = run_python(name, module, tmp_path, values(served, name), ours)
    check(served, name, done.report, before)
    refused = done.report["refused"]
    assert f"run 's-{name}-refused'" in refused["message"]
    assert any(kind.endswith(error.rpartition(".")[2]) for kind in refused["types"]), refused["types"]


@pytest.mark.parametrize(("name", "package", "error"), NODE, ids=[row[0] for row in NODE])
def test_node_snippet_streams_calls_a_tool_and_is_refused_once(
    served: Served, tmp_path: Path, name: str, package: str, error: str
) -> None:
    need_outside_clients()
    expect_scenario(served)
    before = refusals(served)
    done = run_node(name, package, tmp_path, values(served, name))
    check(served, name, done.report, before)
    refused = done.report["refused"]
    assert f"run 's-{name}-refused'" in refused["message"]
    assert error in refused["types"]
    assert refused["status"] == 402


def test_llm_snippet_streams_calls_a_tool_and_is_refused_once(served: Served, tmp_path: Path) -> None:
    """simonw/llm keeps its models in a file; its tools are functions that it is given as text."""
    need_outside_clients()
    python = python_with("llm")
    expect_scenario(served)
    before = refusals(served)
    snippet_values = values(served, "llm")
    poor = SnippetValues(snippet_values.url, snippet_values.key, snippet_values.model, "tiny", "s-llm-refused", "draft")

    def ask(settings: SnippetValues, *arguments: str) -> str:
        (tmp_path / "extra-openai-models.yaml").write_text(snippet("llm", settings))
        done = run([python, "-m", "llm", *arguments], tmp_path, LLM_USER_PATH=str(tmp_path))
        return f"{done.code}: {done.output}{done.errors}"

    ask(snippet_values, "keys", "set", "farebox", "--value", "local")
    function = (
        "def weather(city: str) -> str:\n    'The weather of a city.'\n    print('asked for', city)\n    return 'rain'"
    )
    output = ask(
        snippet_values, "-m", "farebox", "--no-stream", "--functions", function, "What is the weather in Bremen?"
    )
    assert "asked for Bremen" in output
    assert ask(snippet_values, "-m", "farebox", "Say something.") == f"0: {TEXT}\n"
    assert served.last.body["stream"] is True
    assert run_of(served, "s-llm")["requests"]["settled"] == served.seen() == 3
    refused = ask(poor, "-m", "farebox", "Say something.")
    assert refused.startswith("1: ")
    assert "run 's-llm-refused'" in refused
    assert refusals(served) - before == 1


def test_curl_snippet_makes_a_charged_call(served: Served, tmp_path: Path) -> None:
    served.provider.script(text=TEXT)
    done = run(["bash", "-c", snippet("curl", values(served, "curl"))], tmp_path)
    assert json.loads(done.output)["choices"][0]["message"]["content"] == TEXT
    assert run_of(served, "s-curl")["requests"]["settled"] == 1


def test_open_webui_snippet_tags_calls_by_its_base_url(served: Served, tmp_path: Path) -> None:
    """The variables are what a shell makes of the snippet; the call is the one that it makes."""
    script = snippet("open-webui", values(served, "open-webui")).rsplit("\n", 2)[0] + "\nenv"
    variables = dict(
        line.split("=", 1) for line in run(["bash", "-c", script], tmp_path).output.splitlines() if "=" in line
    )
    path = variables["OPENAI_API_BASE_URL"].removeprefix(served.gateway.url)
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {variables['OPENAI_API_KEY']}"}
    reply = served.gateway.request("POST", f"{path}/chat/completions", body, headers)
    assert reply.status == 200
    assert reply.headers["x-workflow-step"] == "draft"
    assert run_of(served, reply.headers["x-workflow-run-id"])["workflow"] == "roomy"
    assert served.gateway.get(f"{path}/models").status == 200


def test_codex_snippet_is_valid_toml() -> None:
    provider = tomllib.loads(snippet("codex", SnippetValues()))["model_providers"]["farebox"]
    assert provider["wire_api"] == "responses"
    assert provider["http_headers"]["x-workflow-id"] == "my-workflow"


def test_llm_snippet_is_valid_yaml() -> None:
    assert yaml.safe_load(snippet("llm", SnippetValues()))[0]["headers"]["x-workflow-run-id"] == "run-1"


def test_claude_code_snippet_sets_its_headers_in_a_shell(tmp_path: Path) -> None:
    done = run(
        ["bash", "-c", snippet("claude-code", SnippetValues()) + 'printf "%s" "$ANTHROPIC_CUSTOM_HEADERS"'], tmp_path
    )
    assert done.output == "x-workflow-id: my-workflow\nx-workflow-step: draft"


@pytest.mark.parametrize("name", CLIENTS)
def test_every_placeholder_of_a_snippet_is_filled(name: str) -> None:
    snippet_values = SnippetValues("http://gateway.example:4000", "fb_key", "a-model", "a-workflow", "a-run", "a-step")
    text = snippet(name, snippet_values)
    assert "{{" not in text
    assert snippet_values.url in text
    assert snippet_values.workflow in text
    assert shlex.quote(snippet_values.model) in text or name in ("open-webui", "n8n", "crewai", "litellm", "aider")


def test_clients_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "clients.md"
    if os.environ.get("FAREBOX_WRITE_DOCS"):
        page.write_text(clients_page())
    assert page.read_text() == clients_page(), "FAREBOX_WRITE_DOCS=1 with this test writes the page anew"
