"""A run as people see it: the ledger's current figures, and what the store has. Shared by API, CLI and UI.

The ledger's figures apply while it remembers the run and can be reached. Otherwise the store's sums are used, which lag by a
moment (`source` says which).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from gateway.ledger.batches import balances_by_account
from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.store import runs as runs_store
from gateway.store.database import Database
from gateway.store.runs import Run, RunFilter, RunStep, Sums
from gateway.timestamps import iso
from policies.allocation import Overage, overage_of
from policies.amounts import UNITS, UNLIMITED, ZERO, Amount, Limit, Unit, usd
from policies.budgets import Budget, RunLimits, Scope, Subject, chain_for, run_account, step_account
from policies.reservation import Balance, Gate

RunState = Literal["active", "paused", "exhausted", "completed", "cancelled"]
Source = Literal["ledger", "store"]
_PAGES_MAX: Final = 20
_OF_GATE: Final[Mapping[Gate, RunState]] = {
    Gate.PAUSED: "paused",
    Gate.CANCELLED: "cancelled",
    Gate.COMPLETED: "completed",
    Gate.LOOPING: "paused",
}


@dataclass(frozen=True, slots=True)
class Tokens:
    """remaining = limit − settled − reserved; null without a limit, negative after an overrun."""

    limit: int | None
    settled: int
    reserved: int
    remaining: int | None
    overrun: int
    saved: int


@dataclass(frozen=True, slots=True)
class Requests:
    limit: int | None
    settled: int
    reserved: int
    remaining: int | None
    overrun: int
    saved: int


@dataclass(frozen=True, slots=True)
class Dollars:
    limit: float | None
    settled: float
    reserved: float
    remaining: float | None
    overrun: float
    saved: float


@dataclass(frozen=True, slots=True)
class StepView:
    """`tokens.limit` is the hard limit; above `allocation_tokens` the step is flagged (`over_soft`)."""

    step: str
    intent: str
    confidence: float | None
    intent_source: str
    tier: str
    model: str
    priority: str
    compression: str
    status: Overage
    allocation_tokens: int | None
    hard_limit_tokens: int | None
    reason: str
    tokens: Tokens
    cost_usd: Dollars
    calls: int
    refused: int
    errors: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """`budget_used` and `saved_share` are shares from 0 (above 1 after an overrun); null without a limit.

    `adherence` is the share of allocated steps with calls that stayed within their allocation; `overhead_ms` is the gateway's
    own time over all calls, null if the calls are no longer stored; `intents` counts calls by intent.
    """

    duration_ms: int
    calls: int
    refused: int
    errors: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cost_usd: float
    saved_tokens: int
    saved_usd: float
    overrun_tokens: int
    allocated_tokens: int | None
    budget_used: float | None
    saved_share: float
    adherence: float | None
    overhead_ms: float | None
    intents: dict[str, int]


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in a list. `state_reason` is `loop_detected` if the loop breaker paused it, empty if people did."""

    run: str
    workflow: str
    agent: str
    user: str
    parent_run: str
    state: RunState
    state_reason: str
    tokens: Tokens
    cost_usd: Dollars
    requests: Requests
    calls: int
    refused: int
    errors: int
    started_at: str | None
    last_at: str | None
    completed_at: str | None
    source: Source


@dataclass(frozen=True, slots=True)
class RunView(RunLine):
    strategy: str | None
    pool_tokens: int | None
    steps: tuple[StepView, ...]
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class RunLines:
    runs: tuple[RunLine, ...]
    next: str | None


