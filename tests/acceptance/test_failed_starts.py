"""A gateway that cannot keep budgets, or record usage, does not start: it says why in one sentence, and exits."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.store.tables import SCHEMA_REVISION
from tests.acceptance.scaled_out import redis_or_skip, settings_for
from tests.postgres_server import execute
from tests.redis_server import RedisServer

pytest_plugins = ["tests.store_fixtures"]

ROOT = Path(__file__).parents[2]
MIGRATE = textwrap.dedent("""
    import asyncio, sys, time
    from gateway.store.database import Database

    async def main(url):
        store = Database(url)
        await store.open()
        print(await store.migrate(time.time_ns() // 1_000_000))
        await store.close()

    asyncio.run(main(sys.argv[1]))
""")


def run_until_exit(folder: Path, config: dict[str, Any], *arguments: str) -> tuple[int, list[str]]:
    """The exit code of a gateway that is expected to end by itself, and its output lines."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "--config", str(path), "serve", "--port", "0", *arguments],
        cwd=folder,
        env={**environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("ledger", "why"),
    [
        ("rediss://127.0.0.1:1/0?ssl_certfile=/no/client.crt", "ssl_certfile of storage.ledger"),
        ("redis://127.0.0.1:1/main", "'main' is not the number of a Redis database"),
    ],
    ids=["missing-certificate", "named-database"],
)
def test_unusable_ledger_url_ends_the_start_with_a_sentence(tmp_path: Path, ledger: str, why: str) -> None:
    check_sentence(*run_until_exit(tmp_path, settings_for(ledger, "sqlite:///store.db")), why)


def check_sentence(code: int, lines: list[str], *words: str) -> None:
    assert code != 0
    sentences = [line for line in lines if line.startswith("farebox: ")]
    assert len(sentences) == 1, lines
    assert all(word in sentences[0] for word in words), sentences
    assert not any("Traceback" in line for line in lines), lines


@pytest.mark.parametrize(
    ("revision", "words"),
    [("0000", ["older than this gateway's", "farebox migrate"]), ("9999", ["newer than this gateway's", "upgrade"])],
)
async def test_schema_of_another_revision_prevents_the_start(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path, revision: str, words: list[str]
) -> None:
    await execute(postgres_url, f"UPDATE alembic_version SET version_num = '{revision}'")
    outcome = await asyncio.to_thread(run_until_exit, tmp_path, settings_for(redis_server.url, postgres_url))
    check_sentence(*outcome, revision, *words)


async def test_store_without_tables_prevents_the_start(
    redis_server: RedisServer, empty_postgres_url: str, tmp_path: Path
) -> None:
    outcome = await asyncio.to_thread(run_until_exit, tmp_path, settings_for(redis_server.url, empty_postgres_url))
    check_sentence(*outcome, "no tables yet", "farebox migrate")


async def test_gateway_exits_when_its_workers_cannot_start(
    redis_server: RedisServer, empty_postgres_url: str, tmp_path: Path
) -> None:
    config = settings_for(redis_server.url, empty_postgres_url)
    code, lines = await asyncio.to_thread(run_until_exit, tmp_path, config, "--workers", "2")
    assert code != 0
    assert any("no tables yet" in line for line in lines), lines
    assert not any("Traceback" in line for line in lines), lines


async def test_redis_that_may_evict_keys_prevents_the_start(postgres_url: str, tmp_path: Path) -> None:
    with redis_or_skip("--maxmemory-policy", "allkeys-lru") as server:
        outcome = await asyncio.to_thread(run_until_exit, tmp_path, settings_for(server.url, postgres_url))
    check_sentence(*outcome, "maxmemory-policy is allkeys-lru", "noeviction")


async def test_several_workers_on_an_embedded_ledger_prevent_the_start(postgres_url: str, tmp_path: Path) -> None:
    config = settings_for("sqlite:///ledger.db", postgres_url, server={"workers": 2})
    code, lines = await asyncio.to_thread(run_until_exit, tmp_path, config)
    assert (code, len(lines)) == (2, 1), lines
    assert "set storage.ledger to redis://" in lines[0]


async def test_two_concurrent_migrations_succeed(empty_postgres_url: str) -> None:
    pipe = asyncio.subprocess.PIPE
    starters = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", MIGRATE, empty_postgres_url, cwd=ROOT, stdout=pipe, stderr=pipe
        )
        for _ in range(2)
    ]
    outcomes = await asyncio.gather(*(starter.communicate() for starter in starters))
    assert [starter.returncode for starter in starters] == [0, 0], outcomes
    assert [out.decode().strip() for out, _ in outcomes] == [SCHEMA_REVISION] * 2


def test_store_whose_folder_cannot_be_written_prevents_the_start(tmp_path: Path) -> None:
    (
        tmp_path / "store.db.operator"
    ).mkdir()  # stands for a full disk or a missing right, which the tests' user may have
    outcome = run_until_exit(tmp_path, settings_for("sqlite:///ledger.db", "sqlite:///store.db"))
    check_sentence(*outcome, "The store's folder . cannot be written", "free some space", "storage.store")
