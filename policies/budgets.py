"""Budgets, and the chain of accounts that a call is reserved on.

A budget says that calls in its scope may use at most so much per window. This module decides which accounts of the ledger a
call is reserved on; `policies.reservation.fit`, inside the ledger, decides whether there is room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from policies.amounts import UNITS, UNLIMITED, Limit
from policies.pressure import DEFAULT_LADDER, Ladder
from policies.reservation import Granted, Hold, Refused
from policies.values import value_class
from policies.windows import window_bounds


class Scope(StrEnum):
    """What a budget applies to, in the order in which a refusal names them."""

    STEP = "step"
    RUN = "run"
    WORKFLOW = "workflow"
    AGENT = "agent"
    KEY = "key"
    PROJECT = "project"


class Window(StrEnum):
    RUN = "run"
    TOTAL = "total"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"

    @property
    def is_recurring(self) -> bool:
        return self not in (Window.RUN, Window.TOTAL)


class HoldKind(StrEnum):
    WORST_CASE = "worst_case"
    SLICES = "slices"


class OnOutage(StrEnum):
    REFUSE = "refuse"
    ALLOW = "allow"


class Mode(StrEnum):
    ENFORCE = "enforce"
    OBSERVE = "observe"


DAY_MS: Final = 86_400_000
# The ledger forgets a run that was silent for this long; its usage stays in the store.
RUN_KEEP_MS: Final = 30 * DAY_MS
TOTAL_KEEP_MS: Final = 3660 * DAY_MS


@value_class
class Budget:
    """A limit for each scope whose name matches the glob `match`. The name is the workflow (for run and workflow), workflow
    or workflow/step (for step), or the name of the agent, key or project itself."""

    scope: Scope
    limit: Limit
    match: str = "*"
    window: Window = Window.RUN
    on_pressure: Ladder = DEFAULT_LADDER
    hold: HoldKind = HoldKind.WORST_CASE
    on_outage: OnOutage = OnOutage.REFUSE
    mode: Mode = Mode.ENFORCE
    project: str | None = None  # None: all projects
    timezone: str = "UTC"
    wait_ms: int = 0  # how long the rung `wait` may delay a call

    def applies_to(self, subject: Subject) -> bool:
        if self.project is not None and self.project != subject.project:
            return False
        return any(fnmatchcase(name, self.match) for name in subject.match_names(self.scope))


@value_class
class Parent:
    """A run that contains another one. `planned` limits it in addition to its budgets; if its workflow observes, nothing does."""

    run: str
    workflow: str
    planned: Limit = UNLIMITED
    observe: bool = False


@value_class
class Subject:
    """The names that a call's budgets are matched against; None for tags that the call does not have."""

    project: str
    key: str | None = None
    workflow: str | None = None
    run: str | None = None
    step: str | None = None
    agent: str | None = None
    parents: tuple[Parent, ...] = ()  # the run's ancestors, nearest first

    def match_names(self, scope: Scope) -> tuple[str, ...]:
        match scope:
            case Scope.STEP:
                return () if self.workflow is None else (self.workflow, f"{self.workflow}/{self.step}")
            case Scope.RUN | Scope.WORKFLOW:
                return () if self.workflow is None else (self.workflow,)
            case Scope.AGENT:
                return () if self.agent is None else (self.agent,)
            case Scope.KEY:
                return () if self.key is None else (self.key,)
            case Scope.PROJECT:
                return (self.project,)

    def scope_id(self, scope: Scope) -> str:
        """The scope's id, as used in errors and account names."""
        ids = {
            Scope.STEP: self.step,
            Scope.RUN: self.run,
            Scope.WORKFLOW: self.workflow,
            Scope.AGENT: self.agent,
            Scope.KEY: self.key,
            Scope.PROJECT: self.project,
        }
        return ids[scope] or ""


@value_class
class Link:
    """One account of the chain, with what errors and headers report about it."""

    hold: Hold
    scope: Scope
    scope_id: str
    window: Window
    resets_at_ms: int | None = None
    soft_tokens: int | None = None  # a step's allocation, if its hard limit is above it
    on_outage: OnOutage = OnOutage.REFUSE
    is_share: bool = False  # its token limit is the step's share of the run, and nothing smaller


