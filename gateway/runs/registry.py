"""What this process remembers of runs: the names of implicit ones, parents, the workflows they were used under, and which
ones callers have tightened. Only a cache, never the truth."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from cachetools import LRUCache

from gateway.errors import BadRequest
from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.pipeline.call import Call
from gateway.store.runs import Run
from gateway.tags import PARENT_HEADER
from policies.amounts import UNLIMITED, Limit
from policies.budgets import Budget, Parent, RunLimits, limit_across_workflows, run_account
from policies.reservation import Granted

_RUNS_MAX: Final = 50_000
# Long enough for the store to get the run, short enough for the ledger to forget the claim soon.
_CLAIM_MS: Final = 15 * 60_000
# A call is reserved on each ancestor. A deeper run is refused, because its outermost run would not pay for it.
_ANCESTORS_MAX: Final = 8


class FindRun(Protocol):
    def __call__(self, project: str, run: str, *, fresh: bool) -> Awaitable[Run | None]: ...


async def _find_nothing(project: str, run: str, *, fresh: bool) -> Run | None:
    return None


class RunRegistry:
    """The runs that this process knows.

    `limits_of` returns the plan for the runs of a project's workflow, besides budgets; `find` returns the store's data of a
    run. `is_shared`: other processes use the same ledger.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        silence_s: float,
        new_id: Callable[[], str],
        limits_of: Callable[[str, str], RunLimits] = lambda _project, _workflow: RunLimits(),
        find: FindRun = _find_nothing,
        is_shared: bool = False,
    ) -> None:
        self._ledger = ledger
        self._is_shared = is_shared
        self._silence_ms = int(silence_s * 1000)
        self._new_id = new_id
        self._limits_of = limits_of
        self._find = find
        self._workflow_of: MutableMapping[tuple[str, str], str] = LRUCache(_RUNS_MAX)
        # (project, run, workflow), if the run's account is known to be held to the budgets of that workflow.
        self._held_to: MutableMapping[tuple[str, str, str], bool] = LRUCache(_RUNS_MAX)
        self._parent_of: MutableMapping[tuple[str, str], str] = LRUCache(_RUNS_MAX)
        self._tightened: LRUCache[tuple[str, str], bool] = LRUCache(_RUNS_MAX)
        self._last_implicit: LRUCache[tuple[str, str], str] = LRUCache(_RUNS_MAX)

    def dry_run_copy(self, ledger: Ledger) -> RunRegistry:
        """A copy for dry runs: it has all of this one's knowledge, but what it learns stays in the copy."""
        copy = RunRegistry(
            ledger,
            silence_s=self._silence_ms / 1000,
            new_id=self._new_id,
            limits_of=self._limits_of,
            find=self._find,
        )
        copy._workflow_of = ChainMap({}, self._workflow_of)
        copy._held_to = ChainMap({}, self._held_to)
        copy._parent_of = ChainMap({}, self._parent_of)
        return copy

    def last_implicit(self, project: str, workflow: str) -> str | None:
        """The latest implicit run seen here; whether it is still open is decided by the ledger at the next call."""
        return self._last_implicit.get((project, workflow))

    async def implicit_run(self, project: str, workflow: str) -> str:
        """The run of a workflow whose caller names none: it ends after 15 minutes of silence. Without the ledger, the last known one."""
        try:
            run = await self._ledger.current_run(project, workflow, f"implicit-{self._new_id()}", self._silence_ms)
        except LedgerUnavailable:
            return self._last_implicit.setdefault((project, workflow), f"implicit-{self._new_id()}")
        self._last_implicit[project, workflow] = run
        return run

    def note_parent(self, project: str, run: str, parent: str | None) -> None:
        """Note that the run is inside another, by its call, its announcement or the store."""
        if parent and parent != run:
            self._parent_of[project, run] = parent

    async def parent_fault(self, project: str, run: str, parent: str) -> str:
        """Why the run cannot be inside `parent`, as far as this process or the store knows; empty if it can."""
        line = [parent]
        while run not in line and len(line) <= _ANCESTORS_MAX:
            grandparent = await self._parent_run(project, line[-1])
            if grandparent is None or grandparent in line:
                return ""
            line.append(grandparent)
        if parent == run:
            return "names the run itself"
        return (
            f"names a run inside of {run!r}" if run in line else f"is deeper than {_ANCESTORS_MAX} runs in one another"
        )

    async def _parent_run(self, project: str, run: str) -> str | None:
        """The run that contains a run. One that never called here may have called elsewhere."""
        key = (project, run)
        if key not in self._workflow_of and key not in self._parent_of:
            run_row = await self._find(project, run, fresh=False)
            if run_row is not None and run_row.workflow:
                self._workflow_of[key] = run_row.workflow
                self.note_parent(project, run, run_row.parent_run)
        return self._parent_of.get(key)

    async def check_parent(self, call: Call) -> None:
        """Remember the parent that the call's header names. Raises `BadRequest` if the run cannot be inside it.

        A run stays inside its first parent: otherwise a header could take it out of that parent's budget.
        """
        project, run, parent = call.principal.project, call.run, call.tags.parent_run
        if run is None or parent is None or self._parent_of.get((project, run)) == parent:
            return
        known_parent = await self._parent_run(project, run)
        is_elsewhere = known_parent is not None and known_parent != parent
        fault = f"names another run than {known_parent!r}, which this run is inside of" if is_elsewhere else ""
        fault = fault or await self.parent_fault(project, run, parent)
        if fault:
            call.tags = replace(call.tags, parent_run=None)  # so that the store does not get it either
            raise BadRequest.header(PARENT_HEADER, fault)
        self.note_parent(project, run, parent)

    def parents(self, call: Call) -> tuple[Parent, ...]:
        """The ancestors of the call's run, nearest first, as far as they are known here."""
        if call.run is None:
            return ()
        project, run = call.principal.project, call.run
        self.note_parent(project, run, call.tags.parent_run or call.parent_run)
        if not self._parent_of:
            return ()
        parents: list[Parent] = []
        visited = {run}
        while (
            (parent := self._parent_of.get((project, run))) is not None
            and parent not in visited
            and len(parents) < _ANCESTORS_MAX
        ):
            parents.append(self._parent(project, parent, call.tags.workflow or ""))
            visited.add(parent)
            run = parent
        return tuple(parents)

    def _parent(self, project: str, run: str, own_workflow: str) -> Parent:
        """An ancestor that was never seen here is assumed to be of the caller's workflow; its plan is unknown."""
        workflow = self._workflow_of.get((project, run))
        if workflow is None:
            return Parent(run, own_workflow)
        return self._of_workflow(project, run, workflow)

    def _of_workflow(self, project: str, run: str, workflow: str) -> Parent:
        limits = self._limits_of(project, workflow)
        return Parent(run, workflow, limits.planned_run, limits.observe)

    def is_under_new_workflow(self, call: Call) -> bool:
        """Whether the caller named a run that was not seen under the call's workflow. Every call asks, so it is one look-up."""
        run = call.tags.run
        return run is not None and (call.principal.project, run, call.tags.workflow) not in self._held_to

    async def limit_of_other_workflows(self, call: Call, budgets: Sequence[Budget]) -> Limit:
        """The limit to tighten a run's account to when it is used under a second workflow: the smallest of its limits under
        either. The ledger remembers it for all processes; a budget of the run's own overrides it, as always."""
        project, run, workflow = call.principal.project, call.run or "", call.tags.workflow or ""
        first = self._workflow_of.get((project, run))
        run_row = await self._find(project, run, fresh=first is not None)
        parent = run_row.parent_run if run_row is not None else ""
        if parent and not await self.parent_fault(project, run, parent):
            self.note_parent(project, run, parent)
        first = first or (run_row.workflow if run_row is not None else "") or await self._claim(project, run, workflow)
        if first in ("", workflow):
            return UNLIMITED
        self._workflow_of[project, run] = first
        own_limit = run_row.own_budget if run_row is not None else UNLIMITED
        both = [self._of_workflow(project, run, name) for name in (first, workflow)]
        return limit_across_workflows(both, own_limit, project, budgets)

    async def _claim(self, project: str, run: str, workflow: str) -> str:
        """The workflow under which any gateway first saw the run, for use until the store has the run; empty without the ledger."""
        if not self._is_shared:
            return workflow
        try:
            # As with implicit runs, the first name that is stored stays. No workflow has a space in its name, so the key is free.
            return await self._ledger.current_run(project, f"of {run}", workflow, _CLAIM_MS)
        except LedgerUnavailable:
            return ""

    def note_granted(self, call: Call, granted: Granted) -> None:
        if call.run is None:
            return
        key = (call.principal.project, call.run)
        workflow = call.tags.workflow or ""
        if (*key, workflow) not in self._held_to:
            self._held_to[(*key, workflow)] = True
            self._workflow_of.setdefault(key, workflow)
        account = run_account(call.run)
        for balance, hold in zip(granted.balances, call.chain.holds, strict=False):
            if balance.account == account:
                limit = hold.limit if hold.tighten is UNLIMITED else hold.limit.tightened_by(hold.tighten)
                if balance.limit is limit:  # nearly always
                    self._tightened.pop(key, None)
                else:
                    self._tightened[key] = balance.limit.tightened_by(limit) != limit

    def is_tightened(self, call: Call) -> bool:
        """Whether the ledger was seen to hold this run to less than its budgets, as a caller or an operator wants."""
        return call.run is not None and self._tightened.get((call.principal.project, call.run), False)
