"""Runs whose first call takes long: they are stored before it ends, whatever the store did meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import text

from gateway.pipeline.call import Call, Principal
from gateway.runs.in_progress import RunsInProgress
from gateway.store import runs
from gateway.store.database import Database
from gateway.tags import Tags
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from tests.store_events import NOW_MS


async def test_store_that_refuses_a_run_does_not_end_the_watch(tmp_path: Path) -> None:
    store = Database(f"sqlite:///{tmp_path}/store.db")
    await store.open()
    await store.migrate(NOW_MS)
    async with store.begin() as connection:
        await connection.execute(text("ALTER TABLE run_steps RENAME TO elsewhere"))
    principal = Principal("", "local", "p")
    call = Call(
        "c1", PROTOCOLS["/v1/chat/completions"], principal, Request(body={}, model="m"), Tags("w", "r"), run="r"
    )
    in_progress = RunsInProgress(lambda: [call], store)
    in_progress.start()
    await asyncio.sleep(1.6)  # two checks or more, of which the second is the first to store something
    async with store.begin() as connection:
        await connection.execute(text("ALTER TABLE elsewhere RENAME TO run_steps"))
    async with asyncio.timeout(10):
        while await runs.get(store, "p", "r") is None:
            await asyncio.sleep(0.05)
    await in_progress.stop()
    await store.close()
