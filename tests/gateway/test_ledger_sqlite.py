"""The embedded engine's own parts: its queue, its batches, its thread. tests/contracts covers what every engine does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.ledger import sqlite_file, sqlite_storage, sqlite_worker
from gateway.ledger.port import LedgerError, LedgerUnavailable, Reserve
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_file import SqliteFile
from policies.amounts import Amount, Limit
from policies.reservation import Demand, Granted, Hold, OnLost, State


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    opened = SqliteLedger(tmp_path / "ledger.db")
    await opened.open()
    yield opened
    await opened.close()


def request(name: str, account: str = "run", tokens: int = 10) -> Reserve:
    hold = Hold(account, Limit(tokens=1_000))
    return Reserve(name, "gw", (hold,), Demand(0, tokens, tokens, requests=0), 60_000, b"{}", OnLost.CHARGE)


async def traced(ledger: SqliteLedger) -> list[str]:
    """The statements that the connection runs from now on."""
    statements: list[str] = []
    worker = ledger._require_worker()
    await worker.perform(lambda _: worker._file.connection.set_trace_callback(statements.append))
    return statements


async def test_concurrent_operations_are_committed_in_batches(
    ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_storage, "JOURNAL_MAX", 100)
    statements = await traced(ledger)
    await asyncio.gather(*(ledger.reserve("p", request(f"c{n}", tokens=1)) for n in range(500)))
    commits = [statement for statement in statements if "INTO journal" in statement]
    assert 500 // sqlite_worker.THREAD_BATCH_MAX <= len(commits) < 250
    assert await ledger.outbox_read("one") == ()
    changes = [statement for statement in statements if "account SET" in statement or "INTO account" in statement]
    assert 1 <= len(changes) <= 500 // sqlite_storage.FOLD_MIN, "one write of an account covers many calls"


async def test_event_acknowledged_before_a_fold_is_never_written_to_the_outbox_table(ledger: SqliteLedger) -> None:
    statements = await traced(ledger)
    for n in range(20):
        await ledger.reserve("p", request(f"c{n}"))
        await ledger.settle("p", f"c{n}", Amount(5), b"{}")
    entries = await ledger.outbox_read("one")
    assert [entry.id for entry in entries] == [f"c{n}" for n in range(20)]
    await ledger.outbox_acknowledge(entries)
    assert (await ledger.outbox_size(), await ledger.outbox_read("one")) == (0, ())
    await folded(ledger)
    assert [statement for statement in statements if "outbox" in statement and not statement.startswith("SELECT")] == []


async def folded(ledger: SqliteLedger) -> None:
    worker = ledger._require_worker()
    await worker.perform_long(lambda _: worker._storage.fold())


async def test_ids_newer_than_all_written_ones_need_no_lookup(tmp_path: Path) -> None:
    """Ids of new calls sort after all that were written, also by an earlier process."""

    def lookups(statements: list[str]) -> list[str]:
        return [
            statement
            for statement in statements
            if statement.startswith(("SELECT", "WITH")) and "JOIN reservation" in statement
        ]

    ledger = SqliteLedger(tmp_path / "ledger.db")
    await ledger.open()
    await ledger.reserve("p", request("c5"))
    await ledger.settle("p", "c5", Amount(5), b"{}")
    await ledger.reserve("q", request("c9"))
    await folded(ledger)
    for new in ("c6", "c7"):
        statements = await traced(ledger)
        await ledger.reserve("p", request(new))
        assert lookups(statements) == []
        again = await ledger.reserve("p", request("c5"))
        assert isinstance(again, Granted)
        assert len(lookups(statements)) == 1
        assert (await ledger.settle("p", "c5", Amount(9), b"{}")).booked == Amount(5)
        await ledger.close()
        await ledger.open()
    await ledger.close()


def current_thread(now_ms: int) -> int:
    return threading.get_ident()


async def test_short_operations_run_on_the_loop_and_long_ones_in_the_thread(ledger: SqliteLedger) -> None:
    worker = ledger._require_worker()
    assert await worker.perform(current_thread) == threading.get_ident()
    assert await worker.perform_long(current_thread) != threading.get_ident()
    first, second = await asyncio.gather(worker.perform(current_thread), worker.perform_long(current_thread))
    assert first == second != threading.get_ident(), "concurrent operations share one transaction"
    assert await worker.perform(current_thread) == threading.get_ident(), "the thread has returned the file"


async def test_operations_wait_while_the_thread_works(ledger: SqliteLedger) -> None:
    begun, resume, done = threading.Event(), threading.Event(), []

    def long(now_ms: int) -> None:
        begun.set()
        resume.wait(20)
        done.append("long")

    async def short(name: str) -> None:
        await ledger.reserve("p", request(name))
        done.append(name)

    working = asyncio.ensure_future(ledger._require_worker().perform_long(long))
    await asyncio.to_thread(begun.wait, 20)
    waiting = [asyncio.ensure_future(short("c1")), asyncio.ensure_future(short("c2"))]
    await asyncio.sleep(0.05)
    assert done == []
    resume.set()
    await asyncio.gather(working, *waiting)
    assert done == ["long", "c1", "c2"]


async def test_after_a_slow_operation_the_thread_takes_over_for_a_while(
    ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_: object) -> int:
        time.sleep(2 * sqlite_worker.SLOW_BATCH_S)
        return threading.get_ident()

    monkeypatch.setattr(sqlite_worker, "THREAD_ONLY_S", 0.3)
    worker = ledger._require_worker()
    assert await worker.perform(slow) == threading.get_ident()
    assert await worker.perform(current_thread) != threading.get_ident()
    await asyncio.sleep(0.3)
    assert await worker.perform(current_thread) == threading.get_ident()


async def test_long_wal_is_checkpointed_by_the_thread(
    ledger: SqliteLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "CHECKPOINT_ROWS", 100)
    monkeypatch.setattr(sqlite_storage, "JOURNAL_MAX", 2)
    moved_by: list[int] = []
    shorten = SqliteFile.checkpoint

    def shorten_seen(file: SqliteFile) -> None:
        moved_by.append(threading.get_ident())
        shorten(file)

    monkeypatch.setattr(SqliteFile, "checkpoint", shorten_seen)
    sizes = []
    for turn in range(20):
        async with asyncio.timeout(20):
            asked = [ledger.reserve("p", request(f"c{turn}-{n}", account=f"run{turn}-{n}")) for n in range(100)]
            assert all(isinstance(answer, Granted) for answer in await asyncio.gather(*asked))
        sizes.append((tmp_path / "ledger.db-wal").stat().st_size)
    assert len(moved_by) >= 10
    assert threading.get_ident() not in moved_by
    assert sizes[-1] <= 2 * sizes[4], "the log is overwritten from its beginning"


async def test_operations_without_effect_write_nothing(ledger: SqliteLedger) -> None:
    statements = await traced(ledger)
    await ledger.balances("p", ["a", "b"])
    await ledger.outbox_read("one")
    await ledger.pending("p")
    await ledger.void("p", "never")
    await ledger.expire_due()
    assert [statement for statement in statements if not statement.startswith("SELECT")] == []


async def test_cancelled_caller_does_not_undo_its_operation(ledger: SqliteLedger) -> None:
    asking = [asyncio.ensure_future(ledger.reserve("p", request(f"c{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert all(task.cancelled() for task in asking)
    (balance,) = await ledger.balances("p", ["run"])
    assert balance.reserved == Amount(200)
    for n in range(20):
        assert (await ledger.void("p", f"c{n}")).state is State.VOIDED


async def test_failing_operation_does_not_fail_its_batch(ledger: SqliteLedger) -> None:
    """SQLite does not accept a lone surrogate: only the operations that read or write it fail."""
    good = [ledger.reserve("p", request(f"c{n}")) for n in range(20)]
    bad = [ledger.current_run("p", "nightly", "\ud800", 1_000), ledger.balances("p", ["\ud800"])]
    answers = await asyncio.gather(*good[:10], *bad, *good[10:], return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(errors) == 2
    assert all(type(error) is LedgerError for error in errors)
    assert sum(isinstance(answer, Granted) for answer in answers) == 20
    (balance,) = await ledger.balances("p", ["run"])
    assert balance.reserved == Amount(200)


async def test_reserve_settle_and_void_of_one_call_in_one_batch(ledger: SqliteLedger) -> None:
    asked, settled, pending, voided = await asyncio.gather(
        ledger.reserve("p", request("c1")),
        ledger.settle("p", "c1", Amount(4), b"{}"),
        ledger.pending("p"),
        ledger.void("p", "c1"),
    )
    assert isinstance(asked, Granted)
    assert (settled.state, settled.first) == (State.SETTLED, True)
    assert len(pending) == 0
    assert (voided.state, voided.first) == (State.SETTLED, False)


async def test_operations_above_the_queue_limit_are_refused_at_once(
    ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_worker, "QUEUED_MAX", 6)  # including the operation that blocks the disk
    loop, holding, release = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def hold_the_disk(now_ms: int) -> None:
        loop.call_soon_threadsafe(holding.set)
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    disk = asyncio.ensure_future(ledger._require_worker().perform_long(hold_the_disk))
    await holding.wait()
    waiting = [asyncio.ensure_future(ledger.reserve("p", request(f"c{n}"))) for n in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(LedgerUnavailable, match="6 operations are waiting for the disk"):
        await ledger.reserve("p", request("one too many"))
    release.set()
    await asyncio.gather(disk, *waiting)
    (balance,) = await ledger.balances("p", ["run"])
    assert balance.reserved == Amount(50)


async def test_close_performs_queued_operations(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    await ledger.open()
    asked = [asyncio.ensure_future(ledger.reserve("p", request(f"c{n}"))) for n in range(50)]
    await asyncio.sleep(0)
    await ledger.close()
    assert all(isinstance(answer, Granted) for answer in await asyncio.gather(*asked))
    await ledger.close()
    with pytest.raises(LedgerError, match="is not open"):
        await ledger.reserve("p", request("late"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger.db", "ledger.db.lock"]


async def test_cancelled_open_releases_the_file(tmp_path: Path) -> None:
    opening = asyncio.ensure_future(SqliteLedger(tmp_path / "ledger.db").open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    ledger = SqliteLedger(tmp_path / "ledger.db")
    async with asyncio.timeout(20):
        while True:
            try:
                await ledger.open()
                break
            except LedgerError:
                await asyncio.sleep(0.01)
    await ledger.close()


async def test_second_open_is_an_error(ledger: SqliteLedger) -> None:
    with pytest.raises(LedgerError, match="is open already"):
        await ledger.open()


async def test_durability_sets_the_synchronous_level(tmp_path: Path) -> None:
    for durability, level in (("normal", 1), ("strict", 2)):
        ledger = SqliteLedger(tmp_path / f"{durability}.db", durability=durability)  # type: ignore[arg-type]
        await ledger.open()
        worker = ledger._require_worker()
        assert (await worker.perform(current_thread) == threading.get_ident()) == (durability == "normal")
        assert await worker.perform(lambda _, worker=worker: worker._file._pragma("synchronous")) == level
        await ledger.close()
