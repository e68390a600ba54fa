"""The decisions about a tagged call before it is admitted: its intent, its step's share of the run, and its model.

Everything here is optional: if it fails, the error is counted and logged, and the call goes on as if orchestration were off. The limits
that somebody set never depend on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
import structlog

from gateway.control import Snapshot
from gateway.errors import BadRequest
from gateway.observability.telemetry import Telemetry
from gateway.orchestration.answers import answer_of, is_readable
from gateway.orchestration.audit_trail import AuditTrail
from gateway.orchestration.declarations import Declarations, DeclaredWorkflow
from gateway.orchestration.histories import WorkflowHistories
from gateway.orchestration.intensity_scoring import IntensityScoring
from gateway.orchestration.intents import Intents
from gateway.orchestration.plans import Plans, StepStart
from gateway.orchestration.prompt_compression import PromptCompression
from gateway.orchestration.routing import Routing
from gateway.pipeline.call import Call, IntentTag
from gateway.runs.plan import PlannedStep, RunPlan, RunRequest, kept_plan, plan_run, strategy_of, with_declaration
from gateway.store.runs import Run
from policies.allocation import StepAllocation
from policies.amounts import UNLIMITED, Limit
from policies.budgets import Budget, Mode, RunLimits, Scope, Subject, step_account
from policies.classify import plan_takes_precedence
from policies.declaration import flattened
from policies.holdout import Arm, arm_of
from policies.pressure import Rung
from policies.pricing import Usage
from policies.reservation import Refused
from policies.settings import Settings

_log = structlog.get_logger(__name__)


class Orchestration:
    def __init__(
        self,
        *,
        intents: Intents,
        plans: Plans,
        histories: WorkflowHistories,
        compression: PromptCompression,
        routing: Routing,
        scoring: IntensityScoring,
        trail: AuditTrail,
        snapshot: Callable[[], Snapshot],
        telemetry: Telemetry,
        budgets: Callable[[], Sequence[Budget]],
        holdout_share: float = 0.0,
    ) -> None:
        self.intents = intents
        self.plans = plans
        self.histories = histories
        self.scoring = scoring
        self.trail = trail
        self.compression = compression
        self.routing = routing
        self._snapshot = snapshot
        self._telemetry = telemetry
        self._budgets = budgets
        self._holdout_share = holdout_share
        self.declarations = Declarations()
        self._concluded = snapshot()

    async def start(self) -> None:
        await self.intents.start()
        self.plans.start()
        self.trail.start()
        self.scoring.start()

    async def stop(self) -> None:
        await self.compression.stop()
        await self.scoring.stop()
        await self.intents.stop()
        await self.plans.stop()
        await self.trail.stop()

    def settings_changed(self, snapshot: Snapshot) -> None:
        """Drop what was concluded under old settings, declarations and budgets. A change of keys does not matter."""
        previous, self._concluded = self._concluded, snapshot
        is_same = previous.settings == snapshot.settings and previous.workflows is snapshot.workflows
        if is_same and previous.budgets is snapshot.budgets:
            return
        self.intents.forget()
        self.histories.forget()
        self.plans.forget()

    async def plan(self, call: Call, snapshot: Snapshot) -> RunLimits:
        """The limits of this call's run and step, in addition to its budgets. Never raises."""
        declared = self.declarations.of(snapshot.workflow(call.principal.project, call.tags.workflow or ""))
        limits = declared_limits(call, declared)
        if not snapshot.settings.enabled:
            return limits
        try:
            return await self._planned(call, snapshot, declared, limits)
        except Exception:  # noqa: BLE001 - an error inside orchestration never fails the call: it goes on unplanned, counted
            self._note_failure(call)
            return limits

    async def _planned(
        self, call: Call, snapshot: Snapshot, declared: DeclaredWorkflow, limits: RunLimits
    ) -> RunLimits:
        settings = snapshot.settings
        threshold = settings.intent_classification_confidence_threshold
        self.assign_arm(call, snapshot, declared)
        call.intent = intent = await self.intents.of(call, declared.intent(call.tags.step), threshold)

        async def propose(stored_run: Run | None) -> RunPlan:
            return await self.first_plan(call, stored_run, snapshot)

        step_grant = await self.plans.step(
            (call.principal.project, call.run or ""),
            StepStart(call.tags.step, intent.intent, call.tags.priority, intent.confidence, intent.source),
            propose,
            settings,
        )
        call.intent = as_planned(intent, step_grant.planned)
        call.parent_run = step_grant.parent_run or None
        if step_grant.is_new and step_grant.share is not None:
            self._note_allocation(call, step_grant.share)
        return with_share(limits, step_grant.share, settings)

    def budget_changed(self, project: str, run: str) -> None:
        """Handle a change of a run's budget."""
        self.plans.drop(project, run)

    async def replan(self, call: Call, refused: Refused, snapshot: Snapshot) -> RunLimits | None:
        """New limits for a call that its step's share refused, if its run was given more since, or if it is the step's first call
        and a tight run left it too small a share; otherwise None. Never raises."""
        project, run = call.principal.project, call.run or ""
        settings = snapshot.settings
        if not settings.enabled or refused.account != step_account(run, call.tags.step):
            return None
        if await self.plans.is_outgrown(project, run):
            self.plans.drop(project, run)
            return await self.plan(call, snapshot)
        intent = call.intent
        if intent is None or not call.chain.is_first_call_refused(refused):
            return None
        step_start = StepStart(call.tags.step, intent.intent, call.tags.priority, intent.confidence, intent.source)
        answer_tokens = self.output_tokens_min_useful(call) * call.request.choices
        share = self.plans.raise_share((project, run), step_start, refused.needed, answer_tokens, settings)
        if share is None:
            return None
        self._note_allocation(call, share)
        declared = self.declarations.of(snapshot.workflow(project, call.tags.workflow or ""))
        return with_share(declared_limits(call, declared), share, settings)

    async def first_plan(
        self, call: Call, stored_run: Run | None, snapshot: Snapshot, *, is_dry_run: bool = False
    ) -> RunPlan:
        """The plan of a run that was not announced, at its first call. `is_dry_run`: a dry run, which asks no model."""
        return await self._proposed(
            _request_of(call, stored_run), call.principal.project, snapshot, call, is_dry_run=is_dry_run
        )

    def assign_arm(self, call: Call, snapshot: Snapshot, declared: DeclaredWorkflow) -> None:
        """Assign the call to a side of the holdout, if it could be compressed or routed; otherwise there is nothing to compare."""
        if not self._holdout_share:
            return
        compresses = snapshot.settings.compression_enabled and declared.compresses
        is_compressed = compresses and "no-compress" not in call.tags.options
        if call.arm is None and (is_compressed or self.routing.is_wanted(call, snapshot)):
            call.arm = arm_of(call.principal.project, call.run or "", self._holdout_share)
            if call.arm is Arm.HOLDOUT:
                call.actions.append(Arm.HOLDOUT.value)

    async def propose(self, project: str, request: RunRequest) -> RunPlan:
        """The plan that such a run would have. Raises ValueError as `plan_run` does. Changes nothing, and asks no model."""
        await self._read_steps(project, request)
        return await self._proposed(request, project, self._snapshot(), is_dry_run=True)

    async def initialise(self, project: str, request: RunRequest, stored_plan: RunPlan | None = None) -> RunPlan:
        """Plan a run before it begins, and keep the plan. `stored_plan` is an earlier plan whose steps stay.

        Raises ValueError like `plan_run`.
        """
        if stored_plan is None:
            await self._read_steps(project, request)
            plan = await self._proposed(request, project, self._snapshot())
        else:
            snapshot = self._snapshot()
            limit_tokens = self._pool_limit(request, project, snapshot, None)
            plan = kept_plan(stored_plan, request, limit_tokens, snapshot.settings)
        self.plans.put(project, request.run, plan, request.parent_run)
        steps = {step.step: [step.intent, step.allocation_tokens, step.hard_limit_tokens] for step in plan.steps}
        self.trail.note_run(
            "run.planned", project, request.run, strategy=plan.strategy, pool_tokens=plan.pool_tokens, steps=steps
        )
        return plan

    async def _read_steps(self, project: str, request: RunRequest) -> None:
        """Each in a turn of the loop for itself, so that calls have theirs: hundreds of long prompts take most of a second.
        What was read is remembered."""
        snapshot = self._snapshot()
        for step in flattened(with_declaration(request, snapshot, project)):
            self.intents.profile(step, request.workflow, snapshot.settings, project=project, asks=False)
            await asyncio.sleep(0)

    async def _proposed(
        self,
        request: RunRequest,
        project: str,
        snapshot: Snapshot,
        call: Call | None = None,
        *,
        is_dry_run: bool = False,
    ) -> RunPlan:
        """Plans announced, declared and learned runs alike. `call` is the first call of a run that was not announced."""
        workflow = snapshot.workflow(project, request.workflow)
        settings = snapshot.settings
        strategy = request.strategy or strategy_of(settings, workflow)
        steps = with_declaration(request, snapshot, project)
        is_adaptive = strategy == "adaptive"
        # A declared run with another strategy needs no history, and so no query.
        needs_history = bool(request.workflow) and (is_adaptive or not steps)
        history = await self.histories.of(project, request.workflow, alike=is_adaptive) if needs_history else None
        learned = history.learned() if history is not None and not steps else ()
        agent = request.agent or str((workflow.declaration.get("agent") if workflow else None) or "")
        ais = request.ais if request.ais is not None or not agent else snapshot.ais(project, agent)
        full_request = replace(request, steps=_with_call_tags(steps or learned, call), strategy=strategy, ais=ais)
        plan = plan_run(
            full_request,
            settings,
            pool_limit_tokens=self._pool_limit(full_request, project, snapshot, call),
            histories=history.of if is_adaptive and history is not None else lambda _step, _intent: None,
            profiler=partial(self.intents.profile, project=project, asks=not is_dry_run),
        )
        if learned:
            # Their intents were observed in past runs, not declared.
            return replace(plan, steps=tuple(replace(step, source="cache") for step in plan.steps))
        return plan

    def _pool_limit(self, request: RunRequest, project: str, snapshot: Snapshot, call: Call | None) -> int:
        """The most that the run may use: the limit of the settings or the declaration, tightened by all budgets on the run and its own.

        Budgets in observe mode do not count, because they must not cause a step to be refused.
        """
        declared = self.declarations.of(snapshot.workflow(project, request.workflow))
        limit = Limit(tokens=snapshot.settings.max_tokens_per_workflow).replaced_by(declared.limit)
        subject = Subject(project, workflow=request.workflow or None, run=request.run)
        for budget in self._budgets():
            if budget.scope is Scope.RUN and budget.mode is Mode.ENFORCE and budget.applies_to(subject):
                limit = limit.tightened_by(budget.limit)
        limit = limit.replaced_by(request.budget)
        if call is not None:
            limit = limit.tightened_by(call.tags.budget)
        return limit.tokens or 0

    def limits_of(self, project: str, workflow: str, step: str | None = None) -> RunLimits:
        """The limits of a run and its step from settings and declaration, without the shares of a plan."""
        snapshot = self._snapshot()
        declared = self.declarations.of(snapshot.workflow(project, workflow))
        run_limit = Limit(tokens=snapshot.settings.max_tokens_per_workflow if snapshot.settings.enabled else None)
        return RunLimits(
            planned_run=run_limit.replaced_by(declared.limit),
            planned_step=UNLIMITED if step is None else declared.step_limit(step),
            observe=declared.observes,
        )

    def model_for(self, call: Call, snapshot: Snapshot) -> str:
        """The model to call: the named one, or the one that routing chose. Raises `BadRequest` if no model can take an `auto` call."""
        requested_model = call.request.model
        try:
            chosen = self.routing.model_for(call, snapshot)
        except BadRequest:
            raise
        except Exception:  # noqa: BLE001 - the named model is used then
            self._note_failure(call)
            return requested_model
        if chosen != requested_model and call.is_tagged:
            self.trail.note("model.routed", call, chosen, asked=requested_model, why=_why(call))
        return chosen

    def skip_reason(self, call: Call, rung: Rung) -> str:
        """Why a call is not compressed or rerouted; empty if it may be."""
        snapshot = self._snapshot()
        settings = snapshot.settings
        if not (settings.enabled and call.is_tagged):
            return "orchestration is off" if call.is_tagged else "the call is not tagged"
        if call.arm is Arm.HOLDOUT:
            return "the run is held out, so that savings can be measured against it"
        if rung is Rung.COMPRESS:
            declared = self.declarations.of(snapshot.workflow(call.principal.project, call.tags.workflow or ""))
            return self.compression.skip_reason(call, snapshot) if declared.compresses else "the workflow forbids it"
        return "" if self.routing.is_offered(settings) else "routing is off, or no model is in a tier"

    async def compress(self, call: Call, needed_tokens: int | None, *, under_pressure: bool = False) -> bool:
        saved_before = call.saved.tokens
        try:
            changed = await self.compression.compress(call, needed_tokens, under_pressure=under_pressure)
        except Exception:  # noqa: BLE001 - the original prompt is sent then
            self._note_failure(call)
            return False
        if changed:
            detail = call.decisions[-1] if call.decisions else {}
            self.trail.note(
                "prompt.compressed", call, call.tags.step, tokens=call.saved.tokens - saved_before, **detail
            )
        return changed

    def answered(self, call: Call, usage: Usage) -> None:
        """Take note of what a tagged call was billed."""
        if self._snapshot().settings.compression_enabled:
            self.compression.answered(call, usage)

    async def reroute(self, call: Call, refused: Refused | None) -> bool:
        previous_model = call.model
        try:
            changed = self.routing.reroute(call, refused)
        except Exception:  # noqa: BLE001 - without another model the next rung decides
            self._note_failure(call)
            return False
        if changed:
            self.trail.note("model.routed", call, call.model, asked=previous_model, why=_why(call))
        return changed

    def output_tokens_min_useful(self, call: Call) -> int:
        """The shortest useful answer for the call's intent, in tokens; 0 if the intent is unknown."""
        return self.routing.handler(call).output_tokens_min if call.intent is not None else 0

    def output_tokens_expected(self, call: Call) -> int:
        """The expected answer for the call's intent, in tokens; 0 if the intent is unknown."""
        return self.routing.output_tokens_expected(call) if call.intent is not None else 0

    def refused(self, call: Call, refused: Refused) -> None:
        """Record that a call was refused after all rungs were tried."""
        self.trail.note(
            "call.refused",
            call,
            refused.account,
            reason=refused.reason.value,
            unit=refused.unit,
            needed=refused.needed,
            limit=refused.balance.limit.of(refused.unit) if refused.unit else None,
        )

    def observed(self, call: Call, accounts: Sequence[str]) -> None:
        """Record a call that would have been refused if these accounts were enforced."""
        self.trail.note("call.observed", call, accounts[0], accounts=list(accounts))

    def is_judged(self, call: Call) -> bool:
        """Whether the call's answer is to be checked, which is the case for routed calls."""
        return call.is_tagged and is_readable(call) and self.routing.is_judged(call)

    def judge(self, call: Call, body: bytes, *, streamed: bool = False) -> None:
        """Check the complete answer of a routed call. `streamed`: the body is a sequence of events."""
        if not self.is_judged(call):
            return
        try:
            answer = call.protocol.assemble(body) if streamed else orjson.loads(body)
            if isinstance(answer, dict):
                self.routing.judge(call, answer_of(call, answer))
        except Exception:  # noqa: BLE001 - a judgement is an extra
            self._note_failure(call)

    def _note_allocation(self, call: Call, share: StepAllocation) -> None:
        self.trail.note(
            "budget.allocated",
            call,
            share.step,
            tokens=share.tokens,
            hard_limit_tokens=share.hard_limit_tokens,
            reason=share.reason,
        )

    def _note_failure(self, call: Call) -> None:
        self._telemetry.orchestration_errors.inc()
        _log.exception("orchestration_failed", request_id=call.id, workflow=call.tags.workflow)


