"""A new SQLite store in one go. `migrations/embedded.sql` has what all migrations together make of an empty file, so that a first start
needs no Alembic: 12 MB, and a tenth of a second. After a new migration `make snapshot` writes it anew; one that is behind is brought
forward by the migrations that it lacks."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import Connection

import gateway


def migrations_folder() -> Path:
    """In a wheel the history lies inside the package, in a source tree beside it."""
    package = Path(gateway.__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def snapshot_file() -> Path:
    return migrations_folder() / "embedded.sql"


def make_tables(connection: Connection) -> None:
    """Inside the caller's transaction. A file that has anything in it is left alone."""
    if connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar():
        return
    for statement in snapshot_file().read_text(encoding="utf-8").split("\n\n"):
        connection.exec_driver_sql(statement)
