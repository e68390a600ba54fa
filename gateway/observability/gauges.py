"""Gauges that are not updated by calls: the outbox, unreachable engines, budgets, and whether ledger and store agree.

Every process measures for itself. `/metrics` combines the figures of all workers of one `farebox serve --workers N`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

from gateway import __version__
from gateway.bookkeeping import reconcile
from gateway.budgets import balances as budget_balances
from gateway.budgets.balances import BudgetAccount
from gateway.ledger.health import health_of
from gateway.ledger.port import LedgerError
from gateway.observability.telemetry import METRICS_FOLDER_VARIABLE
from gateway.store.database import StoreUnavailable
from gateway.tasks import cancel
from policies.budgets import Budget, Scope

if TYPE_CHECKING:
    from gateway.parts import Parts

_REFRESH_S: Final = 2.0
# How often the books are compared, on runs that were seen lately. Only a few of them, because each costs a query.
_COMPARE_S: Final = 60.0
_LATELY_MS: Final = 15 * 60_000
_COMPARED_MAX: Final = 50
# Budgets that name one workflow, agent, key or project are few; those that match many names get no series.
_BUDGETS_MAX: Final = 100
# Without a key, /metrics must not reveal tenants' names.
_TENANTS: Final = (Scope.KEY, Scope.PROJECT)
_GLOB: Final = frozenset("*?[")
_DEFAULT_PROJECT: Final = "default"

_Series = tuple[str, str]  # scope and name

_log = structlog.get_logger(__name__)


class Gauges:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._was_nearly_full = False
        self._away: dict[str, int] = {}  # the unreachable engines, each with the number of the occasion
        self._occasions = itertools.count(1)
        self._task: asyncio.Task[None] | None = None
        self._shown: set[_Series] = set()  # the budgets that have a series now

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="gauges")

    async def stop(self) -> None:
        await cancel(self._task)

    async def readiness(self) -> Mapping[str, Any]:
        """Ready means that a call with an enforced budget can be served: the ledger answers, its events can be recorded,
        and keys are known because the store was reached at least once."""
        parts = self._parts
        health, flusher = health_of(parts.ledger), parts.flusher
        return {
            "ready": health.is_available and not flusher.is_full and parts.control.snapshot.is_loaded,
            "version": __version__,
            "ledger": {
                "available": health.is_available,
                "reason": health.reason,
                "warnings": list(health.warnings),
                "spooled": health.spooled,
            },
            "store": {"available": parts.control.is_store_available, "reason": parts.control.last_error},
            "outbox": {
                "records": flusher.outbox_size,
                "full": flusher.is_full,
                "nearly_full": flusher.is_nearly_full,
                "lag_ms": flusher.lag_ms,
            },
            "configuration": {"generation": parts.control.snapshot.generation},
        }

    def refresh(self) -> None:
        parts, telemetry = self._parts, self._parts.telemetry
        telemetry.in_flight.set(parts.concurrency.total)
        telemetry.tasks.set(len(asyncio.all_tasks()))
        telemetry.outbox.set(parts.flusher.outbox_size)
        telemetry.outbox_cap.set(parts.config.storage.outbox_cap)
        telemetry.flush_lag.set(parts.flusher.lag_ms / 1000)
        telemetry.dead_letters.set(parts.flusher.dead_lettered_total)
        telemetry.dropped.set(parts.recorder.dropped)
        health = health_of(parts.ledger)
        self._show_breaker("store", parts.control.is_store_available, parts.control.last_error)
        self._show_breaker("ledger", health.is_available, health.reason)
        telemetry.spooled.set(health.spooled)
        self._warn_of_outbox()

    def _show_breaker(self, engine: str, is_available: bool, reason: str) -> None:
        parts = self._parts
        parts.telemetry.breaker.labels(engine).set(0 if is_available else 1)
        if is_available and engine in self._away:
            parts.alerts.report("breaker_closed", self._away.pop(engine), engine=engine)
        elif not is_available and engine not in self._away:
            self._away[engine] = next(self._occasions)
            parts.alerts.report("breaker_opened", self._away[engine], engine=engine, reason=reason)

    def _warn_of_outbox(self) -> None:
        flusher, report = self._parts.flusher, self._parts.alerts.report
        if flusher.is_nearly_full and not self._was_nearly_full:
            facts = {"cap": self._parts.config.storage.outbox_cap, "store_error": flusher.last_error}
            report("outbox_nearly_full", next(self._occasions), records=flusher.outbox_size, **facts)
        elif self._was_nearly_full and not flusher.is_nearly_full:
            report("outbox_recovered", next(self._occasions), records=flusher.outbox_size)
        self._was_nearly_full = flusher.is_nearly_full

    async def _run(self) -> None:
        compared_s = random.random() * _COMPARE_S  # noqa: S311 - jitter, so that processes do not all compare at once
        while True:
            self.refresh()
            await asyncio.sleep(_REFRESH_S)
            compared_s += _REFRESH_S
            if compared_s < _COMPARE_S:
                continue
            compared_s = 0.0
            try:
                await self.compare()
                await self.show_budgets()
            except (StoreUnavailable, LedgerError) as error:
                _log.debug("gauges_not_read", error=str(error))
            except Exception:  # noqa: BLE001 - a failure in one round must not end the later rounds, and the alerts with them
                _log.exception("gauges_failed")

    async def compare(self) -> None:
        """Compare ledger and usage for runs that were seen lately. Raises StoreUnavailable and LedgerError."""
        parts, tokens, nano_usd = self._parts, 0, 0
        now_ms = await parts.ledger.now_ms()
        for project in self._projects():
            accounts = await reconcile.run_accounts(parts.store, project, now_ms - _LATELY_MS)
            sample = random.sample(sorted(accounts), min(_COMPARED_MAX, len(accounts)))
            chosen = {account: accounts[account] for account in sample}
            reconciliation = await reconcile.reconcile(parts.ledger, parts.store, project, chosen, self._flushed)
            tokens, nano_usd = tokens + reconciliation.drift_tokens, nano_usd + reconciliation.drift_nano_usd
            for drift in reconciliation.drifts:
                _log.error("ledger_drift", account=drift.account, booked=str(drift.booked), stored=str(drift.stored))
        parts.telemetry.drift.labels("tokens").set(tokens)
        parts.telemetry.drift.labels("nano_usd").set(nano_usd)

    async def _flushed(self) -> bool:
        return await self._parts.flusher.drain(timeout_ms=1_000)

    async def show_budgets(self) -> None:
        """Balances of budgets in USD on a single workflow or agent; if scrapers need a key, also on a single key or project.

        Each name has one series: if several budgets (of different projects or windows) are on it, that of the fullest. Raises
        StoreUnavailable.
        """
        parts = self._parts
        hidden = () if parts.config.server.metrics_auth else _TENANTS
        budgets = [budget for budget in parts.budgets() if budget.scope not in hidden and _has_a_name(budget)][
            :_BUDGETS_MAX
        ]
        key_names = {key.id: key.name for key in parts.control.snapshot.keys.values()}
        now_ms = await parts.ledger.now_ms()
        there: set[_Series] = set()
        fullest: dict[_Series, BudgetAccount] = {}
        for project in self._projects():
            links = await budget_balances.accounts_of(parts.store, project, budgets, key_names, now_ms)
            balances = await budget_balances.balances_of(parts.ledger, project, links)
            for budget, budget_links, accounts in zip(budgets, links, balances, strict=True):
                if budget.project in (None, project):
                    there |= {(budget.scope.value, link.scope_id) for link in budget_links}
                    for account in accounts:
                        series = (budget.scope.value, account.scope_id)
                        fullest[series] = max(account, fullest.get(series, account), key=_usd_used)
        self._show(fullest)
        self._forget(self._shown - there)
        self._shown = there

    def _show(self, fullest: Mapping[_Series, BudgetAccount]) -> None:
        telemetry = self._parts.telemetry
        for series, account in fullest.items():
            if account.usd_limit is not None:
                telemetry.budget_limit.labels(*series).set(account.usd_limit)
                telemetry.budget_settled.labels(*series).set(account.usd_settled)
                telemetry.budget_reserved.labels(*series).set(account.usd_reserved)

    def _forget(self, series_gone: Iterable[_Series]) -> None:
        """With several processes a series cannot be removed; a limit of 0 then marks one without a budget."""
        telemetry = self._parts.telemetry
        for gauge in (telemetry.budget_limit, telemetry.budget_settled, telemetry.budget_reserved):
            for series in series_gone:
                if METRICS_FOLDER_VARIABLE in os.environ:
                    gauge.labels(*series).set(0)
                else:
                    gauge.remove(*series)

    def _projects(self) -> list[str]:
        return sorted({_DEFAULT_PROJECT} | {key.project for key in self._parts.control.snapshot.keys.values()})


def _usd_used(account: BudgetAccount) -> float:
    return (account.usd_settled + account.usd_reserved) / account.usd_limit if account.usd_limit else 0.0


def _has_a_name(budget: Budget) -> bool:
    is_outer = budget.scope not in (Scope.RUN, Scope.STEP)
    return is_outer and budget.limit.nano_usd is not None and not _GLOB & set(budget.match)