def as_planned(classified: IntentTag, planned: PlannedStep | None) -> IntentTag:
    """The intent of a call whose step may be in its run's plan. The same object if the plan does not decide it."""
    if planned is None or not plan_takes_precedence(planned.source, classified.source):
        return classified
    return IntentTag(planned.intent, planned.confidence, planned.source)


def declared_limits(call: Call, declared: DeclaredWorkflow) -> RunLimits:
    """The limits that apply even with orchestration off: the caller's own, and those of the workflow's declaration."""
    return RunLimits(
        tightened=call.tags.budget,
        planned_run=declared.limit,
        planned_step=declared.step_limit(call.tags.step),
        observe=declared.observes,
        ladder=declared.ladder,
    )


def with_share(limits: RunLimits, share: StepAllocation | None, settings: Settings) -> RunLimits:
    planned_run = Limit(tokens=settings.max_tokens_per_workflow).replaced_by(limits.planned_run)
    if share is None:
        return replace(limits, planned_run=planned_run)
    hard, soft = share.hard_limit_tokens, share.tokens
    return replace(
        limits,
        planned_run=planned_run,
        planned_step=limits.planned_step.tightened_by(Limit(tokens=hard)),
        step_soft_tokens=soft if soft < hard else None,
        step_share_tokens=hard,
    )


