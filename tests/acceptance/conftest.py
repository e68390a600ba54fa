"""A Redis server, and the command line with and without a running gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.command_line import Cli, settings_of
from tests.acceptance.scaled_out import redis_or_skip
from tests.farebox_process import FareboxProcess
from tests.ports import free_port
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """Modules whose server needs other options define their own."""
    with redis_or_skip() as server:
        yield server


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """With a configuration whose gateway does not run."""
    (tmp_path / "config.yaml").write_text(json.dumps(settings_of(tmp_path, free_port())))
    return Cli(tmp_path)


@pytest.fixture
def cli_and_gateway(tmp_path: Path) -> Iterator[tuple[Cli, FareboxProcess]]:
    """With a configuration whose gateway runs, on embedded engines."""
    port = free_port()
    gateway = FareboxProcess(tmp_path, settings_of(tmp_path, port), arguments=("--port", str(port)))
    gateway.start()
    yield Cli(tmp_path), gateway
    gateway.stop()
