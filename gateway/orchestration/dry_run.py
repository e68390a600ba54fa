"""A dry run of the orchestration for one call: asks no model, writes nothing and remembers nothing."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.control import Snapshot
from gateway.orchestration.plans import StepStart
from gateway.orchestration.service import Orchestration, as_planned, declared_limits, with_share
from gateway.pipeline.call import Call, IntentTag
from gateway.runs.plan import RunPlan
from gateway.store.runs import Run
from policies.allocation import StepAllocation
from policies.budgets import RunLimits
from policies.classify import Classification
from policies.intents import Intent
from policies.pressure import Rung
from policies.reservation import Refused


class DryRunPlanner:
    """A `Planner` for one call, which keeps what it finds for the explanation of the call."""

    def __init__(self, orchestration: Orchestration) -> None:
        self._orchestration = orchestration
        self.classification: Classification | None = None
        self.share: StepAllocation | None = None
        self.observed_accounts: tuple[str, ...] = ()

    async def plan(self, call: Call, snapshot: Snapshot) -> RunLimits:
        whole = self._orchestration
        project = call.principal.project
        declared = whole.declarations.of(snapshot.workflow(project, call.tags.workflow or ""))
        limits = declared_limits(call, declared)
        settings = snapshot.settings
        if not settings.enabled:
            return limits
        whole.assign_arm(call, snapshot, declared)
        threshold = settings.intent_classification_confidence_threshold
        found = self.classification = whole.intents.preview(call, declared.intent(call.tags.step), threshold)
        call.intent = IntentTag(found.intent, found.confidence, found.source)

        async def propose(known: Run | None) -> RunPlan:
            return await whole.first_plan(call, known, snapshot, is_dry_run=True)

        step_start = StepStart(call.tags.step, found.intent, call.tags.priority, found.confidence, found.source)
        step_grant = await whole.plans.preview((project, call.run or ""), step_start, propose, settings)
        planned, own = step_grant.planned, call.intent
        call.intent = as_planned(own, planned)
        if planned is not None and call.intent is not own:
            self.classification = Classification(
                Intent(planned.intent), planned.confidence, planned.source, planned.reasoning, ()
            )
        call.parent_run, self.share = step_grant.parent_run or None, step_grant.share
        return with_share(limits, step_grant.share, settings)

    async def replan(self, call: Call, refused: Refused, snapshot: Snapshot) -> RunLimits | None:
        """A dry run does not look for a larger budget that this process does not know of."""
        return None

    def model_for(self, call: Call, snapshot: Snapshot) -> str:
        return self._orchestration.routing.model_for(call, snapshot, remembers=False)

    def why_not(self, call: Call, rung: Rung) -> str:
        return self._orchestration.why_not(call, rung)

    async def compress(self, call: Call, needed_tokens: int | None, *, pressed: bool = False) -> bool:
        return await self._orchestration.compression.compress(call, needed_tokens, pressed=pressed, is_dry_run=True)

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
