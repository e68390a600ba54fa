"""Checks whether everything that this gateway depends on is in order. No check calls a model."""

from __future__ import annotations

import asyncio
import platform
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final, Literal

from gateway import __version__
from gateway.ledger.health import health_of
from gateway.ledger.outage import OutageLedger
from gateway.ledger.port import CountersMissing, Ledger, LedgerError
from gateway.store import versions
from gateway.store.database import Database, StoreError, first_line
from gateway.store.tables import SCHEMA_REVISION
from policies.settings import conflicts

if TYPE_CHECKING:
    from gateway.parts import Parts

Status = Literal["ok", "warn", "fail"]
# Windows of budgets follow the ledger's clock; logs and keys' expiry follow this machine's.
SKEW_MS_WARN: Final = 1_000
SKEW_MS_FAIL: Final = 60_000
# A call takes about two ledger operations; above this they are noticeable.
LEDGER_MS_WARN: Final = 20.0
STORE_MS_WARN: Final = 200.0
_MEASUREMENTS: Final = 5
_ATTEMPTS_MAX: Final = 50
_RETRY_INTERVAL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Finding:
    """`detail` is a sentence with the finding and, unless all is well, what to do."""

    check: str
    status: Status
    detail: str


async def examine(parts: Parts, *, is_open: bool) -> tuple[Finding, ...]:
    """Store and ledger must be open. `is_open`: callers need no key."""
    return (
        _versions(),
        *await ledger_findings(parts),
        _outbox(parts),
        *await store_findings(parts.store, _now_ms()),
        *_configuration(parts, is_open),
    )


async def ledger_findings(parts: Parts) -> tuple[Finding, ...]:
    """Reachability and latency, the clock, and the engine's eviction policy and persistence."""
    ledger = parts.ledger
    engine = parts.config.storage.ledger.partition(":")[0]
    health = health_of(ledger)
    if not health.is_available:
        return (Finding("ledger", "fail", f"{engine} is out of reach: {health.reason}"),)
    try:
        await _wait_until_ready(lambda: ledger.balances("default", ["run/doctor"]))
        latency_ms = await _latency_ms(lambda: ledger.balances("default", ["run/doctor"]))
        clock = await _clock(ledger)
    except LedgerError as error:
        return (Finding("ledger", "fail", f"{engine} does not answer: {error}"),)
    status: Status = "warn" if latency_ms > LEDGER_MS_WARN else "ok"
    reachability = Finding("ledger", status, f"{engine} answers in {latency_ms:.1f} ms (median of {_MEASUREMENTS}).")
    return (reachability, clock, *_policy(parts, engine))


async def _wait_until_ready(operation: Callable[[], Awaitable[object]]) -> None:
    """An unused Redis first gets its counters, which may take a moment. Other faults are found later."""
    for _ in range(_ATTEMPTS_MAX):
        try:
            await operation()
        except CountersMissing:
            await asyncio.sleep(_RETRY_INTERVAL_S)
        except LedgerError:
            return
        else:
            return


async def store_findings(store: Database, now_ms: int) -> tuple[Finding, ...]:
    """Reachability and latency, the schema, and write access."""
    engine = "postgresql" if store.is_postgres else "sqlite"
    try:
        latency_ms = await _latency_ms(lambda: versions.read(store))
        revision = await store.schema_revision()
        schema = Finding("store schema", "ok", f"Revision {revision}, which is this gateway's.")
        if revision != SCHEMA_REVISION:
            schema = Finding("store schema", "fail", f"Revision {revision}, but this gateway has {SCHEMA_REVISION}.")
    except StoreError as error:
        return (Finding("store", "fail", f"{engine}: {error}"),)
    except Exception as error:  # noqa: BLE001 - missing tables and permissions come as errors of many drivers
        return (Finding("store", "fail", f"{engine}: {first_line(error)} Run `farebox migrate`."),)
    status: Status = "warn" if latency_ms > STORE_MS_WARN else "ok"
    reachability = Finding("store", status, f"{engine} answers in {latency_ms:.1f} ms (median of {_MEASUREMENTS}).")
    return reachability, schema, await _writable(store, now_ms)


