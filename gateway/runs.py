"""What this process remembers of runs: names of implicit ones, parents, and which their callers have tightened. A cache, never
the truth."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, MutableMapping
from typing import Final

from cachetools import LRUCache

from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.pipeline.call import Call
from policies.amounts import UNLIMITED
from policies.budgets import Parent, RunLimits, run_account
from policies.reservation import Granted

_RUNS_MAX: Final = 50_000
_ANCESTORS_MAX: Final = 8


class RunRegistry:
    """`limits_of` tells what is planned for the runs of a project's workflow, beside budgets."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        silence_s: float,
        new_id: Callable[[], str],
        limits_of: Callable[[str, str], RunLimits] = lambda _project, _workflow: RunLimits(),
    ) -> None:
        self._ledger = ledger
        self._silence_ms = int(silence_s * 1000)
        self._new_id = new_id
        self._limits_of = limits_of
        self._workflow_of: MutableMapping[tuple[str, str], str] = LRUCache(_RUNS_MAX)
        self._parent_of: MutableMapping[tuple[str, str], str] = LRUCache(_RUNS_MAX)
        self._tightened: LRUCache[tuple[str, str], bool] = LRUCache(_RUNS_MAX)
        self._last_implicit: LRUCache[tuple[str, str], str] = LRUCache(_RUNS_MAX)

    def looking(self, ledger: Ledger) -> RunRegistry:
        """One that knows what this one knows, and whose own findings this one does not hear of."""
        other = RunRegistry(ledger, silence_s=self._silence_ms / 1000, new_id=self._new_id, limits_of=self._limits_of)
        other._workflow_of = ChainMap({}, self._workflow_of)
        other._parent_of = ChainMap({}, self._parent_of)
        return other

    def last_implicit(self, project: str, workflow: str) -> str | None:
        """The implicit run that was seen last here; whether it still goes on, the ledger decides at the next call."""
        return self._last_implicit.get((project, workflow))

    async def implicit_run(self, project: str, workflow: str) -> str:
        """The run of a workflow whose caller names none: one until 15 minutes of silence. Without the ledger, the last one known."""
        try:
            run = await self._ledger.current_run(project, workflow, f"implicit-{self._new_id()}", self._silence_ms)
        except LedgerUnavailable:
            return self._last_implicit.setdefault((project, workflow), f"implicit-{self._new_id()}")
        self._last_implicit[project, workflow] = run
        return run

    def note_parent(self, project: str, run: str, parent: str | None) -> None:
        """The run is inside another, as its call, its announcement or the store says."""
        if parent and parent != run:
            self._parent_of[project, run] = parent

    def parents(self, call: Call) -> tuple[Parent, ...]:
        """The ancestors of the call's run, nearest first, as far as they are known here."""
        if call.run is None:
            return ()
        project, run = call.principal.project, call.run
        self.note_parent(project, run, call.tags.parent_run or call.parent_run)
        if not self._parent_of:
            return ()
        found: list[Parent] = []
        seen = {run}
        while (
            (parent := self._parent_of.get((project, run))) is not None
            and parent not in seen
            and len(found) < _ANCESTORS_MAX
        ):
            found.append(self._parent(project, parent, call.tags.workflow or ""))
            seen.add(parent)
            run = parent
        return tuple(found)

    def _parent(self, project: str, run: str, own_workflow: str) -> Parent:
        """One that was never seen here is taken to be of the caller's workflow; what is planned for it is not known."""
        workflow = self._workflow_of.get((project, run))
        if workflow is None:
            return Parent(run, own_workflow)
        limits = self._limits_of(project, workflow)
        return Parent(run, workflow, limits.planned_run, limits.observe)

    def saw(self, call: Call, granted: Granted) -> None:
        if call.run is None:
            return
        key = (call.principal.project, call.run)
        if key not in self._workflow_of:
            self._workflow_of[key] = call.tags.workflow or ""
        account = run_account(call.run)
        for balance, hold in zip(granted.balances, call.chain.holds, strict=False):
            if balance.account == account:
                limit = hold.limit if hold.tighten is UNLIMITED else hold.limit.tightened_by(hold.tighten)
                if balance.limit is limit:  # as nearly always
                    self._tightened.pop(key, None)
                else:
                    self._tightened[key] = balance.limit.tightened_by(limit) != limit

    def is_tightened(self, call: Call) -> bool:
        """Whether the ledger was seen to hold this run to less than its budgets do: a caller or an operator wants that kept."""
        return call.run is not None and self._tightened.get((call.principal.project, call.run), False)
