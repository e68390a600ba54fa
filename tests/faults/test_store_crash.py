"""kill -9 during writes, a full disk, a locked or invalid file: no event is lost or duplicated."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.store import runs, usage, usage_report
from gateway.store.database import Database, StoreUnavailable
from gateway.store.runs import RunFilter
from gateway.store.usage_report import GroupBy, UsageFilter
from tests.faults.store_writer import BATCH
from tests.store_events import NOW_MS, entry, rows_of

pytest_plugins = ("tests.store_fixtures",)

EVENTS = 2_000
KILLS = 4


async def kill_writer_after(url: str, commits: int, pause_s: float) -> None:
    """Let a writer commit a few batches, then kill it a moment later, wherever it is."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.store_writer", url, str(EVENTS), stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    for _ in range(commits):
        assert await writer.stdout.readline() == b"committed\n"
    await asyncio.sleep(pause_s)
    writer.kill()
    await writer.communicate()


async def test_repeatedly_killed_writer_loses_and_duplicates_no_event(store_url: str) -> None:
    chance = random.Random(11)
    for kill in range(KILLS):
        await kill_writer_after(store_url, commits=10 + 20 * kill, pause_s=chance.random() / 20)
    db = Database(store_url)
    await db.open()
    rows = await rows_of(db)
    ids = {row["id"] for row in rows}
    assert len(ids) == len(rows) >= 10 * BATCH
    # Only whole batches, because each is one transaction.
    assert len(rows) % BATCH == 0
    totals = (await usage_report.report(db, GroupBy.RUN, UsageFilter())).total
    assert (totals.calls, totals.total_tokens) == (len(rows), len(rows) * 150)
    everything = [
        entry(f"e{number}", run=f"r{number % 13}", at_ms=1_800_000_000_000 + number) for number in range(EVENTS)
    ]
    done = await usage.insert_entries(db, everything, NOW_MS)
    assert (done.inserted, done.known) == (EVENTS - len(rows), len(rows))
    page = await runs.list_runs(db, RunFilter(), 50)
    assert sum(run.sums.total_tokens for run in page.runs) == EVENTS * 150
    hourly = (await usage_report.report(db, GroupBy.WORKFLOW, UsageFilter())).total
    assert hourly.total_tokens == EVENTS * 150
    await db.close()


async def test_full_disk_refuses_the_batch_and_accepts_it_later(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/store.db")
    await db.open()
    await db.migrate(NOW_MS)
    async with db.begin() as connection:
        pages = (await connection.execute(text("PRAGMA page_count"))).scalar_one()
    async with db.begin() as connection:  # for SQLite the same as a full disk
        await connection.execute(text(f"PRAGMA max_page_count = {pages + 2}"))
    batch = [entry(f"e{number}", user="x" * 400) for number in range(500)]
    with pytest.raises(StoreUnavailable, match="full"):
        await usage.insert_entries(db, batch, NOW_MS)
    assert await rows_of(db) == []
    async with db.begin() as connection:
        await connection.execute(text("PRAGMA max_page_count = 1000000"))
    assert (await usage.insert_entries(db, batch, NOW_MS)).inserted == 500
    await db.close()


async def test_file_locked_by_another_program_is_unavailable_until_unlocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.sqlite_engine.BUSY_TIMEOUT_MS", 50)
    db = Database(f"sqlite:///{tmp_path}/store.db")
    await db.open()
    await db.migrate(NOW_MS)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await usage.insert_entries(db, [entry("a")], NOW_MS)
    other.execute("ROLLBACK")
    other.close()
    assert (await usage.insert_entries(db, [entry("a")], NOW_MS)).inserted == 1
    await db.close()


async def test_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    db = Database(f"sqlite:///{tmp_path}/file/store.db")
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await db.open()


async def test_file_that_is_not_a_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is not a database, it is a letter" * 100)
    db = Database(f"sqlite:///{tmp_path}/store.db")
    await db.open()
    with pytest.raises(StoreUnavailable, match="not a database"):
        await db.check_schema()
    await db.close()


async def test_copy_of_an_open_store_has_every_committed_row(tmp_path: Path) -> None:
    """A backup of both files, as a snapshot of a volume takes it, opens with all that was committed."""
    db = Database(f"sqlite:///{tmp_path}/store.db")
    await db.open()
    await db.migrate(NOW_MS)
    await usage.insert_entries(db, [entry(f"e{number}") for number in range(50)], NOW_MS)
    (tmp_path / "copy").mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"store.db{suffix}", tmp_path / "copy" / f"store.db{suffix}")
    await db.close()
    copy = Database(f"sqlite:///{tmp_path}/copy/store.db")
    await copy.open()
    await copy.check_schema()
    assert len(await rows_of(copy)) == 50
    await copy.close()
