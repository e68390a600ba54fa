"""The command line, run as a process of its own in a folder with a configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
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
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "--config", config, *arguments],
            cwd=self.folder,
            env={**environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **self.environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=90,
        )
        return Result(done.returncode, done.stdout, done.stderr)


def settings_of(folder: Path, port: int) -> dict[str, Any]:
    storage = {"ledger": f"sqlite:///{folder}/ledger.db", "store": f"sqlite:///{folder}/store.db"}
    budgets = [{"scope": "run", "match": "*", "tokens": 20_000}]
    return {"model_list": [MODEL], "budgets": budgets, "storage": storage, "server": {"port": port}}
