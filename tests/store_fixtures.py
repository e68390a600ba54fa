"""Stores to test on: a plugin, to be named in `pytest_plugins` of a test module and never imported.

Every test that asks for `db` runs on SQLite and on Postgres. The Postgres server is the one of `TEST_DATABASE_URL` (its user
must be allowed to make databases), else a private one, started once a session. Every test gets a database of its own,
copied from a migrated template.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.store.database import Database
from tests.postgres_server import execute, private_server, with_database
from tests.store_events import NOW_MS


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """URL of the server's maintenance database."""
    configured_url = os.environ.get("TEST_DATABASE_URL")
    if configured_url:
        yield configured_url
        return
    with private_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_server_url: str) -> Iterator[str]:
    """Name of a migrated database to copy."""
    name = f"farebox_template_{uuid.uuid4().hex[:12]}"

    async def make() -> None:
        await execute(postgres_server_url, f"CREATE DATABASE {name}")
        database = Database(with_database(postgres_server_url, name))
        await database.open()
        try:
            await database.migrate(NOW_MS)
        finally:
            await database.close()

    asyncio.run(make())
    yield name
    asyncio.run(execute(postgres_server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@pytest.fixture
async def empty_postgres_url(postgres_server_url: str) -> AsyncIterator[str]:
    """A database without tables."""
    name = f"farebox_test_{uuid.uuid4().hex[:12]}"
    await execute(postgres_server_url, f"CREATE DATABASE {name}")
    yield with_database(postgres_server_url, name)
    await execute(postgres_server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
async def postgres_url(postgres_server_url: str, postgres_template: str) -> AsyncIterator[str]:
    """A migrated database."""
    name = f"farebox_test_{uuid.uuid4().hex[:12]}"
    await execute(postgres_server_url, f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    yield with_database(postgres_server_url, name)
    await execute(postgres_server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/store.db"
    return str(request.getfixturevalue("empty_postgres_url"))


@pytest.fixture
async def db(store_url: str) -> AsyncIterator[Database]:
    database = Database(store_url)
    await database.open()
    await database.migrate(NOW_MS)
    yield database
    await database.close()
