"""Creates a new SQLite store at once. `migrations/embedded.sql` has the result of all migrations on an empty file, so that a
first start needs no Alembic: 12 MB, and a tenth of a second. After a new migration, `make snapshot` updates it; if it is
outdated, the missing migrations are run."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import Connection

import gateway


def migrations_folder() -> Path:
    """In a wheel the migrations are inside the package, in a source tree beside it."""
    package = Path(gateway.__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def embedded_schema_file() -> Path:
    return migrations_folder() / "embedded.sql"


def create_tables(connection: Connection) -> None:
    """Runs in the caller's transaction. A file that is not empty is left alone."""
    if connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar():
        return
    for statement in embedded_schema_file().read_text(encoding="utf-8").split("\n\n"):
        connection.exec_driver_sql(statement)
