"""/admin/health: ledger, store, outbox, drift, models, versions. Nothing on it calls a model."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Final, Literal

from starlette.responses import Response

from gateway import __version__
from gateway.admin.formatting import count, duration
from gateway.admin.page_request import Page, PageRequest
from gateway.bookkeeping.reconcile import Reconciliation, reconcile, run_accounts
from gateway.ledger.health import health_of
from gateway.ledger.port import LedgerError
from gateway.store.tables import SCHEMA_REVISION

_DRIFT_PERIOD_MS: Final = 86_400_000
_DRIFT_RUNS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class HealthCheck:
    name: str
    state: Literal["ok", "warn", "bad"]
    text: str


async def show_health(page_request: PageRequest) -> Response:
    parts = page_request.services.parts
    drift = await _measure_drift(page_request) if page_request.param("check") == "drift" else None
    return page_request.render(
        "health",
        checks=[
            await _check_ledger(page_request),
            _check_store(page_request),
            *_check_outbox(page_request),
            _check_access(page_request),
        ],
        drift=drift,
        models=[
            (deployment, parts.pool.is_cooling_down(deployment), parts.pool.in_flight(deployment))
            for deployment in parts.deployments
        ],
        about=_versions_and_configuration(page_request),
    )


async def _check_ledger(page_request: PageRequest) -> HealthCheck:
    ledger = page_request.services.parts.ledger
    health = health_of(ledger)
    waiting = f"{count(health.spooled)} events wait on disk."
    if not health.is_available:
        return HealthCheck("Ledger", "bad", f"Out of reach: {health.reason}. {waiting}")
    if health.warnings or health.spooled:
        return HealthCheck("Ledger", "warn", " ".join([*health.warnings, waiting]))
    try:
        clock_offset_ms = await ledger.now_ms() - page_request.now_ms
    except LedgerError as error:
        return HealthCheck("Ledger", "bad", f"Does not answer: {error}")
    return HealthCheck(
        "Ledger",
        "ok",
        f"Answers; its clock is {duration(abs(clock_offset_ms))} {'ahead of' if clock_offset_ms >= 0 else 'behind'} ours.",
    )


def _check_store(page_request: PageRequest) -> HealthCheck:
    control = page_request.services.parts.control
    if not control.is_store_available:
        return HealthCheck(
            "Store", "bad", f"Out of reach: {control.last_error}. The settings of before go on counting."
        )
    return HealthCheck("Store", "ok", f"Answers; schema {SCHEMA_REVISION}.")


def _check_outbox(page_request: PageRequest) -> list[HealthCheck]:
    flusher = page_request.services.parts.flusher
    events = "1 event waits" if flusher.outbox_size == 1 else f"{count(flusher.outbox_size)} events wait"
    outbox_text = (
        f"{events}, the oldest for {duration(flusher.lag_ms)}."
        if flusher.outbox_size
        else "Empty: the store has it all."
    )
    state: Literal["ok", "warn", "bad"] = "bad" if flusher.is_full else "warn" if flusher.is_nearly_full else "ok"
    if flusher.failures_in_a_row:
        state, outbox_text = "bad", f"{outbox_text} {flusher.last_error}"
    checks = [HealthCheck("Outbox", state, outbox_text)]
    if flusher.dead_lettered_total:
        checks.append(
            HealthCheck("Dead letters", "warn", f"{count(flusher.dead_lettered_total)} events since the start.")
        )
    return checks


def _check_access(page_request: PageRequest) -> HealthCheck:
    if page_request.services.access.is_open():
        return HealthCheck(
            "Access", "warn", "There is no key: whoever is on this machine may call models and change anything."
        )
    return HealthCheck("Access", "ok", "Keys and logins are asked for.")


async def _measure_drift(page_request: PageRequest) -> Reconciliation:
    """Compares what the ledger has settled with the rows of the store, for runs of the last day. Changes nothing."""
    parts = page_request.services.parts
    accounts = await run_accounts(page_request.store, page_request.project, page_request.now_ms - _DRIFT_PERIOD_MS)
    newest_accounts = dict(list(accounts.items())[:_DRIFT_RUNS_MAX])

    async def flush() -> bool:
        await page_request.services.catch_up()
        return True  # events that are not stored yet show as an outbox that is not empty

    return await reconcile(parts.ledger, page_request.store, page_request.project, newest_accounts, flush)


def _versions_and_configuration(page_request: PageRequest) -> list[tuple[str, str]]:
    parts = page_request.services.parts
    storage = parts.config.storage
    return [
        ("Farebox", __version__),
        ("Python", platform.python_version()),
        ("ledger", storage.ledger.partition(":")[0]),
        ("store", storage.store.partition(":")[0]),
        ("configuration generation", str(parts.control.snapshot.generation)),
        ("workers", str(parts.config.server.workers)),
        ("reservations live for", duration(parts.config.reservations.ttl_seconds * 1000)),
    ]


PAGES = (Page("GET", "/health", show_health, "viewer"),)