class RunViews:
    def __init__(
        self,
        store: Database,
        ledger: Ledger,
        *,
        budgets: Callable[[], Sequence[Budget]],
        limits_of: Callable[[str, str, str | None], RunLimits],
        now_ms: Callable[[], int],
    ) -> None:
        """`limits_of` returns the plan for (project, workflow, step), which applies in addition to `budgets`."""
        self._store = store
        self._ledger = ledger
        self._budgets = budgets
        self._limits_of = limits_of
        self._now_ms = now_ms

    async def get(self, project: str, run: str) -> RunView | None:
        """None if there is no such run. Raises StoreUnavailable."""
        run_row = await runs_store.get(self._store, project, run)
        if run_row is None:
            return None
        accounts = [run_account(run), *(step_account(run, step.step) for step in run_row.steps)]
        balances = await self._balances(project, accounts)
        line = self._line(run_row, balances)
        run_limit = self.limit(run_row, balances.get(run_account(run)))
        steps = tuple(self._step(run_row, step, balances, run_limit) for step in run_row.steps)
        line_fields = {name: getattr(line, name) for name in RunLine.__slots__}
        plan = run_row.plan
        return RunView(
            **line_fields,
            strategy=plan.get("strategy"),
            pool_tokens=plan.get("pool_tokens"),
            steps=steps,
            metrics=_metrics(run_row, line, steps, await runs_store.overhead_us(self._store, run_row)),
        )

    async def list(self, run_filter: RunFilter, limit: int, cursor: str | None) -> RunLines:
        """Latest first. `run_filter.state` is the state as shown, so a page may have fewer than `limit` runs."""
        lines: list[RunLine] = []
        scanned = replace(run_filter, state=run_filter.state if run_filter.state in runs_store.FINAL_STATES else None)
        for _ in range(_PAGES_MAX):
            page = await runs_store.list_runs(self._store, scanned, limit - len(lines), cursor)
            balances = await self._balances(run_filter.project or "", [run_account(run.run) for run in page.runs])
            run_lines = (self._line(run, balances) for run in page.runs)
            lines += [line for line in run_lines if run_filter.state in (None, line.state)]
            cursor = page.next
            if cursor is None or len(lines) >= limit:
                break
        return RunLines(tuple(lines), cursor)

    async def balance(self, project: str, run: str) -> Balance:
        """The ledger's balance of a run, without the limits of budgets. Raises LedgerUnavailable."""
        return (await self._ledger.balances(project, [run_account(run)]))[0]

    def limit(self, run: Run, balance: Balance | None) -> Limit:
        """What the run may use: budgets and the workflow's declaration, replaced by its own budget, tightened by callers."""
        limit = self._budgeted(run, Scope.RUN, None).replaced_by(run.own_budget)
        # The ledger reports override and tightening as one limit; the override is already included, so this adds the tightening.
        return limit if balance is None else limit.tightened_by(balance.limit)

    async def _balances(self, project: str, accounts: Sequence[str]) -> Mapping[str, Balance]:
        try:
            return await balances_by_account(self._ledger, project, accounts)
        except LedgerUnavailable:
            return {}

    def _line(self, run: Run, balances: Mapping[str, Balance]) -> RunLine:
        balance = balances.get(run_account(run.run))
        sums = run.sums
        settled, reserved, source = _settled_and_reserved(balance, sums)
        limit = self.limit(run, balance)
        return RunLine(
            run=run.run,
            workflow=run.workflow,
            agent=run.agent,
            user=run.user,
            parent_run=run.parent_run,
            state=_state(run, balance, limit, settled + reserved),
            state_reason="loop_detected" if balance is not None and balance.gate is Gate.LOOPING else "",
            tokens=_tokens(limit, settled, reserved, sums),
            cost_usd=_dollars(limit, settled, reserved, sums),
            requests=Requests(*_figures("requests", limit, settled, reserved), overrun=0, saved=0),
            calls=sums.calls,
            refused=sums.refused,
            errors=sums.errors,
            started_at=iso(run.first_at_ms),
            last_at=iso(run.last_at_ms),
            completed_at=iso(run.completed_at_ms),
            source=source,
        )

    def _step(self, run: Run, step: RunStep, balances: Mapping[str, Balance], run_limit: Limit) -> StepView:
        balance = balances.get(step_account(run.run, step.step))
        sums = step.sums
        settled, reserved, _ = _settled_and_reserved(balance, sums)
        limit = self._budgeted(run, Scope.STEP, step.step).tightened_by(Limit(tokens=step.hard_limit_tokens))
        limit = (limit if balance is None else limit.tightened_by(balance.limit)).capped_by(run_limit)
        tokens = _tokens(limit, settled, reserved, sums)
        return StepView(
            step=step.step,
            intent=step.intent,
            confidence=step.confidence,
            intent_source=step.intent_source,
            tier=step.tier,
            model=step.model,
            priority=str(step.plan.get("priority", "")),
            compression=str(step.plan.get("compression", "")),
            status=overage_of(tokens.settled + tokens.reserved, step.allocation_tokens, tokens.limit),
            allocation_tokens=step.allocation_tokens,
            hard_limit_tokens=step.hard_limit_tokens,
            reason=str(step.plan.get("reason", "")),
            tokens=tokens,
            cost_usd=_dollars(limit, settled, reserved, sums),
            calls=sums.calls,
            refused=sums.refused,
            errors=sums.errors,
        )

    def _budgeted(self, run: Run, scope: Scope, step: str | None) -> Limit:
        subject = Subject(run.project, workflow=run.workflow or None, run=run.run, step=step)
        chain = chain_for(subject, self._budgets(), self._limits_of(run.project, run.workflow, step), self._now_ms())
        link = chain.enforced_link(scope)
        return UNLIMITED if link is None else link.hold.limit


