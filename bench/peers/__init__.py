"""Other gateways, installed on demand into `.farebox-bench/`, in the versions that are pinned here.

Each is configured as its documents say for production, without a database, and with nothing on that Farebox does for a tagged
call: no budgets, no usage rows, one key where a peer insists on it. What is compared is therefore their bare forwarding. The
exception is LiteLLM's proxy with those of its budgets that need no database.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from bench.paths import PATHS
from bench.servers import ROOT, NotStarted, Server, Servers, free_port

FOLDER: Final = ROOT / ".farebox-bench"
PORTKEY_HEADERS: Final = {"x-portkey-provider": "openai", "x-portkey-custom-host": "{upstream}"}
# Nobody but the benchmark reaches these servers. LiteLLM's proxy does not start without a key, and wants a long one.
CLIENT_KEY: Final = "sk-bench-0f1e2d3c4b5a69788796a5b4c3d2e1f0"
VLLM_ROUTER_VERSION: Final = "0.1.17"
_HERE: Final = Path(__file__).parent
_USD_PLENTY: Final = 1_000_000
_INSTALL_SECONDS: Final = 900.0
# `import litellm` alone takes 9 s of CPU on a slow machine, its proxy twice that.
_LITELLM_READY_SECONDS: Final = 180.0


def start_litellm(running: Servers, upstream: str, *, name: str = "litellm", budgets_in: str | None = None) -> Server:
    """`budgets_in`: URL of the Redis in which a budget for each provider and each model is kept. Raises `NotStarted`."""
    program = _installed_litellm()
    config = running.folder / f"{name}.yaml"
    entries = [
        {
            "model_name": f"bench-{path}",
            "litellm_params": {
                "model": f"openai/bench-{path}",
                "api_base": upstream,
                "api_key": "upstream-key",
                **_model_limits(budgets_in),
            },
        }
        for path in PATHS
    ]
    settings = {"litellm_settings": {"num_retries": 0}, "router_settings": _provider_budget(budgets_in)}
    config.write_text(yaml.safe_dump({"model_list": entries, **settings}))
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--num_workers", "1", "--port"]
    return running.start(
        name,
        lambda port: [*command, str(port)],
        ready_path="/health/liveliness",
        ready_seconds=_LITELLM_READY_SECONDS,
        environment={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MASTER_KEY": CLIENT_KEY,
        },
    )


def _model_limits(redis_url: str | None) -> dict[str, Any]:
    """A price, which budgets need, and a budget of the model; neither is ever reached."""
    if redis_url is None:
        return {}
    price = {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7}
    return {**price, "max_budget": _USD_PLENTY, "budget_duration": "1d"}


def _provider_budget(redis_url: str | None) -> dict[str, Any]:
    if redis_url is None:
        return {}
    redis = urlsplit(redis_url)
    budgets = {"openai": {"budget_limit": _USD_PLENTY, "time_period": "1d"}}
    return {"provider_budget_config": budgets, "redis_host": redis.hostname, "redis_port": redis.port}


def start_portkey(running: Servers) -> Server:
    """Raises `NotStarted`."""
    program = _installed_portkey()
    node = shutil.which("node") or "node"
    return running.start(
        "portkey",
        lambda port: [node, str(program), f"--port={port}", "--headless"],
        ready_path="/",
        environment={"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
    )


def start_vllm_router(running: Servers, upstream: str) -> Server:
    """Before one worker that it takes for a vLLM server. Raises `NotStarted`."""
    environment = FOLDER / "vllm-router"
    program = environment / "bin" / "vllm-router"
    _install_from_pypi(environment, program, [f"vllm-router=={VLLM_ROUTER_VERSION}"], "vLLM's router")
    options = ["--worker-urls", upstream, "--policy", "round_robin", "--health-check-endpoint", "/v1/models"]
    metrics = ["--prometheus-port", str(free_port())]
    return running.start(
        "vllm-router",
        lambda port: [
            str(program), "--host", "127.0.0.1", "--port", str(port), *options, *metrics, "--log-level", "error",
        ],
        ready_path="/health",
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of the peers that are pinned here and are not Python packages of this project as well."""
    pinned: dict[str, str] = json.loads((_HERE / "package.json").read_text())["dependencies"]
    return {**pinned, "vllm-router": VLLM_ROUTER_VERSION}


def _installed_litellm() -> Path:
    environment = FOLDER / "litellm"
    program = environment / "bin" / "litellm"
    _install_from_pypi(environment, program, ["-r", str(_HERE / "litellm.txt")], "LiteLLM's proxy")
    return program


def _install_from_pypi(environment: Path, program: Path, packages: Sequence[str], program_name: str) -> None:
    if program.exists():
        return
    _make_folder()
    _run([sys.executable, "-m", "venv", str(environment)], program_name)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([str(environment / "bin" / "python"), *install, *packages], program_name)


def _installed_portkey() -> Path:
    program = FOLDER / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not program.exists():
        if shutil.which("npm") is None:
            raise NotStarted("Portkey's gateway needs node and npm")
        _make_folder()
        folder = FOLDER / "portkey"
        folder.mkdir(exist_ok=True)
        shutil.copy(_HERE / "package.json", folder / "package.json")
        _run(["npm", "install", "--no-fund", "--no-audit", "--loglevel=error", "--prefix", str(folder)], "Portkey")
    return program


def _make_folder() -> None:
    """It keeps itself out of the repository."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")


def _run(command: Sequence[str], program_name: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_INSTALL_SECONDS, cwd=ROOT, env=dict(os.environ))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotStarted(f"{program_name} could not be installed: {error}") from error
    if done.returncode:
        raise NotStarted(f"{program_name} could not be installed: {done.stderr.decode(errors='replace')[-1_500:]}")
