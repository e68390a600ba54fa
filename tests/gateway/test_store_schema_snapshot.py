"""A new SQLite store is created from a snapshot, without Alembic, and has the same schema."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.store import schema_snapshot
from gateway.store.database import Database
from gateway.store.migration import downgrade, upgrade
from gateway.store.schema_snapshot import embedded_schema_file
from gateway.store.tables import SCHEMA_REVISION

NOW_MS = 1_790_000_000_000


def contents(file: Path) -> list[str]:
    """The contents of the file as SQL, without the enclosing transaction."""
    connection = sqlite3.connect(file)
    try:
        return list(connection.iterdump())[1:-1]
    finally:
        connection.close()


async def migrated(file: Path) -> list[str]:
    database = Database(f"sqlite:///{file}")
    await database.open()
    try:
        await database.migrate(NOW_MS)
        await database.check_schema()
    finally:
        await database.close()
    return contents(file)


async def by_alembic(file: Path) -> list[str]:
    database = Database(f"sqlite:///{file}")
    await database.open()
    try:
        async with database.begin() as connection:
            await upgrade(connection, NOW_MS)
    finally:
        await database.close()
    return contents(file)


async def test_snapshot_equals_the_schema_of_the_migrations(tmp_path: Path) -> None:
    statements = await by_alembic(tmp_path / "alembic.db")
    if os.environ.get("FAREBOX_WRITE_SNAPSHOT"):
        embedded_schema_file().write_text("\n\n".join(statements) + "\n", encoding="utf-8")
    assert await migrated(tmp_path / "new.db") == statements, (
        "run `make snapshot` to regenerate migrations/embedded.sql"
    )


async def test_outdated_snapshot_is_migrated_to_the_current_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = await by_alembic(tmp_path / "alembic.db")
    database = Database(f"sqlite:///{tmp_path / 'alembic.db'}")
    await database.open()
    async with database.begin() as connection:
        await downgrade(connection, "0003")
    await database.close()
    older = tmp_path / "older.sql"
    older.write_text("\n\n".join(contents(tmp_path / "alembic.db")))
    monkeypatch.setattr(schema_snapshot, "embedded_schema_file", lambda: older)
    assert sorted(await migrated(tmp_path / "new.db")) == sorted(statements)


async def test_file_with_other_tables_is_migrated_by_alembic(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "shared.db")
    connection.execute("CREATE TABLE notes (text TEXT)")
    connection.close()
    assert "CREATE TABLE notes (text TEXT);" in await migrated(tmp_path / "shared.db")


async def test_failing_snapshot_leaves_an_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.sql"
    broken.write_text("CREATE TABLE notes (text TEXT);\n\nCREATE TABLE notes (text TEXT);\n")
    monkeypatch.setattr(schema_snapshot, "embedded_schema_file", lambda: broken)
    with pytest.raises(Exception, match="already exists"):
        await migrated(tmp_path / "new.db")
    assert contents(tmp_path / "new.db") == []


def test_first_start_does_not_import_alembic(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\nfrom gateway.store.database import Database\n"
        "async def main():\n"
        "    database = Database('sqlite:///' + sys.argv[1])\n"
        "    await database.open()\n"
        "    print(await database.migrate(0), 'alembic' in sys.modules, 'sqlalchemy.orm' in sys.modules)\n"
        "    await database.close()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "new.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [SCHEMA_REVISION, "False", "False"]
