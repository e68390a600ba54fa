"""The embedded ledger on full disks, with damaged files, and with other processes on its file.

Each fault is an error that says what to do; nothing is granted meanwhile, and what was acknowledged is there when it is repaired.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.ledger.port import Ledger, LedgerError, LedgerUnavailable
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_schema import APPLICATION_ID, VERSION
from gateway.ledger.sqlite_worker import FILE_CHECK_INTERVAL_S
from policies.amounts import Amount
from policies.reservation import Granted, State
from tests.faults.ledger_child import request

ROOT = Path(__file__).parents[2]
NOBODY = 65_534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@contextlib.asynccontextmanager
async def open_ledger(path: Path) -> AsyncIterator[SqliteLedger]:
    ledger = SqliteLedger(path)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


@contextlib.contextmanager
def child(mode: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.faults.ledger_child", mode, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def settled(ledger: Ledger) -> int:
    (balance,) = await ledger.balances("p", ["run:r"])
    return balance.settled.tokens


async def book(ledger: Ledger, name: str, tokens: int = 10) -> None:
    assert isinstance(await ledger.reserve("p", request(name, tokens)), Granted)
    assert (await ledger.settle("p", name, Amount(tokens), b"{}")).state is State.SETTLED


async def book_until_refused(ledger: Ledger) -> tuple[int, LedgerError]:
    """The tokens whose settlement was acknowledged, and the error that ended it."""
    acknowledged = 0
    try:
        for n in range(1_000):
            await book(ledger, f"c{n}")
            acknowledged += 10
    except LedgerError as error:
        return acknowledged, error
    raise AssertionError("the disk never failed")


async def make_crashed_ledger(path: Path) -> None:
    """A ledger file with 10 tokens booked, as a killed process leaves it: the last changes are only in the -wal."""
    copy = path.parent / "copy"
    copy.mkdir()
    async with open_ledger(path) as ledger:
        await book(ledger, "before")
        for file in (path, path.with_name("ledger.db-wal")):
            shutil.copy(file, copy / file.name)
    for file in copy.iterdir():
        shutil.copy(file, path.with_name(file.name))


def execute(path: Path, statement: str, *parameters: object) -> object:
    """Execute and commit a statement in another connection. Returns the first row of its result."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        return other.execute(statement, parameters).fetchone()


# --- other processes ---


async def test_second_process_is_refused_with_the_pid_of_the_first(path: Path) -> None:
    with child("hold", path) as first:
        assert await asyncio.to_thread(line_of, first) == "open"
        with pytest.raises(LedgerError, match=rf"in use by process {first.pid}\b.*Stop that process"):
            await SqliteLedger(path).open()
        first.kill()
        first.wait()
        assert path.with_name("ledger.db.lock").read_text().strip() == str(first.pid)
        async with open_ledger(path) as ledger:  # the lock of a killed process is taken over
            await book(ledger, "c1")
            assert path.with_name("ledger.db.lock").read_text().strip() == str(os.getpid())


async def test_second_ledger_in_the_same_process_is_refused(path: Path) -> None:
    async with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match=rf"in use by process {os.getpid()}\b"):
            await SqliteLedger(path).open()
        await book(ledger, "c1")