def _settled_and_reserved(balance: Balance | None, sums: Sums) -> tuple[Amount, Amount, Source]:
    stored = Amount(sums.total_tokens, sums.cost_nano_usd, sums.requests)
    # After its keep time the ledger has forgotten a run, and reports zero.
    if balance is None or (balance.settled == ZERO and balance.reserved == ZERO and stored != ZERO):
        return stored, ZERO, "store"
    return balance.settled, balance.reserved, "ledger"


def _state(run: Run, balance: Balance | None, limit: Limit, used: Amount) -> RunState:
    """People's decisions come first, as the ledger has them. A run is exhausted by its figures, or because its latest call
    found too little left."""
    if run.state in ("paused", "completed", "cancelled"):
        return run.state  # type: ignore[return-value]
    if balance is not None and balance.gate in _OF_GATE:
        return _OF_GATE[balance.gate]
    limits = ((limit.of(unit), used.of(unit)) for unit in UNITS)
    is_full = any(limit_value is not None and used_value >= limit_value for limit_value, used_value in limits)
    return "exhausted" if is_full or (run.state == "exhausted" and not limit.is_unlimited) else "active"


def _figures(unit: Unit, limit: Limit, settled: Amount, reserved: Amount) -> tuple[int | None, int, int, int | None]:
    limit_value, settled_value, reserved_value = limit.of(unit), settled.of(unit), reserved.of(unit)
    return (
        limit_value,
        settled_value,
        reserved_value,
        None if limit_value is None else limit_value - settled_value - reserved_value,
    )


def _tokens(limit: Limit, settled: Amount, reserved: Amount, sums: Sums) -> Tokens:
    return Tokens(*_figures("tokens", limit, settled, reserved), overrun=sums.overrun_tokens, saved=sums.saved_tokens)


def _dollars(limit: Limit, settled: Amount, reserved: Amount, sums: Sums) -> Dollars:
    limit_nano_usd, settled_nano_usd, reserved_nano_usd, remaining_nano_usd = _figures(
        "nano_usd", limit, settled, reserved
    )
    return Dollars(
        limit=None if limit_nano_usd is None else usd(limit_nano_usd),
        settled=usd(settled_nano_usd),
        reserved=usd(reserved_nano_usd),
        remaining=None if remaining_nano_usd is None else usd(remaining_nano_usd),
        overrun=usd(sums.overrun_nano_usd),
        saved=usd(sums.saved_nano_usd),
    )


def _metrics(run: Run, line: RunLine, steps: Sequence[StepView], overhead_us: int | None) -> Metrics:
    sums = run.sums
    allocated = [step.allocation_tokens for step in run.steps if step.allocation_tokens is not None]
    sent = sums.total_tokens + sums.saved_tokens
    return Metrics(
        duration_ms=max(0, (run.completed_at_ms or run.last_at_ms) - run.first_at_ms),
        calls=sums.calls,
        refused=sums.refused,
        errors=sums.errors,
        input_tokens=sums.input_tokens,
        output_tokens=sums.output_tokens,
        total_tokens=sums.total_tokens,
        cost_usd=usd(sums.cost_nano_usd),
        saved_tokens=sums.saved_tokens,
        saved_usd=usd(sums.saved_nano_usd),
        overrun_tokens=sums.overrun_tokens,
        allocated_tokens=sum(allocated) if allocated else None,
        budget_used=round(line.tokens.settled / line.tokens.limit, 4) if line.tokens.limit else None,
        saved_share=round(sums.saved_tokens / sent, 4) if sent > 0 else 0.0,
        adherence=_adherence(steps),
        overhead_ms=None if overhead_us is None else round(overhead_us / 1000, 3),
        intents=_intents(steps),
    )


def _adherence(steps: Sequence[StepView]) -> float | None:
    within = [step.tokens.settled <= step.allocation_tokens for step in steps if step.allocation_tokens and step.calls]
    return round(sum(within) / len(within), 4) if within else None


def _intents(steps: Sequence[StepView]) -> dict[str, int]:
    calls_by_intent: dict[str, int] = {}
    for step in steps:
        if step.intent and step.calls:
            calls_by_intent[step.intent] = calls_by_intent.get(step.intent, 0) + step.calls
    return calls_by_intent
