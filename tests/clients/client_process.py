"""Runs a client's snippet and scenario in a process of its own, with the interpreter that has the client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.client_snippets import SnippetValues, snippet

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NODE_MODULES = HERE / "node" / "node_modules"
CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"
AIDER_FOLDER = ROOT / ".venv-aider" / "bin"
SWITCH = "FAREBOX_TEST_CLIENTS"
SECONDS_MAX = 150


@dataclass(frozen=True)
class ClientRun:
    """What a client's process said. Its scenario's report is one line; frameworks print what they like around it."""

    output: str
    errors: str
    code: int

    @property
    def report(self) -> dict[str, Any]:
        assert self.code == 0, f"{self.output}\n{self.errors}"
        line = next(line for line in self.output.splitlines() if line.startswith("REPORT "))
        report: dict[str, Any] = json.loads(line.removeprefix("REPORT "))
        return report


def need_outside_clients() -> None:
    if not os.environ.get(SWITCH):
        pytest.skip("clients outside the project's own dependencies are run by `make test-clients`")


def python_with(module: str, ours: bool = False) -> str:
    """The interpreter that has this module, `ours` among the project's own dependencies; skips where none has it."""
    if ours:
        return sys.executable
    if not CLIENTS_PYTHON.exists():
        pytest.skip(f"{module} is not installed: `make test-clients` makes .venv-clients")
    import_check = subprocess.run(
        [str(CLIENTS_PYTHON), "-c", f"import importlib.util as u; assert u.find_spec('{module}')"]
    )
    if import_check.returncode:
        pytest.skip(f"{module} is not in .venv-clients: `make test-clients` installs it")
    return str(CLIENTS_PYTHON)


def node_with(package: str) -> str:
    """Node, if it and the package are there; skips otherwise."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (NODE_MODULES / package).exists():
        pytest.skip(f"{package} is not in tests/clients/node: `make test-clients` installs it")
    return node


def write_snippets(folder: Path, name: str, connection: SnippetValues, suffix: str) -> None:
    """The snippet as it is, and the same for a run that can afford nothing."""
    (folder / f"snippet{suffix}").write_text(snippet(name, connection))
    poor = replace(connection, workflow="tiny", run=f"{connection.run}-refused")
    (folder / f"refused{suffix}").write_text(snippet(name, poor))


def run_python(name: str, module: str, folder: Path, connection: SnippetValues, ours: bool = False) -> ClientRun:
    python = python_with(module, ours)
    write_snippets(folder, name, connection, ".py")
    return run([python, str(HERE / "scenarios" / "run.py"), name], folder)


def run_node(name: str, package: str, folder: Path, connection: SnippetValues) -> ClientRun:
    node = node_with(package)
    write_snippets(folder, name, connection, ".mjs")
    (folder / "node_modules").symlink_to(NODE_MODULES)
    for file in (HERE / "node").glob("*.mjs"):
        shutil.copy(file, folder)
    return run([node, "run.mjs", name], folder)


def run(command: list[str], folder: Path, **environment: str) -> ClientRun:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment_of(folder) | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )
    return ClientRun(done.stdout, done.stderr, done.returncode)


def environment_of(folder: Path) -> dict[str, str]:
    """The home folder is the test's own: no client finds settings or keys of whoever runs the tests."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIDER_", "FAREBOX_", "OPENAI_", "ANTHROPIC_", "LLM_", "PYTEST_"))
    }
    quiet = {
        "HOME": str(folder),
        "CREWAI_DISABLE_TELEMETRY": "true",
        "OTEL_SDK_DISABLED": "true",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "AI_SDK_LOG_WARNINGS": "false",
    }
    return environ | quiet
