"""What was used while the ledger was out of reach, kept on this machine's disk until the ledger has it.

One file per process, one record per line: CRC-32 of the JSON, a space, the JSON. A record counts once its line is complete
and flushed to the disk (fsync); a torn last line is left by a crash, and its record was never acknowledged. The next process
that opens the folder takes over the files of dead ones.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from gateway.ledger.port import EntryKind, OutboxEntry, Reserve
from gateway.store.file_lock import FileLock, FileLocked
from policies.amounts import ZERO, Amount, Limit
from policies.reservation import Demand, Hold, OnLost

_SUFFIX: Final = ".spool"
_NEW_SUFFIX: Final = ".fresh"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Settlement:
    """A settlement that the ledger has not confirmed. Without `request`, another process made the reservation."""

    project: str
    reservation_id: str
    used: Amount
    detail: bytes
    request: Reserve | None = None
    held: Amount = ZERO

    @property
    def key(self) -> str:
        return f"settle {self.project} {self.reservation_id}"


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event without a reservation."""

    entry: OutboxEntry

    @property
    def key(self) -> str:
        return f"record {self.entry.project} {self.entry.id}"


SpoolRecord = Settlement | RecordedEvent


class Spool:
    """Records on disk, oldest first. `name` is this process's own file."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}{_SUFFIX}"
        self._lock = FileLock(self._path)
        self._thread = _new_executor()
        self._pending: dict[str, SpoolRecord] = {}
        self._queued: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._descriptor = -1

    async def open(self) -> None:
        """Read what this and dead processes left behind. Raises OSError if the folder is not writable."""
        loop = asyncio.get_running_loop()
        self._thread = _new_executor()
        self._pending = await loop.run_in_executor(self._thread, self._open)

    async def close(self) -> None:
        if self._descriptor < 0:
            return
        if self._writing is not None:
            await self._writing
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def __len__(self) -> int:
        return len(self._pending)

    def pending(self, limit: int = 1000) -> list[SpoolRecord]:
        """The oldest records that were not forgotten."""
        return list(self._pending.values())[:limit]

    async def append(self, records: Sequence[SpoolRecord]) -> None:
        """Returns when the records are on the disk. Raises OSError if they are not; they then still stay in memory."""
        self._pending.update((record.key, record) for record in records)
        await self._append_lines([_encoded_line(_record_fields(record)) for record in records])

    async def forget(self, records: Sequence[SpoolRecord]) -> None:
        """The ledger has them. No fsync: a record that comes back after a crash is recognised by its id."""
        if self._writing is not None:
            # A line that is still queued would be written after this, and bring its record back at the next start, when the
            # ledger may no longer know the id.
            await asyncio.wait([self._writing])
        for record in records:
            self._pending.pop(record.key, None)
        loop = asyncio.get_running_loop()
        if self._pending:
            await loop.run_in_executor(
                self._thread, self._write_lines, [_encoded_line({"done": record.key}) for record in records]
            )
        else:
            await loop.run_in_executor(self._thread, self._truncate)

    async def reject(self, record: SpoolRecord) -> None:
        """Move a record that the ledger refuses to a separate file, `<name>.rejected`, for people. It is not replayed."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._reject, _encoded_line(_record_fields(record)))

    async def _append_lines(self, lines: Iterable[bytes]) -> None:
        """Callers that arrive while the disk is busy share the next fsync."""
        written = asyncio.get_running_loop().create_future()
        self._queued.append((b"".join(lines), written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_queued())
        await written

    async def _write_queued(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queued:
            batch, self._queued = self._queued, []
            failure: OSError | None = None
            try:
                await loop.run_in_executor(self._thread, self._write_durably, [lines for lines, _ in batch])
            except OSError as error:
                failure = error
            for _, written in batch:
                if written.done():
                    continue
                if failure is None:
                    written.set_result(None)
                else:
                    written.set_exception(OSError(*failure.args))

    def _open(self) -> dict[str, SpoolRecord]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        pending = _read_records(self._path)
        orphans = self._orphans()
        for path, _ in orphans:
            pending.update(_read_records(path))
        # Rewritten and moved into place: a crash leaves either the old files or the new one, and thanks to the ids both are
        # equivalent.
        new_path = self._path.with_suffix(_NEW_SUFFIX)
        with new_path.open("wb") as file:
            file.writelines(_encoded_line(_record_fields(record)) for record in pending.values())
            file.flush()
            os.fsync(file.fileno())
        new_path.replace(self._path)
        _fsync_folder(self._path.parent)
        for path, lock in orphans:
            # Another process may have found the same files; it then reads nothing and deletes nothing.
            path.unlink(missing_ok=True)
            path.with_suffix(_NEW_SUFFIX).unlink(missing_ok=True)
            path.with_name(path.name + ".lock").unlink(missing_ok=True)
            lock.release()
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        return pending

    def _orphans(self) -> list[tuple[Path, FileLock]]:
        orphans = []
        folder = self._path.parent
        # A process that died while opening leaves a .fresh file, which only has copies of records in other files.
        paths = {path.with_suffix(_SUFFIX) for pattern in (_SUFFIX, _NEW_SUFFIX) for path in folder.glob(f"*{pattern}")}
        for path in sorted(paths):
            lock = FileLock(path)
            if path == self._path:
                continue
            try:
                lock.acquire()
            except FileLocked:
                continue  # its process is alive
            orphans.append((path, lock))
        return orphans

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1
        self._lock.release()

    def _write_lines(self, lines: Sequence[bytes]) -> None:
        data = b"".join(lines)
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _write_durably(self, lines: Sequence[bytes]) -> None:
        self._write_lines(lines)
        os.fsync(self._descriptor)

    def _reject(self, line: bytes) -> None:
        with self._path.with_suffix(".rejected").open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _truncate(self) -> None:
        os.ftruncate(self._descriptor, 0)


def _new_executor() -> ThreadPoolExecutor:
    """Disk work in the order it was requested. The thread starts with the first piece of work."""
    return ThreadPoolExecutor(1, thread_name_prefix="spool")


def _fsync_folder(folder: Path) -> None:
    """A new file's name is only on the disk once its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encoded_line(fields: dict[str, Any]) -> bytes:
    body = orjson.dumps(fields)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _read_records(path: Path) -> dict[str, SpoolRecord]:
    """The records of a file that were not forgotten. Damaged and incomplete lines are skipped and logged."""
    pending: dict[str, SpoolRecord] = {}
    if not path.exists():
        return pending
    *lines, torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        crc, _, body = line.partition(b" ")
        if crc != b"%08x" % zlib.crc32(body):
            _log.error("spool_line_damaged", file=path.name, line=number)
            continue
        fields = orjson.loads(body)
        if "done" in fields:
            pending.pop(fields["done"], None)
        else:
            record = _parse_record(fields)
            pending[record.key] = record
    if torn:
        _log.warning("spool_line_torn", file=path.name)
    return pending


def _record_fields(record: SpoolRecord) -> dict[str, Any]:
    if isinstance(record, RecordedEvent):
        return {"entry": _entry_fields(record.entry)}
    request = record.request
    return {
        "project": record.project,
        "id": record.reservation_id,
        "used": record.used.values(),
        "held": record.held.values(),
        "detail": b64encode(record.detail).decode(),
        "request": None if request is None else _request_fields(request),
    }


def _parse_record(fields: dict[str, Any]) -> SpoolRecord:
    if "entry" in fields:
        return RecordedEvent(_parse_entry(fields["entry"]))
    request = None if fields["request"] is None else _parse_request(fields["id"], fields["request"])
    used, held = Amount(*fields["used"]), Amount(*fields["held"])
    return Settlement(fields["project"], fields["id"], used, b64decode(fields["detail"]), request, held)


def _request_fields(request: Reserve) -> dict[str, Any]:
    """What booking needs. The demand is omitted, as it was only needed for the grant."""
    return {
        "owner": request.owner,
        "ttl_ms": request.ttl_ms,
        "on_lost": request.on_lost.value,
        "draft": b64encode(request.draft).decode(),
        "holds": [
            [hold.account, hold.limit.values(), hold.tighten.values(), hold.enforce, hold.keep_ms]
            for hold in request.holds
        ],
    }


def _parse_request(reservation_id: str, fields: dict[str, Any]) -> Reserve:
    holds = tuple(
        Hold(account, Limit(*limit), Limit(*tighten), enforce, keep_ms)
        for account, limit, tighten, enforce, keep_ms in fields["holds"]
    )
    draft = b64decode(fields["draft"])
    no_demand = Demand(0, 0, 0, requests=0)
    return Reserve(
        reservation_id, fields["owner"], holds, no_demand, fields["ttl_ms"], draft, OnLost(fields["on_lost"])
    )


def _entry_fields(entry: OutboxEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "kind": entry.kind.value,
        "project": entry.project,
        "amount": entry.amount.values(),
        "overrun": entry.overrun.values(),
        "at_ms": entry.at_ms,
        "draft": b64encode(entry.draft).decode(),
        "detail": b64encode(entry.detail).decode(),
    }


def _parse_entry(fields: dict[str, Any]) -> OutboxEntry:
    return OutboxEntry(
        position="",
        id=fields["id"],
        kind=EntryKind(fields["kind"]),
        project=fields["project"],
        amount=Amount(*fields["amount"]),
        at_ms=fields["at_ms"],
        draft=b64decode(fields["draft"]),
        detail=b64decode(fields["detail"]),
        overrun=Amount(*fields["overrun"]),
    )
