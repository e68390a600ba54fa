"""One connection in its own thread: transactions run one after the other, also when their callers are cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection

from gateway.store.database import Database, StoreUnavailable

_SLOW_S = 0.3


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    await database.open()
    async with database.begin() as connection:
        await connection.execute(text("CREATE TABLE notes (number INTEGER)"))
    yield database
    await database.close()


async def written(db: Database) -> list[int]:
    async with db.begin() as connection:
        return list((await connection.execute(text("SELECT number FROM notes ORDER BY number"))).scalars())


def slowly(connection: Connection, number: int, begun: threading.Event) -> None:
    begun.set()
    time.sleep(_SLOW_S)
    connection.exec_driver_sql(f"INSERT INTO notes VALUES ({number})")


async def write_slowly(db: Database, number: int, begun: threading.Event) -> None:
    async with db.begin() as connection:
        await connection.run_sync(slowly, number, begun)


async def test_result_keeps_its_rows_and_row_count_after_the_transaction(db: Database) -> None:
    async with db.begin() as connection:
        changed = await connection.execute(text("INSERT INTO notes VALUES (:a), (:b)"), {"a": 1, "b": 2})
        assert changed.rowcount == 2
        result = await connection.execute(text("SELECT number, number * 2 AS twice FROM notes"))
    assert [dict(row) for row in result.mappings()] == [{"number": 1, "twice": 2}, {"number": 2, "twice": 4}]


async def test_event_loop_runs_while_sqlite_works(db: Database) -> None:
    turns = 0
    working = asyncio.create_task(write_slowly(db, 1, threading.Event()))
    while not working.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 5
    assert await written(db) == [1]


async def test_cancelled_transaction_is_rolled_back_and_the_next_one_runs(db: Database) -> None:
    begun = threading.Event()
    working = asyncio.create_task(write_slowly(db, 1, begun))
    await asyncio.to_thread(begun.wait, 5)
    working.cancel()
    async with db.begin() as connection:  # while the thread is still working
        await connection.execute(text("INSERT INTO notes VALUES (2)"))
    with pytest.raises(asyncio.CancelledError):
        await working
    assert await written(db) == [2]


async def test_waiting_transaction_can_be_cancelled(db: Database) -> None:
    begun = threading.Event()
    working = asyncio.create_task(write_slowly(db, 1, begun))
    waiting = [asyncio.create_task(write_slowly(db, number, threading.Event())) for number in (2, 3)]
    await asyncio.to_thread(begun.wait, 5)
    waiting[0].cancel()
    await asyncio.gather(working, *waiting, return_exceptions=True)
    assert await written(db) == [1, 3]


async def test_error_rolls_the_transaction_back(db: Database) -> None:
    async def fail() -> None:
        async with db.begin() as connection:
            await connection.execute(text("INSERT INTO notes VALUES (1)"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await written(db) == []


async def test_waiting_too_long_for_the_connection_is_an_outage(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.sqlite_engine._TURN_S", 0.05)
    async with db.begin():
        with pytest.raises(StoreUnavailable):
            await written(db)


async def test_transaction_waiting_during_close_fails(db: Database) -> None:
    begun = threading.Event()
    working = asyncio.create_task(write_slowly(db, 1, begun))
    await asyncio.to_thread(begun.wait, 5)
    closing = asyncio.create_task(db.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="not open"):
        await written(db)
    await asyncio.gather(working, closing)


async def test_close_waits_for_the_running_transaction(db: Database) -> None:
    begun = threading.Event()
    working = asyncio.create_task(write_slowly(db, 1, begun))
    await asyncio.to_thread(begun.wait, 5)
    await db.close()
    assert working.done()
    await db.open()
    assert await written(db) == [1]