@value_class
class Chain:
    """All accounts that one call is reserved on, innermost scope first."""

    links: tuple[Link, ...]
    ladder: Ladder = DEFAULT_LADDER
    hold: HoldKind = HoldKind.WORST_CASE
    wait_ms: int = 0
    # Derived from the links once, because each call reads these several times.
    holds: tuple[Hold, ...] = field(init=False)
    limits_money: bool = field(init=False)
    is_limited: bool = field(init=False)
    is_enforced: bool = field(init=False)
    # Whether calls may go on without the ledger: every enforced limit says `on_outage: allow`.
    survives_outage: bool = field(init=False)

    def __post_init__(self) -> None:
        limits_money = is_limited = is_enforced = False
        survives = True
        for link in self.links:
            hold = link.hold
            if hold.limit.is_unlimited and hold.tighten.is_unlimited:
                continue
            is_limited = True
            limits_money = limits_money or hold.limit.nano_usd is not None or hold.tighten.nano_usd is not None
            if hold.enforce:
                is_enforced = True
                survives = survives and link.on_outage is OnOutage.ALLOW
        derive = object.__setattr__
        derive(self, "holds", tuple([link.hold for link in self.links]))
        derive(self, "limits_money", limits_money)
        derive(self, "is_limited", is_limited)
        derive(self, "is_enforced", is_enforced)
        derive(self, "survives_outage", survives)

    def for_run(self, run: str) -> Chain:
        """This chain, which was made for `ANY_RUN`, for a certain run with the same names. The outer accounts stay the same."""
        links = [_link_for_run(link, run) if link.scope is _STEP or link.scope is _RUN else link for link in self.links]
        return Chain(tuple(links), self.ladder, self.hold, self.wait_ms)

    def ends_at_ms(self) -> int | None:
        """When the first of its windows ends, and this chain with it; None: never."""
        return min((link.resets_at_ms for link in self.links if link.resets_at_ms is not None), default=None)

    def link(self, account: str) -> Link:
        return next(link for link in self.links if link.hold.account == account)

    def is_first_call_refused(self, refused: Refused) -> bool:
        """Whether a step's share of its run is what refused the tokens of a call, and the step has used and holds none."""
        used = refused.balance.settled.tokens + refused.balance.reserved.tokens
        return refused.unit == "tokens" and used == 0 and self.link(refused.account).is_share

    def binds(self, granted: Granted) -> bool:
        """Whether an enforced budget holds for the granted call, of this chain or of the run's own, which only the ledger knows."""
        if not granted.held.requests:
            return False
        return self.is_enforced or any(
            hold.enforce and not balance.limit.is_unlimited
            for hold, balance in zip(self.holds, granted.balances, strict=True)
        )

    def enforced_link(self, scope: Scope) -> Link | None:
        """The enforced account of a scope, innermost first."""
        return next((link for link in self.links if link.scope is scope and link.hold.enforce), None)


@value_class
class RunLimits:
    """Limits of one run that do not come from budgets: the caller's headers and the orchestration's plan."""

    # From x-workflow-budget-*: always enforced, and remembered by the run.
    tightened: Limit = UNLIMITED
    planned_run: Limit = UNLIMITED
    planned_step: Limit = UNLIMITED  # the hard limit
    step_soft_tokens: int | None = None
    step_share_tokens: int | None = None  # the most that the plan by itself allows the step
    observe: bool = False  # the workflow observes: its plan and budgets never refuse
    # How the workflow's declaration handles pressure; None leaves it to the budgets.
    ladder: Ladder | None = None


@dataclass(slots=True)
class _AccountEntry:
    scope: Scope
    scope_id: str
    window: Window
    limit: Limit = UNLIMITED
    tighten: Limit = UNLIMITED
    enforce: bool = True
    resets_at_ms: int | None = None
    outages: list[OnOutage] = field(default_factory=list)


