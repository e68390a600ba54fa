"""What is decided about a tagged call before it is admitted: its intent, its step's share of the run, its model.

Everything here is an extra. An error inside is counted and logged, and the call goes on as if orchestration were off; only
the limits that somebody set by hand never depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson
import structlog

from gateway.control import Snapshot
from gateway.orchestration.compressing import Compressing
from gateway.orchestration.intents import Intents
from gateway.orchestration.plans import PlannedStep, Plans, declared_steps
from gateway.orchestration.routing import Routing, answer_of
from gateway.pipeline.call import Call
from gateway.store.workflows import Workflow
from gateway.telemetry import Telemetry
from policies.allocation import NEUTRAL_AIS
from policies.amounts import UNLIMITED, Limit
from policies.budgets import Budget, Rung, RunLimits, Scope, Subject
from policies.reservation import Refused
from policies.settings import Settings

_log = structlog.get_logger(__name__)


class Orchestration:
    def __init__(
        self,
        *,
        intents: Intents,
        plans: Plans,
        compressing: Compressing,
        routing: Routing,
        snapshot: Callable[[], Snapshot],
        telemetry: Telemetry,
        budgets: Callable[[], Sequence[Budget]],
    ) -> None:
        self.intents = intents
        self.plans = plans
        self._compressing = compressing
        self._routing = routing
        self._snapshot = snapshot
        self._telemetry = telemetry
        self._budgets = budgets

    async def start(self) -> None:
        await self.intents.start()

    async def stop(self) -> None:
        await self.intents.stop()

    def settings_changed(self, _: Snapshot) -> None:
        """Conclusions drawn under the old settings and declarations are drawn anew."""
        self.intents.forget()
        self.plans.forget()

    async def plan(self, call: Call, snapshot: Snapshot) -> RunLimits:
        """The limits of this call's run and step beside its budgets. Never raises."""
        workflow = snapshot.workflow(call.principal.project, call.tags.workflow or "")
        limits = RunLimits(
            tightened=call.tags.budget,
            planned_run=_declared_limit(workflow),
            observe=workflow is not None and workflow.mode == "observe",
        )
        if not snapshot.settings.enabled:
            return limits
        try:
            return await self._planned(call, snapshot, workflow, limits)
        except Exception:  # noqa: BLE001 - an error inside orchestration never fails the call: it goes on unplanned, counted
            self._note_failure(call)
            return limits

    async def _planned(self, call: Call, snapshot: Snapshot, workflow: Workflow | None, limits: RunLimits) -> RunLimits:
        settings = snapshot.settings
        declared = declared_steps(workflow.declaration.get("steps") or ()) if workflow is not None else []
        own = next((step for step in declared if step.id == call.tags.step), None)
        threshold = settings.intent_classification_confidence_threshold
        call.intent = await self.intents.of(call, own.intent if own and own.intent else None, threshold)
        run_limit = Limit(tokens=settings.max_tokens_per_workflow).replaced_by(limits.planned_run)
        pool_limit = self._pool_limit(call, run_limit)
        allocation = await self.plans.step(
            (call.principal.project, call.run or ""),
            call.tags.workflow or "",
            PlannedStep(call.tags.step, call.intent.intent, call.tags.priority, own.budget_tokens if own else None),
            declared=[replace(step, intent=step.intent or call.intent.intent) for step in declared],
            pool_limit_tokens=pool_limit,
            settings=settings,
            ais=self._ais(call, snapshot),
        )
        hard, soft = min(allocation.hard_limit_tokens, pool_limit), allocation.tokens
        return replace(
            limits,
            planned_run=run_limit,
            planned_step=Limit(tokens=hard),
            step_soft_tokens=soft if soft < hard else None,
        )

    def _pool_limit(self, call: Call, run_limit: Limit) -> int:
        """What the run may use at most: the plan's limit, the caller's, and every budget on the run."""
        subject = Subject(call.principal.project, workflow=call.tags.workflow, run=call.run)
        limit = run_limit.tightened_by(call.tags.budget)
        for budget in self._budgets():
            if budget.scope is Scope.RUN and budget.applies_to(subject):
                limit = limit.tightened_by(budget.limit)
        return limit.tokens or 0

    @staticmethod
    def _ais(call: Call, snapshot: Snapshot) -> float:
        if call.tags.agent is None:
            return NEUTRAL_AIS
        known = snapshot.ais(call.principal.project, call.tags.agent)
        return NEUTRAL_AIS if known is None else known

    def model_for(self, call: Call, snapshot: Snapshot) -> str:
        """The model to ask: the named one, or the one that routing chose. Raises `BadRequest` for an `auto` nobody can take."""
        return self._routing.model_for(call, snapshot)

    def offers(self, call: Call, rung: Rung) -> bool:
        settings = self._snapshot().settings
        if not (settings.enabled and call.is_tagged):
            return False
        if rung is Rung.COMPRESS:
            return self._compressing.is_offered(call, settings)
        return rung is Rung.ROUTE and self._routing.is_offered(settings)

    async def compress(self, call: Call, needed_tokens: int) -> bool:
        try:
            return await self._compressing.compress(call, needed_tokens)
        except Exception:  # noqa: BLE001 - the original goes then
            self._note_failure(call)
            return False

    async def reroute(self, call: Call, refused: Refused) -> bool:
        return self._routing.reroute(call, refused)

    def judge(self, call: Call, body: bytes) -> None:
        """Look at the whole answer of a routed call. Calls that were not routed cost one look-up here."""
        if not (call.is_tagged and call.protocol.name == "chat" and self._routing.is_followed(call)):
            return
        try:
            answer = orjson.loads(body)
            if isinstance(answer, dict):
                self._routing.judge(call, answer_of(call, answer))
        except Exception:  # noqa: BLE001 - a judgement is an extra
            self._note_failure(call)

    def _note_failure(self, call: Call) -> None:
        self._telemetry.orchestration_errors.inc()
        _log.exception("orchestration_failed", request_id=call.id, workflow=call.tags.workflow)


def _declared_limit(workflow: Workflow | None) -> Limit:
    """A budget that the declaration puts on each run of the workflow."""
    if workflow is None:
        return UNLIMITED
    tokens = workflow.declaration.get("budget_tokens")
    nano_usd = workflow.declaration.get("budget_nano_usd")
    return Limit(tokens if isinstance(tokens, int) else None, nano_usd if isinstance(nano_usd, int) else None)


def strategy_of(settings: Settings, workflow: Workflow | None) -> str:
    """The allocation strategy of a workflow: its own, else that of the settings."""
    own = workflow.declaration.get("strategy") if workflow is not None else None
    return own if isinstance(own, str) and own else settings.allocation_strategy
