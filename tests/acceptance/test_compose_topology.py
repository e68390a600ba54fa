"""What `docker-compose.yml` describes, as processes: two gateways behind a load balancer, with Redis and Postgres.

No container engine runs where these tests run. The gateways get the compose file's own variables, nginx and Caddy their own
configuration; without them (see tests/acceptance/load_balancers.py) a stand-in shares connections out.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.load_balancers import caddy, nginx, stand_in
from tests.acceptance.scaled_out import redis_or_skip
from tests.acceptance.serving import budget_comment, events_of
from tests.farebox_process import FareboxProcess, Reply, tagged
from tests.redis_server import RedisServer
from tests.waiting import until

pytest_plugins = ["tests.store_fixtures"]

ROOT = Path(__file__).parents[2]
SECRETS = {"REDIS_PASSWORD": "redis-secret", "FAREBOX_ADMIN_KEY": "admin-" + "0" * 42}
GATEWAYS = ("gateway-1", "gateway-2")
BUDGET = 1_000
CALLS = 40


def variables(gateway: str, redis: RedisServer, store: str) -> dict[str, str]:
    """The environment of a gateway's service, with this machine's addresses instead of the services' names."""
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][gateway]
    variables_of_file = {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda match: SECRETS.get(match[1], ""), value)
        for name, value in service["environment"].items()
    }
    ledger = variables_of_file["FAREBOX_STORAGE_LEDGER"].replace("redis:6379", f"127.0.0.1:{redis.port}")
    own = {"FAREBOX_STORAGE_LEDGER": ledger, "FAREBOX_STORAGE_STORE": store, "FAREBOX_SERVER_HOST": "127.0.0.1"}
    # The configuration file and the spool's volume are the test's.
    return {
        name: value
        for name, value in {**variables_of_file, **own}.items()
        if value and "CONFIG" not in name and "SPOOL" not in name
    }


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with redis_or_skip("--appendfsync", "everysec") as server:
        server.command("CONFIG", "SET", "requirepass", SECRETS["REDIS_PASSWORD"])
        yield server


@pytest.fixture
def gateways(redis_server: RedisServer, empty_postgres_url: str, tmp_path: Path) -> Iterator[list[FareboxProcess]]:
    """Started as in compose: the migration first, then both gateways at once."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config.example.yaml").read_text())
    migrating = {**os.environ, **variables("migrate", redis_server, empty_postgres_url), "PYTHONPATH": str(ROOT)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "gateway", "--config", str(tmp_path / "config.yaml"), "migrate"]
    subprocess.run(command, env=migrating, check=True, capture_output=True, cwd=tmp_path)
    started = []
    for name in GATEWAYS:
        (tmp_path / name).mkdir()
        environment = variables(name, redis_server, empty_postgres_url)
        started.append(FareboxProcess(tmp_path / name, config, environment=environment))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(FareboxProcess.start, started))
    yield started
    for gateway in started:
        if gateway.process is not None and gateway.process.poll() is None:
            gateway.kill()


def key_for_clients(front: FareboxProcess) -> dict[str, str]:
    admin = {"authorization": f"Bearer {SECRETS['FAREBOX_ADMIN_KEY']}"}
    created = front.request("POST", "/api/keys", {"name": "ci"}, admin)
    assert created.status in (200, 201), created.body
    return {"authorization": f"Bearer {created.json()['key']}"}


def served_by(gateway: FareboxProcess) -> float:
    lines = gateway.get("/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("farebox_requests_total{"))


def accepts_key(gateway: FareboxProcess, key: Mapping[str, str]) -> bool:
    return gateway.get("/v1/models", key).status == 200


@pytest.mark.parametrize("balancer", [stand_in, nginx, caddy], ids=["stand-in", "nginx", "caddy"])
def test_two_gateways_behind_a_load_balancer_keep_one_budget(
    gateways: list[FareboxProcess], tmp_path: Path, balancer: Any
) -> None:
    ports = [int(gateway.url.rsplit(":", 1)[1]) for gateway in gateways]
    with balancer(tmp_path, ports) as port:
        front = replace(gateways[0], process=None, url=f"http://127.0.0.1:{port}")
        until(lambda: is_serving(front), 20, "somebody listens at the front")
        assert front.chat("hi", tagged("wf", "r-0"), "mock", max_tokens=20).status == 401
        key = key_for_clients(front)
        for gateway in gateways:  # the other gateway learns of it within two seconds
            until(partial(accepts_key, gateway, key), 20, "every gateway knows the key")

        def call(run: str, **fields: Any) -> Reply:
            headers = {**key, **tagged("wf", run, budget_tokens=str(BUDGET), options="no-clamp")}
            return front.chat("hi", headers, "mock", max_tokens=100, **fields)

        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda _: call("r-1"), range(CALLS)))
        statuses = Counter(reply.status for reply in replies)
        # 503: on a busy machine Redis may be too slow for a moment, and a budget that cannot be asked is not spent.
        assert set(statuses) <= {200, 402, 429, 503}, statuses
        used = sum(reply.json()["usage"]["total_tokens"] for reply in replies if reply.status == 200)
        assert 0 < used <= BUDGET
        assert all(served_by(gateway) > 0 for gateway in gateways)
        events = events_of(call("r-2", stream=True).body.decode())
        assert budget_comment(events)

        gateways[0].kill()
        # nginx finds out by a connection that breaks, and the client that had it asks again.
        until(lambda: [call(f"r-{number}").status for number in range(10, 15)] == [200] * 5, 20, "the other one serves")
        assert gateways[1].stop() == 0


def is_serving(front: FareboxProcess) -> bool:
    with contextlib.suppress(OSError):
        return front.get("/v1/models").status in (200, 401)
    return False
