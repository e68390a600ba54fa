from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.ledger.port import EntryKind, OutboxEntry, Reserve
from gateway.ledger.spool import RecordedEvent, Settlement, Spool
from gateway.store.file_lock import FileLocked
from policies.amounts import Amount, Limit
from policies.reservation import Demand, Hold, OnLost

NO_DEMAND = Demand(0, 0, 0, requests=0)
HOLDS = (Hold("step:ä/\n", Limit(tokens=5), Limit(nano_usd=7), enforce=False, keep_ms=9), Hold("run:r"))
REQUEST = Reserve("c1", "gateway-1", HOLDS, NO_DEMAND, 60_000, b'{"draft":1}', OnLost.RELEASE)
FULL = Settlement("p", "c1", Amount(1, 2, 3), b"\x00\xff not JSON", REQUEST, Amount(4, 5, 6))
BARE = Settlement("p", "c2", Amount(2**53 - 1), b"")
EVENT = RecordedEvent(OutboxEntry("", "e1", EntryKind.RECORDED, "p", Amount(1), 5, b"{}", b"{1}", Amount(0, 1)))


@asynccontextmanager
async def spool_in(folder: Path, name: str = "one") -> AsyncIterator[Spool]:
    spool = Spool(folder, name)
    await spool.open()
    try:
        yield spool
    finally:
        await spool.close()


async def test_records_survive_reopening(tmp_path: Path) -> None:
    async with spool_in(tmp_path) as spool:
        await spool.append([FULL, BARE])
        await spool.append([EVENT])
    async with spool_in(tmp_path) as spool:
        assert spool.pending() == [FULL, BARE, EVENT]
        assert len(spool) == 3


async def test_forgotten_records_do_not_come_back(tmp_path: Path) -> None:
    async with spool_in(tmp_path) as spool:
        await spool.append([FULL, BARE, EVENT])
        await spool.forget([BARE])
        assert spool.pending() == [FULL, EVENT]
    async with spool_in(tmp_path) as spool:
        assert spool.pending() == [FULL, EVENT]
        await spool.forget([FULL, EVENT])
        assert (tmp_path / "one.spool").stat().st_size == 0


async def test_leftover_of_a_crash_while_opening_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "dead.fresh").write_bytes(b"a copy of what is in other files")
    async with spool_in(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one.spool", "one.spool.lock"]


async def test_repeated_settlement_is_kept_once(tmp_path: Path) -> None:
    async with spool_in(tmp_path) as spool:
        await spool.append([BARE])
        await spool.append([BARE])
        assert len(spool) == 1
    async with spool_in(tmp_path) as spool:
        assert spool.pending() == [BARE]


@pytest.mark.parametrize("cut", [1, 10, 30])
async def test_torn_last_line_is_ignored(tmp_path: Path, cut: int) -> None:
    async with spool_in(tmp_path) as spool:
        await spool.append([FULL])
        await spool.append([BARE])
    path = tmp_path / "one.spool"
    path.write_bytes(path.read_bytes()[:-cut])
    async with spool_in(tmp_path) as spool:
        assert spool.pending() == [FULL]
        await spool.append([EVENT])
    async with spool_in(tmp_path) as spool:
        assert spool.pending() == [FULL, EVENT]


async def test_damaged_line_loses_no_other_record(tmp_path: Path) -> None:
    async with spool_in(tmp_path) as spool:
        await spool.append([FULL])
        await spool.append([BARE])
    path = tmp_path / "one.spool"
    path.write_bytes(path.read_bytes().replace(b'"c1"', b'"cX"', 1))
    async with spool_in(tmp_path) as spool:
        assert spool.pending() == [BARE]


async def test_files_of_dead_processes_are_taken_over_and_others_left(tmp_path: Path) -> None:
    async with spool_in(tmp_path, "living") as living:
        await living.append([EVENT])
        async with spool_in(tmp_path, "dead") as spool:
            await spool.append([FULL])
        async with spool_in(tmp_path, "heir") as heir:
            assert heir.pending() == [FULL]
            await heir.append([BARE])
        assert sorted(path.name for path in tmp_path.glob("*.spool")) == ["heir.spool", "living.spool"]
        assert not (tmp_path / "dead.spool.lock").exists()
    async with spool_in(tmp_path, "next") as following:
        assert {record.key for record in following.pending()} == {FULL.key, BARE.key, EVENT.key}


async def test_second_process_with_the_same_name_is_refused(tmp_path: Path) -> None:
    async with spool_in(tmp_path):
        with pytest.raises(FileLocked):
            async with spool_in(tmp_path):
                pass


async def test_append_returns_after_fsync_and_concurrent_appends_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        original(descriptor)
        synced.append(descriptor)

    async with spool_in(tmp_path) as spool:
        monkeypatch.setattr(os, "fsync", fsync)
        await spool.append([BARE])
        assert len(synced) == 1
        synced.clear()
        many = [Settlement("p", f"d{number}", Amount(1), b"") for number in range(200)]
        await asyncio.gather(*(spool.append([record]) for record in many))
        # Appends that arrive during an fsync share the next one.
        assert len(synced) <= 3
        monkeypatch.undo()


async def test_record_forgotten_while_its_line_waits_for_the_disk_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_syncing, goes_on = threading.Event(), threading.Event()

    def fsync(descriptor: int) -> None:
        is_syncing.set()
        goes_on.wait(10)

    async with spool_in(tmp_path) as spool:
        monkeypatch.setattr(os, "fsync", fsync)
        appending = [asyncio.create_task(spool.append([EVENT]))]
        await asyncio.to_thread(is_syncing.wait, 10)
        appending.append(asyncio.create_task(spool.append([FULL])))  # its line is queued behind the fsync
        await asyncio.sleep(0)
        forgetting = asyncio.create_task(spool.forget(spool.pending()))  # the ledger is back, and has them both
        await asyncio.sleep(0.01)
        goes_on.set()
        await asyncio.gather(*appending, forgetting)
        monkeypatch.undo()
    async with spool_in(tmp_path) as spool:
        assert spool.pending() == []


async def test_full_disk_raises_and_the_record_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space")

    async with spool_in(tmp_path) as spool:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(OSError, match="no space"):
                await spool.append([BARE])
        assert spool.pending() == [BARE]


async def test_rejected_record_is_kept_in_a_separate_file(tmp_path: Path) -> None:
    async with spool_in(tmp_path) as spool:
        await spool.append([FULL])
        await spool.reject(FULL)
        await spool.forget([FULL])
    assert (tmp_path / "one.rejected").read_bytes().count(b'"id":"c1"') == 1
    async with spool_in(tmp_path) as spool:
        assert spool.pending() == []


CHILD = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from gateway.ledger.spool import Settlement, Spool
    from policies.amounts import Amount

    async def main():
        spool = Spool(Path(sys.argv[1]), "child")
        await spool.open()
        number = 0
        while True:
            await spool.append([Settlement("p", f"c{number}", Amount(number), b"")])
            print(number, flush=True)
            number += 1

    asyncio.run(main())
""")


async def test_kill_9_loses_no_appended_record(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, cwd=root) as child:
        assert child.stdout is not None
        appended = [int(child.stdout.readline()) for _ in range(30)]
        child.send_signal(signal.SIGKILL)
        appended += [int(line) for line in child.stdout.read().splitlines()]
    async with spool_in(tmp_path) as spool:
        pending = spool.pending()
    assert {f"c{number}" for number in appended} <= {
        record.reservation_id for record in pending if isinstance(record, Settlement)
    }
    assert all(
        isinstance(record, Settlement) and record.reservation_id == f"c{record.used.tokens}" for record in pending
    )
