"""The outbox in Redis: one stream per project, and leases for the entries being delivered.

There may be thousands of projects, few of them with entries at any moment. A reader checks those that this process works on,
and once a second all of them, for what other processes left behind.

Leases are kept in a hash and follow the ledger's clock. A consumer group would not do: its idle times follow the server's
clock, which may jump, and its pending entries outlive the entries themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from gateway.ledger import redis_scripts as scripts
from gateway.ledger.batches import batched, gather_all
from gateway.ledger.port import OutboxEntry
from gateway.ledger.redis_errors import port_error
from gateway.ledger.redis_projects import Projects
from gateway.ledger.redis_values import entry_arguments, entry_of

# An entry that was not acknowledged this long after it was read goes to another consumer.
LEASE_MS: Final = 30_000
_RECORD_BATCH: Final = 200
_ACKNOWLEDGE_BATCH: Final = 1000
_NO_LEASE_MS: Final = "0"


async def record(projects: Projects, project: str, entries: Sequence[OutboxEntry]) -> None:
    state = projects.of(project)
    for batch in batched(entries, _RECORD_BATCH):
        await projects.run(state, scripts.RECORD, [state.meta, state.key("outbox")], *entry_arguments(batch))
        for entry in batch:
            projects.remember_event(replace(entry, project=project, at_ms=entry.at_ms or state.seen_ms))


async def size(projects: Projects) -> int:
    """The number of entries waiting in all projects."""
    return sum((await _scan_all(projects)).values())


async def _scan_all(projects: Projects) -> dict[str, int]:
    with port_error():
        names = await projects.names()
    sizes = await _sizes(projects, names)
    projects.active.update(sizes)
    projects.outboxes_scanned_s = time.monotonic()
    return sizes


async def _sizes(projects: Projects, names: Iterable[str]) -> dict[str, int]:
    """The number of entries waiting in each project that has any."""
    sizes: dict[str, int] = {}
    with port_error():
        for batch in batched(names):
            keys = [projects.of(name).key("outbox") for name in batch]
            lengths = await gather_all(projects.topology.call(key, "XLEN", key) for key in keys)
            sizes.update((name, length) for name, length in zip(batch, lengths, strict=True) if length)
    return sizes


async def _projects_with_entries(projects: Projects) -> list[str]:
    """The projects with entries, as far as this process can know."""
    is_scan_due = time.monotonic() - projects.outboxes_scanned_s >= projects.scan_interval_s
    # Projects that get entries from now on are added to the new set, whatever the query finds.
    candidates, projects.active = projects.active, set()
    try:
        sizes = await (_scan_all(projects) if is_scan_due else _sizes(projects, candidates))
    except BaseException:
        projects.active |= candidates
        raise
    projects.active.update(sizes)
    return sorted(sizes)


async def read(projects: Projects, consumer: str, limit: int) -> list[OutboxEntry]:
    """The oldest free entries of all projects, leased to the consumer."""
    project_names = await _projects_with_entries(projects)
    shares = dict.fromkeys(project_names, limit)
    if len(project_names) > 1:
        shares = await _shares(projects, project_names, consumer, limit)
    entries: list[OutboxEntry] = []
    for name, share in shares.items():
        records = await _read(projects, name, consumer, share, str(LEASE_MS))
        entries.extend(entry_of(name, position, fields) for position, fields in records)
    entries.sort(key=lambda entry: _stream_position(entry.position))
    return entries


async def _shares(projects: Projects, names: Sequence[str], consumer: str, limit: int) -> dict[str, int]:
    """How many of the oldest `limit` free entries belong to each project, so that none is leased but not returned."""
    positions: list[tuple[tuple[int, int], str]] = []
    for name in names:
        records = await _read(projects, name, consumer, limit, _NO_LEASE_MS)
        positions.extend((_stream_position(position.decode()), name) for position, _ in records)
    shares: dict[str, int] = {}
    for _, name in sorted(positions)[:limit]:
        shares[name] = shares.get(name, 0) + 1
    return shares


async def _read(
    projects: Projects, name: str, consumer: str, limit: int, lease_ms: str
) -> Sequence[tuple[bytes, Sequence[bytes]]]:
    state = projects.of(name)
    keys = [state.meta, state.key("outbox"), state.key("leases")]
    records: Sequence[tuple[bytes, Sequence[bytes]]] = (
        await projects.run(state, scripts.OUTBOX_READ, keys, consumer, str(limit), lease_ms)
    )[1]
    return records


def _stream_position(position: str) -> tuple[int, int]:
    """Stream ids are `<ms>-<number>`, which do not sort as text: 10 would come before 9."""
    ms, _, number = position.partition("-")
    return int(ms), int(number)


async def acknowledge(projects: Projects, entries: Sequence[OutboxEntry]) -> None:
    for name, positions in _positions_by_project(entries):
        state = projects.of(name)
        keys = [state.meta, state.key("outbox"), state.key("leases")]
        for batch in batched(positions, _ACKNOWLEDGE_BATCH):
            await projects.run(state, scripts.ACKNOWLEDGE, keys, *batch)


def _positions_by_project(entries: Sequence[OutboxEntry]) -> Iterator[tuple[str, list[str]]]:
    positions: dict[str, list[str]] = {}
    for entry in entries:
        if "-" in entry.position:
            # Anything else is not a position of this engine, and unknown positions are ignored.
            positions.setdefault(entry.project, []).append(entry.position)
    yield from positions.items()