def chain_for(subject: Subject, budgets: Sequence[Budget], limits: RunLimits, now_ms: int) -> Chain:
    """The accounts for a call at `now_ms` (the ledger's clock, ms since the epoch). A tagged call is always counted on its
    step and run, whether or not they are limited."""
    matching = [budget for budget in budgets if budget.applies_to(subject)]
    entries: dict[str, _AccountEntry] = {}
    if subject.run is not None:
        _entry_for(entries, subject, Scope.STEP, Window.RUN, now_ms)
        _entry_for(entries, subject, Scope.RUN, Window.RUN, now_ms)
    for budget in matching:
        _apply_budget(entries, subject, budget, limits.observe, now_ms)
    if subject.run is not None:
        _apply_run_limits(entries, subject, limits, now_ms)
    ordered = sorted(entries.items(), key=lambda item: _SCOPE_ORDER[item[1].scope])
    links = [_link(account, entry, limits) for account, entry in ordered]
    links.extend(_parent_link(parent, subject.project, budgets) for parent in subject.parents)
    ladder, hold, wait_ms = _pressure_handling(matching)
    return Chain(tuple(links), ladder if limits.ladder is None else limits.ladder, hold, wait_ms)


# A placeholder that no real run can have as its id.
ANY_RUN: Final = "*"
_STEP, _RUN = Scope.STEP, Scope.RUN


def _link_for_run(link: Link, run: str) -> Link:
    hold = link.hold
    name, scope_id = (run, run) if link.scope is _RUN else (_escaped_run(run), link.scope_id)
    # The account's name begins with `step/*` or `run/*`.
    kind, _, suffix = hold.account.partition(ANY_RUN)
    run_hold = Hold(kind + name + suffix, hold.limit, hold.tighten, hold.enforce, hold.keep_ms)
    same = (link.window, link.resets_at_ms, link.soft_tokens, link.on_outage, link.is_share)
    return Link(run_hold, link.scope, scope_id, *same)


_SCOPE_ORDER: Final = {scope: position for position, scope in enumerate(Scope)}
_OBSERVED_SUFFIX: Final = "~observe"


def run_account(run: str) -> str:
    """The ledger's name of a run's account. Run ids are unique within a project."""
    return f"run/{run}"


def step_account(run: str, step: str) -> str:
    """The ledger's name of a step's account. Run `a/b` with step `c` is not run `a` with step `b/c`."""
    return f"step/{_escaped_run(run)}/{step}"


def _escaped_run(run: str) -> str:
    """A run's id may contain slashes. They become bars, which ids cannot contain, because the step's name follows after a slash."""
    return run.replace("/", "|")


def account_name(subject: Subject, scope: Scope, window: Window, starts_at_ms: int | None) -> str:
    """The ledger's name of the subject's account in the window that starts at that time; steps and runs have only one window."""
    if scope is Scope.STEP:
        return step_account(subject.run or "", subject.step or "")
    if scope is Scope.RUN:
        return run_account(subject.run or "")
    name = f"{scope.value}/{subject.scope_id(scope)}@{window.value}"
    return name if starts_at_ms is None else f"{name}:{starts_at_ms}"


def _entry_for(
    entries: dict[str, _AccountEntry],
    subject: Subject,
    scope: Scope,
    window: Window,
    now_ms: int,
    timezone: str = "UTC",
    observed: bool = False,
) -> _AccountEntry:
    starts, ends = window_bounds(window.value, now_ms, timezone) if window.is_recurring else (None, None)
    account = account_name(subject, scope, window, starts) + (_OBSERVED_SUFFIX if observed else "")
    entry = entries.get(account)
    if entry is None:
        entry = entries[account] = _AccountEntry(
            scope, subject.scope_id(scope), window, enforce=not observed, resets_at_ms=ends
        )
    elif ends is not None and entry.resets_at_ms is not None:
        # Windows of two time zones may begin together and end apart, when only one of them changes its clocks.
        entry.resets_at_ms = min(entry.resets_at_ms, ends)
    return entry