async def test_file_locked_by_another_program_is_unavailable(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await book(ledger, "c1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE meta SET value = value")
    with pytest.raises(LedgerUnavailable, match="another program has it open"):
        await SqliteLedger(path).open()
    other.execute("ROLLBACK")
    other.close()
    async with open_ledger(path) as ledger:
        assert await settled(ledger) == 10


async def test_open_ledger_locks_out_other_programs(path: Path) -> None:
    async with open_ledger(path):
        other = sqlite3.connect(path, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("SELECT * FROM meta")
        other.close()


# --- disks ---


async def test_full_disk_refuses_until_there_is_space(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await book(ledger, "before")
        worker = ledger._require_worker()
        pages = await worker.perform(lambda _: worker._file._pragma("page_count"))
        await worker.perform(lambda _: worker._file._pragma(f"max_page_count = {pages}"))
        acknowledged, error = await book_until_refused(ledger)
        assert isinstance(error, LedgerUnavailable)
        assert "the disk is full, nothing was booked. Free some space" in str(error)
        assert await settled(ledger) == 10 + acknowledged
        await worker.perform(lambda _: worker._file._pragma("max_page_count = 1000000"))
        before = await settled(ledger)
        await book(ledger, "after")
        assert await settled(ledger) == before + 10


async def test_failed_write_is_not_acknowledged(path: Path) -> None:
    """The log cannot grow, as on a quota: operations fail at their commit, and go on when it can grow again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with open_ledger(path) as ledger:
        await book(ledger, "before")
        size = path.with_name("ledger.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200_000, hard))
        try:
            acknowledged, error = await book_until_refused(ledger)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert isinstance(error, LedgerUnavailable)
        assert "nothing was booked" in str(error)
        assert acknowledged > 0
        assert await settled(ledger) == 10 + acknowledged
        await book(ledger, "after")
        total = await settled(ledger)
    async with open_ledger(path) as ledger:
        assert await settled(ledger) == total


@pytest.mark.parametrize("bytes_max", [4_096, 20_000, 1_000_000])
async def test_ledger_closed_on_a_full_disk_can_be_opened_again(path: Path, bytes_max: int) -> None:
    """No byte can be written at the end, or some, so that one file can grow and the other one cannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ledger = SqliteLedger(path)
    await ledger.open()
    for n in range(100):
        await book(ledger, f"c{n}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, hard))
    try:
        await ledger.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    async with open_ledger(path) as ledger:
        assert (await settled(ledger), await ledger.outbox_size()) == (1_000, 100)


async def test_ledger_that_cannot_be_marked_as_closed_can_be_opened_again(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await book(ledger, "c1")
        worker = ledger._require_worker()
        await worker.perform(lambda _: worker._file.connection.execute("PRAGMA query_only = ON"))
    async with open_ledger(path) as ledger:
        assert await settled(ledger) == 10


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("folder_mode", "file_mode", "message"),
    [(0o755, 0o666, "its folder cannot be written"), (0o777, 0o444, "it cannot be written")],
)
async def test_read_only_file_or_folder_is_refused(folder_mode: int, file_mode: int, message: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        async with open_ledger(path) as ledger:
            await book(ledger, "c1")
        path.with_name("ledger.db.lock").chmod(0o666 if folder_mode == 0o777 else 0o600)
        path.chmod(file_mode)
        Path(folder).chmod(folder_mode)
        with child("try", path, NOBODY) as process:
            answer = await asyncio.to_thread(line_of, process)
        assert answer.startswith("LedgerUnavailable:")
        assert message in answer
        assert "Give this user the right" in answer
        async with open_ledger(path) as ledger:
            assert await settled(ledger) == 10


# --- damage ---


async def test_missing_wal_after_a_crash_is_refused(path: Path) -> None:
    await make_crashed_ledger(path)
    log = path.with_name("ledger.db-wal")
    log_content = log.read_bytes()
    log.unlink()
    with pytest.raises(LedgerError, match=r"ledger\.db-wal is not beside it.*Put that file back"):
        await SqliteLedger(path).open()
    log.write_bytes(log_content)
    async with open_ledger(path) as ledger:
        assert await settled(ledger) == 10


async def test_wal_deleted_while_open_stops_the_ledger_and_loses_nothing(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await book(ledger, "before")
        path.with_name("ledger.db-wal").unlink()
        await asyncio.sleep(2 * FILE_CHECK_INTERVAL_S)
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"deleted or replaced.*Stop this process"):
                await ledger.reserve("p", request("c1", 10))
    async with open_ledger(path) as ledger:
        assert await settled(ledger) == 10
        assert (await ledger.void("p", "c1")).state is None


async def test_file_deleted_while_open_is_written_anew_when_the_ledger_is_closed(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await book(ledger, "before")
        assert ledger.health.is_available
        path.unlink()
        await asyncio.sleep(2 * FILE_CHECK_INTERVAL_S)
        with pytest.raises(LedgerUnavailable, match=r"deleted or replaced.*Stop this process"):
            await ledger.reserve("p", request("c1", 10))
        assert "deleted or replaced" in ledger.health.reason
        epoch = await ledger.epoch()
    async with open_ledger(path) as ledger:
        assert (await settled(ledger), await ledger.outbox_size(), await ledger.epoch()) == (10, 1, epoch)
        assert ledger.health.is_available


async def test_file_replaced_while_open_stops_the_ledger(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await book(ledger, "before")
        path.rename(path.with_name("moved.db"))
        path.write_bytes(b"")
        await asyncio.sleep(2 * FILE_CHECK_INTERVAL_S)
        with pytest.raises(LedgerError, match="deleted or replaced"):
            await ledger.reserve("p", request("c1", 10))
        path.unlink()
        path.with_name("moved.db").rename(path)
        await book(ledger, "after")


async def test_replaced_file_is_rescued_beside_the_other_when_the_ledger_is_closed(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await book(ledger, "before")
        path.unlink()
        path.write_bytes(b"of another program")
    assert path.read_bytes() == b"of another program"
    path.with_name("ledger.db.rescued").rename(path)
    async with open_ledger(path) as ledger:
        assert (await settled(ledger), await ledger.outbox_size()) == (10, 1)


@pytest.mark.parametrize("pages", [0.02, 1, 5])
async def test_truncated_file_is_refused(path: Path, pages: float) -> None:
    async with open_ledger(path) as ledger:
        for n in range(50):
            await book(ledger, f"c{n}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(4096 * pages)])
    with pytest.raises(LedgerError, match=r"it is damaged\. Restore it from a backup; or move it away"):
        await SqliteLedger(path).open()
    path.write_bytes(whole)
    async with open_ledger(path) as ledger:
        assert await settled(ledger) == 500


async def test_overwritten_page_is_refused(path: Path) -> None:
    async with open_ledger(path) as ledger:
        for n in range(50):
            await book(ledger, f"c{n}")
    whole = bytearray(path.read_bytes())
    whole[4096 * 2 : 4096 * 5] = b"\xa5" * 4096 * 3
    path.write_bytes(whole)
    with pytest.raises(LedgerError, match="it is damaged"):
        await SqliteLedger(path).open()


async def test_emptied_file_is_a_new_ledger_with_a_new_epoch(path: Path) -> None:
    async with open_ledger(path) as ledger:
        before = await ledger.epoch()
    path.write_bytes(b"")
    async with open_ledger(path) as ledger:
        assert await ledger.epoch() != before


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["CREATE TABLE notes (text)"], "a database of another program"),
        ([f"PRAGMA application_id = {APPLICATION_ID + 1}"], "a database of another program"),
    ],
)
async def test_database_of_another_program_is_refused_and_unchanged(
    path: Path, statements: list[str], message: str
) -> None:
    for statement in statements:
        execute(path, statement)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=message):
        await SqliteLedger(path).open()
    assert path.read_bytes() == before


async def test_file_of_a_newer_version_is_refused(path: Path) -> None:
    async with open_ledger(path):
        pass
    execute(path, f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(LedgerError, match=rf"newer Farebox \(schema {VERSION + 1}, this one knows {VERSION}\)"):
        await SqliteLedger(path).open()


async def test_file_of_version_1_is_upgraded(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await book(ledger, "c1")
    execute(path, "DROP TABLE journal")
    execute(path, "PRAGMA user_version = 1")
    for expected in (10, 20):
        async with open_ledger(path) as ledger:
            assert await settled(ledger) == expected
            await book(ledger, f"more {expected}")
    assert execute(path, "PRAGMA user_version") == (VERSION,)


async def test_damaged_journal_is_refused_and_kept(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await book(ledger, "c1")
    execute(path, "INSERT INTO journal (changes) VALUES (?)", b'[[["half of')
    for _ in range(2):
        with pytest.raises(LedgerError, match="the journal of the ledger is damaged"):
            await SqliteLedger(path).open()
    assert execute(path, "SELECT count(*) FROM journal") == (1,)


async def test_file_that_is_not_a_database_is_refused(path: Path) -> None:
    path.write_text("to whom it may concern\n" * 100)
    with pytest.raises(LedgerError, match="it is damaged"):
        await SqliteLedger(path).open()


async def test_account_changed_by_hand_fails_only_operations_on_it(path: Path) -> None:
    async with open_ledger(path) as ledger:
        await ledger.reserve("p", request("c1", 10))
    execute(path, "UPDATE account SET reserved_tokens = 3 WHERE account = 'run:r'")
    async with open_ledger(path) as ledger:
        operations = [ledger.settle("p", "c1", Amount(4), b"{}"), ledger.restore("p", "else", Amount(5), 1_000)]
        broken, fine = await asyncio.gather(*operations, return_exceptions=True)
        assert isinstance(broken, LedgerError)
        assert "changed by hand" in str(broken)
        assert fine is None
        (balance,) = await ledger.balances("p", ["else"])
        assert balance.settled == Amount(5)


# --- time ---


async def test_clock_does_not_go_back_over_a_restart(path: Path) -> None:
    ledger = SqliteLedger(path, clock_ms=lambda: 2_000_000)
    await ledger.open()
    first = await ledger.reserve("p", request("c1", 10))
    await ledger.close()
    ledger = SqliteLedger(path, clock_ms=lambda: 1_000)
    await ledger.open()
    second = await ledger.reserve("p", request("c2", 10))
    assert second.now_ms >= first.now_ms == 2_000_000
    await ledger.close()