def _request_of(call: Call, stored_run: Run | None) -> RunRequest:
    """The announcement that would describe the call's run."""
    tags = call.tags
    budget = stored_run.own_budget if stored_run is not None else UNLIMITED
    return RunRequest(
        call.run or "", tags.workflow or "", tags.agent or "", tags.user or "", tags.parent_run or "", budget
    )


def _with_call_tags(steps: Sequence[Mapping[str, Any]], call: Call | None) -> tuple[Mapping[str, Any], ...]:
    """The steps, where intent and priority from the first call's headers override the declaration of its own step."""
    if call is None or (call.tags.intent is None and call.tags.priority == "normal"):
        return tuple(steps)
    fields = {"intent": call.tags.intent} if call.tags.intent is not None else {}
    if call.tags.priority != "normal":
        fields["priority"] = call.tags.priority
    return tuple(_with_fields(step, call.tags.step, fields) for step in steps)


def _with_fields(step: Mapping[str, Any], name: str, fields: Mapping[str, str]) -> Mapping[str, Any]:
    """The step with these fields if it has this name; likewise the steps inside a group."""
    changed = {**step, **fields} if step.get("id") == name else {**step}
    if step.get("steps"):
        changed["steps"] = [_with_fields(inner, name, fields) for inner in step["steps"]]
    return changed


def _why(call: Call) -> str:
    return str(call.decisions[-1].get("why", "")) if call.decisions else ""
