"""The command line in a folder with a configuration. Each command has a process of its own, as in a terminal.

These are forks of a process that has imported the commands: importing them takes a second, and some stories have twenty commands.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.cli.main import app

_TIMEOUT_S = 90
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["gateway.app", *(f"gateway.cli.{path.stem}" for path in Path(sys.modules["gateway.cli"].__path__[0]).glob("*.py"))]
)
MODEL = {
    "model_name": "fake",
    "litellm_params": {"model": "openai/fake", "mock_response": "one two three"},
    "model_info": {"input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6, "max_output_tokens": 100},
}


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@dataclass
class Cli:
    """Runs commands in a folder of their own, without the environment of whoever runs the tests."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, stdin: str = "", config: str = "config.yaml") -> Result:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")}
        environ |= {"COLUMNS": "200", **self.environment}
        with tempfile.TemporaryDirectory() as streams:
            files = [Path(streams, name) for name in ("stdin", "stdout", "stderr")]
            files[0].write_text(stdin)
            command = ["farebox", "--config", config, *arguments]
            process = _forks.Process(target=_run, args=(command, self.folder, environ, files))
            process.start()
            process.join(_TIMEOUT_S)
            if process.exitcode is None:
                process.kill()
            assert process.exitcode is not None, f"{command} did not end within {_TIMEOUT_S} s"
            return Result(process.exitcode, files[1].read_text(), files[2].read_text())


def _run(command: list[str], folder: Path, environ: Mapping[str, str], files: list[Path]) -> None:
    """Runs in the fork, which becomes what a shell would have started."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = command
    for descriptor, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), descriptor)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    app()


def settings_of(folder: Path, port: int) -> dict[str, Any]:
    storage = {"ledger": f"sqlite:///{folder}/ledger.db", "store": f"sqlite:///{folder}/store.db"}
    budgets = [{"scope": "run", "match": "*", "tokens": 20_000}]
    return {"model_list": [MODEL], "budgets": budgets, "storage": storage, "server": {"port": port}}
