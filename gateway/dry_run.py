"""Explains what would happen to a call, by the pipeline's own admission on a dry-run ledger. Nothing is sent,
reserved, recorded or remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gateway.control import Snapshot
from gateway.errors import GatewayError, LedgerOutage
from gateway.ledger.dry_run_ledger import DryRunLedger
from gateway.ledger.port import LedgerUnavailable
from gateway.orchestration.plans import LivePlan, StepStart
from gateway.orchestration.service import (
    Orchestration,
    as_planned,
    declared_limits,
    with_share,
)
from gateway.pipeline.assembly import admission_for, fitting_for
from gateway.pipeline.call import Call, IntentTag, Principal
from gateway.pipeline.intake import check_model
from gateway.pipeline.reserving import Reserving
from gateway.runs.plan import RunPlan
from gateway.store import runs as run_store
from gateway.store.database import StoreError
from gateway.store.runs import Run
from gateway.tags import read_tags
from gateway.wire.protocol import WireProtocol
from policies.allocation import StepAllocation
from policies.amounts import Limit
from policies.budgets import Link, RunLimits, run_account
from policies.classify import Classification
from policies.intents import Intent
from policies.pressure import Rung
from policies.reservation import Balance, Refused

if TYPE_CHECKING:
    from gateway.parts import Parts

# The run that the call would begin, if it names none and none is known here.
NEW_RUN: Final = "implicit-new"


class DryRunPlanner:
    """A `Planner` for one call, which keeps what it finds for the explanation: asks no model, writes nothing and remembers nothing."""

    def __init__(self, orchestration: Orchestration) -> None:
        self._orchestration = orchestration
        self.classification: Classification | None = None
        self.share: StepAllocation | None = None
        self.observed_accounts: tuple[str, ...] = ()
        self._plan: LivePlan | None = None

    async def plan(self, call: Call, snapshot: Snapshot) -> RunLimits:
        orchestration = self._orchestration
        project = call.principal.project
        declared = orchestration.declarations.of(snapshot.workflow(project, call.tags.workflow or ""))
        limits = declared_limits(call, declared)
        settings = snapshot.settings
        if not settings.enabled:
            return limits
        orchestration.assign_arm(call, snapshot, declared)
        threshold = settings.intent_classification_confidence_threshold
        classification = self.classification = orchestration.intents.preview(
            call, declared.intent(call.tags.step), threshold
        )
        call.intent = IntentTag(classification.intent, classification.confidence, classification.source)

        async def propose(stored_run: Run | None) -> RunPlan:
            return await orchestration.first_plan(call, stored_run, snapshot, is_dry_run=True)

        step_start = StepStart(
            call.tags.step, classification.intent, call.tags.priority, classification.confidence, classification.source
        )
        step_grant = await orchestration.plans.preview((project, call.run or ""), step_start, propose, settings)
        planned, own_intent = step_grant.planned, call.intent
        call.intent = as_planned(own_intent, planned)
        if planned is not None and call.intent is not own_intent:
            self.classification = Classification(
                Intent(planned.intent), planned.confidence, planned.source, planned.reasoning, ()
            )
        call.parent_run, self.share, self._plan = step_grant.parent_run or None, step_grant.share, step_grant.plan
        return with_share(limits, step_grant.share, settings)

    async def replan(self, call: Call, refused: Refused, snapshot: Snapshot) -> RunLimits | None:
        """Only for a step's first call. A dry run does not look for a larger budget that this process does not know of."""
        if self._plan is None or not call.chain.is_first_call_refused(refused):
            return None
        answer_tokens = self.output_tokens_min_useful(call) * call.request.choices
        raised = self._plan.raised_share(call.tags.step, refused.needed, answer_tokens, snapshot.settings)
        if raised is None:
            return None
        self.share = raised
        declared = self._orchestration.declarations.of(
            snapshot.workflow(call.principal.project, call.tags.workflow or "")
        )
        return with_share(declared_limits(call, declared), raised, snapshot.settings)

    def model_for(self, call: Call, snapshot: Snapshot) -> str:
        return self._orchestration.routing.model_for(call, snapshot, remembers=False)

    def skip_reason(self, call: Call, rung: Rung) -> str:
        return self._orchestration.skip_reason(call, rung)

    async def compress(self, call: Call, needed_tokens: int | None, *, under_pressure: bool = False) -> bool:
        return await self._orchestration.compression.compress(
            call, needed_tokens, under_pressure=under_pressure, is_dry_run=True
        )

    async def original_tokens(self, call: Call) -> int | None:
        return await self._orchestration.compression.original_tokens(call)

    async def reroute(self, call: Call, refused: Refused | None) -> bool:
        return self._orchestration.routing.reroute(call, refused)

    def output_tokens_min_useful(self, call: Call) -> int:
        return self._orchestration.output_tokens_min_useful(call)

    def output_tokens_expected(self, call: Call) -> int:
        return self._orchestration.output_tokens_expected(call)

    def refused(self, call: Call, refused: Refused) -> None:
        """Nothing to record: the explanation shows it."""

    def observed(self, call: Call, accounts: Sequence[str]) -> None:
        self.observed_accounts = tuple(accounts)


