"""A real gateway process on a real socket, for acceptance and fault tests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

READY_SECONDS = 40.0
# Watched, a test fails where its gateway blocks the event loop; starting and calling then takes longer.
MODULE = "tests.watched_gateway" if os.environ.get("FAREBOX_TEST_WATCHED") == "1" else "gateway"
BLOCKED = "This blocks the event loop: "  # how tests/watched_gateway.py begins what it writes to the log


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FareboxProcess:
    """`config` is written to a file in `folder`; the embedded engines live there too, so that a restart finds its data."""

    folder: Path
    config: dict[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()  # a command that runs the gateway somewhere special
    module: str = MODULE  # `gateway` where watching would distort the result, as in measurements of speed
    process: subprocess.Popen[bytes] | None = None
    url: str = ""

    def start(self) -> None:
        """Returns when the gateway is ready. Raises RuntimeError with its log when it is not."""
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config))
        log = (self.folder / "gateway.log").open("ab")
        offset = (self.folder / "gateway.log").stat().st_size
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FAREBOX_", "OPENAI_", "ANTHROPIC_"))
        }
        self.process = subprocess.Popen(
            [
                *self.prefix,
                sys.executable,
                "-m",
                self.module,
                "--config",
                str(path),
                "serve",
                "--port",
                "0",
                *self.arguments,
            ],
            stdout=log,
            stderr=log,
            cwd=self.folder,
            env={**environ, "PYTHONPATH": str(Path(__file__).parents[1]), **self.environment},
        )
        log.close()
        self._wait_until_ready(offset)

    def _wait_until_ready(self, offset: int) -> None:
        assert self.process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            new_log = self.log[offset:]
            match = re.search(r"Farebox listens on (http://\S+)", new_log)
            if match:
                self.url = match[1]
                with contextlib.suppress(OSError):
                    if self.get("/readyz").status == 200:
                        return
            if self.process.poll() is not None:
                raise RuntimeError(f"the gateway ended with {self.process.returncode}:\n{new_log}")
            time.sleep(0.05)
        raise RuntimeError(f"the gateway was not ready in {READY_SECONDS} s:\n{self.log[offset:]}")

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9: no clean-up runs."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM. Returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(40)
        self.check_that_nothing_blocked()
        return code

    def check_that_nothing_blocked(self) -> None:
        """See tests/watched_gateway.py: an error that was caught is in the log all the same."""
        _, marker, blocked_at = self.log.partition(BLOCKED)
        assert not marker, f"a call blocked the event loop: {blocked_at[:8000]}"

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 60
    ) -> Reply:
        """Any status is an answer."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"content-type": "application/json", **(headers or {})}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Reply(
                    answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
                )
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, {name.lower(): value for name, value in error.headers.items()}, error.read())

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.request("GET", path, headers=headers)

    def chat(
        self, content: str = "hi", headers: Mapping[str, str] | None = None, model: str = "fake", **fields: Any
    ) -> Reply:
        body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
        return self.request("POST", "/v1/chat/completions", body, headers)


def tagged(workflow: str = "wf", run: str = "r-1", step: str = "s", **other_tags: str) -> dict[str, str]:
    """Headers of a tagged call; `budget_tokens="100"` becomes `x-workflow-budget-tokens: 100`."""
    extra = {f"x-workflow-{name.replace('_', '-')}": value for name, value in other_tags.items()}
    return {"x-workflow-id": workflow, "x-workflow-run-id": run, "x-workflow-step": step, **extra}


def fake_model(url: str, name: str = "fake", **info: Any) -> dict[str, Any]:
    """A `model_list` entry for the fake provider, priced and with a maximum output."""
    priced = {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7, "max_output_tokens": 4096}
    return {
        "model_name": name,
        "litellm_params": {"model": f"openai/{name}", "api_base": url, "api_key": "upstream-key"},
        "model_info": {**priced, **info},
    }


@contextlib.contextmanager
def running_farebox(folder: Path, config: dict[str, Any], **options: Any) -> Iterator[FareboxProcess]:
    gateway = FareboxProcess(folder, config, **options)
    gateway.start()
    try:
        yield gateway
    finally:
        if gateway.process is not None and gateway.process.poll() is None:
            gateway.process.send_signal(signal.SIGTERM)
            try:
                gateway.process.wait(10)
            except subprocess.TimeoutExpired:
                gateway.process.kill()
                gateway.process.wait(10)
    gateway.check_that_nothing_blocked()
