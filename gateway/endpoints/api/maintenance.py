"""/api/doctor and /api/reconcile: checks of the installation, and the comparison of ledger and store."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from gateway.bookkeeping import reconcile
from gateway.bookkeeping.reconcile import Drift
from gateway.doctor import Finding, examine
from gateway.endpoints.api.route import ApiRequest, Route
from gateway.endpoints.api.schema import Instant, NoBody, ProjectQuery, Strict, in_ms
from policies.amounts import Amount, usd
from policies.budgets import RUN_KEEP_MS

_FLUSH_MS = 10_000


@dataclass(frozen=True, slots=True)
class Findings:
    findings: tuple[Finding, ...]
    is_fit: bool


class ReconcileBody(Strict):
    repair: bool = Field(default=False, description="Record each difference as an entry of its own.")
    since: Instant | None = Field(default=None, description="Only runs seen since then; default: 30 days ago.")


@dataclass(frozen=True, slots=True)
class Units:
    tokens: int
    usd: float
    requests: int


@dataclass(frozen=True, slots=True)
class DriftView:
    """`booked` is what the ledger has settled, `stored` the sum of the rows."""

    account: str
    booked: Units
    stored: Units
    difference: Units


@dataclass(frozen=True, slots=True)
class ReconciliationView:
    """`moving` accounts had calls in flight: compare again. `parked` is the sum of events that could not be stored."""

    project: str
    checked: int
    drifts: tuple[DriftView, ...]
    moving: tuple[str, ...]
    parked: Units
    repaired: int


async def get_doctor(request: ApiRequest[ProjectQuery, NoBody]) -> Findings:
    findings = await examine(request.services.parts, is_open=request.services.access.is_open())
    return Findings(findings, all(finding.status != "fail" for finding in findings))


async def post_reconcile(request: ApiRequest[ProjectQuery, ReconcileBody]) -> ReconciliationView:
    parts = request.services.parts
    since_ms = in_ms(request.body.since)
    if since_ms is None:
        since_ms = max(0, request.services.now_ms() - RUN_KEEP_MS)
    await request.services.catch_up()

    async def flush() -> bool:
        return await parts.flusher.drain(_FLUSH_MS)

    accounts = await reconcile.run_accounts(request.store, request.project, since_ms)
    reconciliation = await reconcile.reconcile(parts.ledger, request.store, request.project, accounts, flush)
    repaired = 0
    if request.body.repair and reconciliation.drifts:
        repaired = len(await reconcile.repair(parts.ledger, request.store, reconciliation, accounts))
        await request.audit(
            "ledger.repaired", entries=repaired, drifts=[drift.account for drift in reconciliation.drifts]
        )
        await request.services.catch_up()
    drifts = tuple(_drift(drift) for drift in reconciliation.drifts)
    return ReconciliationView(
        reconciliation.project,
        reconciliation.checked,
        drifts,
        reconciliation.moving,
        _units(reconciliation.parked),
        repaired,
    )


def _drift(drift: Drift) -> DriftView:
    return DriftView(drift.account, _units(drift.booked), _units(drift.stored), _units(drift.difference))


def _units(amount: Amount) -> Units:
    return Units(amount.tokens, usd(amount.nano_usd), amount.requests)


ROUTES = (
    Route("GET", "/doctor", get_doctor, Findings, "Check everything that the gateway depends on."),
    Route(
        "POST",
        "/reconcile",
        post_reconcile,
        ReconciliationView,
        "Compare ledger and store, run by run.",
        body=ReconcileBody,
        body_required=False,
    ),
)