def _apply_budget(
    entries: dict[str, _AccountEntry], subject: Subject, budget: Budget, workflow_observes: bool, now_ms: int
) -> None:
    """Of two budgets on one account the smaller limit applies. Observed budgets have accounts of their own."""
    if budget.scope in (Scope.STEP, Scope.RUN) and subject.run is None:
        return
    inner = budget.scope in (Scope.STEP, Scope.RUN, Scope.WORKFLOW)
    observed = budget.mode is Mode.OBSERVE or (workflow_observes and inner)
    entry = _entry_for(entries, subject, budget.scope, budget.window, now_ms, budget.timezone, observed)
    entry.limit = entry.limit.tightened_by(budget.limit)
    entry.outages.append(budget.on_outage)


def _apply_run_limits(entries: dict[str, _AccountEntry], subject: Subject, limits: RunLimits, now_ms: int) -> None:
    run = _entry_for(entries, subject, Scope.RUN, Window.RUN, now_ms)
    run.tighten = limits.tightened
    planned = ((Scope.RUN, limits.planned_run), (Scope.STEP, limits.planned_step))
    for scope, limit in planned:
        if not limit.is_unlimited:
            entry = _entry_for(entries, subject, scope, Window.RUN, now_ms, observed=limits.observe)
            entry.limit = entry.limit.tightened_by(limit)


def _link(account: str, entry: _AccountEntry, limits: RunLimits) -> Link:
    hold = Hold(account, entry.limit, entry.tighten, entry.enforce, _keep_ms(entry.window))
    on_outage = OnOutage.ALLOW if entry.outages and set(entry.outages) == {OnOutage.ALLOW} else OnOutage.REFUSE
    if not entry.tighten.is_unlimited:
        on_outage = OnOutage.REFUSE
    is_step, tokens = entry.scope is Scope.STEP, entry.limit.tokens
    soft = limits.step_soft_tokens if is_step else None
    is_share = is_step and tokens is not None and tokens == limits.step_share_tokens
    return Link(hold, entry.scope, entry.scope_id, entry.window, entry.resets_at_ms, soft, on_outage, is_share)


def _parent_link(parent: Parent, project: str, budgets: Sequence[Budget]) -> Link:
    """A child run also spends from its parent, so the parent's limit applies to both together."""
    limit = limit_of_run(parent, project, budgets)
    return Link(Hold(run_account(parent.run), limit, keep_ms=RUN_KEEP_MS), Scope.RUN, parent.run, Window.RUN)


def limit_of_run(run: Parent, project: str, budgets: Sequence[Budget]) -> Limit:
    """The limit of a run of that workflow, for any caller: its plan and every enforced run budget that applies."""
    if run.observe:
        return UNLIMITED
    subject = Subject(project, workflow=run.workflow, run=run.run)
    limit = run.planned
    for budget in budgets:
        if budget.scope is Scope.RUN and budget.mode is Mode.ENFORCE and budget.applies_to(subject):
            limit = limit.tightened_by(budget.limit)
    return limit


def limit_across_workflows(runs: Sequence[Parent], own_limit: Limit, project: str, budgets: Sequence[Budget]) -> Limit:
    """The smallest limit of a run under any of its workflows, except in units for which the run has a limit of its own, `own_limit`."""
    limit = UNLIMITED
    for run in runs:
        limit = limit.tightened_by(limit_of_run(run, project, budgets))
    return Limit(*(limit.of(unit) if own_limit.of(unit) is None else None for unit in UNITS))


def _keep_ms(window: Window) -> int:
    keep = {
        Window.MINUTE: DAY_MS,
        Window.HOUR: 2 * DAY_MS,
        Window.DAY: 3 * DAY_MS,
        Window.MONTH: 40 * DAY_MS,
        Window.RUN: RUN_KEEP_MS,
    }
    return keep.get(window, TOTAL_KEEP_MS)


def _pressure_handling(matching: Sequence[Budget]) -> tuple[Ladder, HoldKind, int]:
    """How pressure is met: as the innermost matching budget declares; of several, the one declared last."""
    if not matching:
        return DEFAULT_LADDER, HoldKind.WORST_CASE, 0
    innermost = min(reversed(matching), key=lambda budget: _SCOPE_ORDER[budget.scope])
    return innermost.on_pressure, innermost.hold, innermost.wait_ms
