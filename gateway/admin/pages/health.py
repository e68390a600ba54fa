"""/admin/health: ledger, store, outbox, drift, models, versions. Nothing on it calls a model."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Final, Literal

from starlette.responses import Response

from gateway import __version__
from gateway.admin.figures import count, span
from gateway.admin.visit import Page, Visit
from gateway.ledger.outage import OutageLedger
from gateway.ledger.port import LedgerError
from gateway.reconcile import Reconciliation, reconcile, run_accounts
from gateway.store.tables import SCHEMA_REVISION

_DRIFT_MS: Final = 86_400_000
_DRIFT_RUNS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    state: Literal["ok", "warn", "bad"]
    text: str


async def show_health(visit: Visit) -> Response:
    parts = visit.desk.parts
    checked = await _drift(visit) if visit.param("check") == "drift" else None
    return visit.show(
        "health",
        facts=[await _ledger(visit), _store(visit), *_outbox(visit), _access(visit)],
        drift=checked,
        models=[(one, parts.pool.is_resting(one), parts.pool.in_flight(one)) for one in parts.deployments],
        about=_about(visit),
    )


async def _ledger(visit: Visit) -> Fact:
    ledger = visit.desk.parts.ledger
    if isinstance(ledger, OutageLedger):
        health = ledger.health
        if not health.is_available:
            return Fact("Ledger", "bad", f"Out of reach: {health.reason}. {count(health.spooled)} events wait on disk.")
        if health.warnings or health.spooled:
            return Fact("Ledger", "warn", " ".join([*health.warnings, f"{count(health.spooled)} events wait on disk."]))
    try:
        ahead_ms = await ledger.now_ms() - visit.now_ms
    except LedgerError as error:
        return Fact("Ledger", "bad", f"Does not answer: {error}")
    return Fact(
        "Ledger", "ok", f"Answers; its clock is {span(abs(ahead_ms))} {'ahead of' if ahead_ms >= 0 else 'behind'} ours."
    )


def _store(visit: Visit) -> Fact:
    control = visit.desk.parts.control
    if not control.is_store_available:
        return Fact("Store", "bad", f"Out of reach: {control.last_error}. The settings of before go on counting.")
    return Fact("Store", "ok", f"Answers; schema {SCHEMA_REVISION}.")


def _outbox(visit: Visit) -> list[Fact]:
    flusher = visit.desk.parts.flusher
    events = "1 event waits" if flusher.outbox_size == 1 else f"{count(flusher.outbox_size)} events wait"
    waiting = (
        f"{events}, the oldest for {span(flusher.lag_ms)}." if flusher.outbox_size else "Empty: the store has it all."
    )
    state: Literal["ok", "warn", "bad"] = "bad" if flusher.is_full else "warn" if flusher.is_nearly_full else "ok"
    if flusher.failures_in_a_row:
        state, waiting = "bad", f"{waiting} {flusher.last_error}"
    facts = [Fact("Outbox", state, waiting)]
    if flusher.dead_lettered_total:
        facts.append(Fact("Dead letters", "warn", f"{count(flusher.dead_lettered_total)} events since the start."))
    return facts


def _access(visit: Visit) -> Fact:
    if visit.desk.access.is_open():
        return Fact(
            "Access", "warn", "There is no key: whoever is on this machine may call models and change anything."
        )
    return Fact("Access", "ok", "Keys and logins are asked for.")


async def _drift(visit: Visit) -> Reconciliation:
    """Compares what the ledger has settled with the rows of the store, for runs of the last day. Changes nothing."""
    parts = visit.desk.parts
    accounts = await run_accounts(visit.store, visit.project, visit.now_ms - _DRIFT_MS)
    some = dict(list(accounts.items())[:_DRIFT_RUNS_MAX])

    async def flush() -> bool:
        await visit.desk.catch_up()
        return True  # what is still under way shows as an outbox that is not empty

    return await reconcile(parts.ledger, visit.store, visit.project, some, flush)


def _about(visit: Visit) -> list[tuple[str, str]]:
    parts = visit.desk.parts
    storage = parts.config.storage
    return [
        ("Farebox", __version__),
        ("Python", platform.python_version()),
        ("ledger", storage.ledger.partition(":")[0]),
        ("store", storage.store.partition(":")[0]),
        ("configuration generation", str(parts.control.snapshot.generation)),
        ("workers", str(parts.config.server.workers)),
        ("reservations live for", span(parts.config.reservations.ttl_seconds * 1000)),
    ]


PAGES = (Page("GET", "/health", show_health, "viewer"),)