@dataclass(slots=True)
class DryRunResult:
    """`call` is None for a request that is refused before anything is decided. `balances` has the accounts before the call,
    with the limits in force."""

    planner: DryRunPlanner
    call: Call | None = None
    prompt_tokens: int | None = None  # of the original prompt, counted for the model that would be asked
    error: GatewayError | None = None
    balances: Sequence[tuple[Link, Balance]] = field(default=())


async def explain(
    parts: Parts, principal: Principal, protocol: WireProtocol, raw: bytes, headers: Mapping[str, str]
) -> DryRunResult:
    """Raises no `GatewayError`: the explanation contains what the caller would be told."""
    result = DryRunResult(DryRunPlanner(parts.orchestration))
    try:
        call = result.call = _call_of(parts, principal, protocol, raw, headers)
        await _admit(parts, call, result)
    except LedgerUnavailable:
        result.error = LedgerOutage()
    except GatewayError as error:
        result.error = error
    return result


def _call_of(
    parts: Parts, principal: Principal, protocol: WireProtocol, raw: bytes, headers: Mapping[str, str]
) -> Call:
    """The call as the intake would make it."""
    request = protocol.parse(raw)
    call = Call(id=parts.ids.new(), protocol=protocol, principal=principal, request=request)
    call.tags = read_tags(headers, {}, request.metadata, principal.defaults)
    check_model(request.model, principal, lambda name: bool(parts.pool.of(name)))
    workflow = call.tags.workflow
    if workflow is not None:
        call.run = call.tags.run or parts.runs.last_implicit(principal.project, workflow) or NEW_RUN
    return call


async def _admit(parts: Parts, call: Call, result: DryRunResult) -> None:
    dry_run_ledger = DryRunLedger(parts.ledger, await _overrides(parts, call))
    runs = parts.runs.dry_run_copy(dry_run_ledger)
    reserving = Reserving(dry_run_ledger, local=None, runs=runs, is_outbox_full=lambda: parts.flusher.is_full)
    fitting = fitting_for(parts, reserving, planner=result.planner)
    admission = admission_for(
        parts, fitting, ledger=dry_run_ledger, planner=result.planner, runs=runs, sleep=_without_waiting
    )
    try:
        await admission.admit(call)
    finally:
        if call.deployment is not None:
            parts.pool.release(call.deployment)
        result.prompt_tokens = await result.planner.original_tokens(call)
        result.balances = await _balances_before(call, dry_run_ledger)


async def _balances_before(call: Call, dry_run_ledger: DryRunLedger) -> Sequence[tuple[Link, Balance]]:
    links = call.chain.links
    await dry_run_ledger.void(call.principal.project, call.id)
    balances = await dry_run_ledger.balances(call.principal.project, [link.hold.account for link in links])
    return [
        (link, dry_run_ledger.with_effective_limit(call.principal.project, link.hold, balance))
        for link, balance in zip(links, balances, strict=True)
    ]


async def _overrides(parts: Parts, call: Call) -> Mapping[str, Limit]:
    """The budgets that people gave this run, from the store; empty if that is unreachable."""
    if call.run is None:
        return {}
    try:
        run = await run_store.get(parts.store, call.principal.project, call.run)
    except StoreError:
        return {}
    return {run_account(call.run): run.own_budget} if run is not None else {}


async def _without_waiting(_seconds: float) -> None:
    """Waiting cannot change anything on a dry-run ledger."""