async def _writable(store: Database, now_ms: int) -> Finding:
    try:
        await versions.put_value(store, "doctor", str(now_ms))
    except Exception as error:  # noqa: BLE001 - the engine's error for a forbidden write is the finding
        return Finding("store permissions", "fail", f"It cannot be written to: {first_line(error)}")
    return Finding("store permissions", "ok", "It can be read and written.")


async def _clock(ledger: Ledger) -> Finding:
    before_ms = _now_ms()
    ledger_ms = await ledger.now_ms()
    skew_ms = ledger_ms - (before_ms + _now_ms()) // 2
    status: Status = "ok" if abs(skew_ms) < SKEW_MS_WARN else "warn" if abs(skew_ms) < SKEW_MS_FAIL else "fail"
    advice = "" if status == "ok" else " Set both machines' clocks by NTP."
    return Finding("ledger clock", status, f"{skew_ms:+d} ms against this machine.{advice}")


def _policy(parts: Parts, engine: str) -> tuple[Finding, ...]:
    ledger, storage = parts.ledger, parts.config.storage
    if isinstance(ledger, OutageLedger):
        warnings = ledger.health.warnings
        policy_findings = tuple(Finding("ledger policy", "warn", warning) for warning in warnings)
        all_kept = Finding("ledger policy", "ok", "Nothing is evicted, and what is written is kept (appendonly).")
        spooled = ledger.health.spooled
        spool_findings = (Finding("ledger spool", "warn", f"{spooled} events wait on disk."),) if spooled else ()
        return (*(policy_findings or (all_kept,)), *spool_findings)
    if engine == "memory":
        return (Finding("ledger policy", "warn", "Everything is forgotten when the process ends."),)
    durability = (
        "every write waits for the disk" if storage.durability == "strict" else "safe against a crash of the process"
    )
    return (Finding("ledger policy", "ok", f"Durability {storage.durability}: {durability}."),)


def _outbox(parts: Parts) -> Finding:
    flusher = parts.flusher
    status: Status = "fail" if flusher.is_full else "warn" if flusher.is_nearly_full or flusher.last_error else "ok"
    waiting = f"{flusher.outbox_size} events wait for the store, the oldest for {flusher.lag_ms} ms."
    return Finding("outbox", status, f"{waiting} {flusher.last_error}".strip())


def _versions() -> Finding:
    """SQLite from 3.7.0 to 3.51.2 can damage a WAL file that two connections write; Farebox has only one."""
    description = f"Farebox {__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < (3, 51, 3):
        description += " (its WAL fault of before 3.51.3 needs two writers; Farebox has one)"
    return Finding("versions", "ok", f"{description}.")


def _configuration(parts: Parts, is_open: bool) -> tuple[Finding, ...]:
    rows = parts.control.snapshot.setting_rows
    findings = [
        Finding("settings", "warn", conflict) for conflict in conflicts({key: row.value for key, row in rows.items()})
    ]
    models = len(parts.config.model_list)
    findings.append(
        Finding("models", "ok" if models else "warn", f"{models} in model_list." if models else "model_list is empty.")
    )
    keys = sum(
        key.revoked_at_ms is None for key in {key.id: key for key in parts.control.snapshot.keys.values()}.values()
    )
    access = (
        Finding("access", "warn", "There is no key: every program on this machine may call models and change anything.")
        if is_open
        else Finding("access", "ok", f"{keys} keys; the control API needs an admin key.")
    )
    return (*findings, access)


async def _latency_ms(operation: Callable[[], Awaitable[object]]) -> float:
    latencies_ms: list[float] = []
    for _ in range(_MEASUREMENTS):
        started_s = time.perf_counter()
        await operation()
        latencies_ms.append((time.perf_counter() - started_s) * 1000)
    return median(latencies_ms)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
