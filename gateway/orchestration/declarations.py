"""Declarations of workflows in the form that calls need, parsed once per declaration instead of once per call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cachetools import LRUCache

from gateway.store.workflows import Workflow
from policies.amounts import UNITS, UNLIMITED, Limit, limit_of
from policies.declaration import flattened
from policies.pressure import Ladder, parse_ladder

_KEPT_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class DeclaredWorkflow:
    """`limit` applies to each run, the budgets in `steps` to their steps; both are enforced even with orchestration off."""

    limit: Limit = UNLIMITED
    observes: bool = False
    compresses: bool = True
    ladder: Ladder | None = None
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def intent(self, step: str) -> str | None:
        declared = self.steps.get(step)
        return declared.get("intent") or None if declared is not None else None

    def step_limit(self, step: str) -> Limit:
        declared = self.steps.get(step)
        return UNLIMITED if declared is None else declared_limit(declared)


UNDECLARED: Final = DeclaredWorkflow()


class Declarations:
    def __init__(self) -> None:
        self._read: LRUCache[tuple[str, str], tuple[Workflow, DeclaredWorkflow]] = LRUCache(_KEPT_MAX)

    def of(self, workflow: Workflow | None) -> DeclaredWorkflow:
        if workflow is None:
            return UNDECLARED
        key = (workflow.project, workflow.name)
        cached = self._read.get(key)
        # Workflows keep their identity across snapshots until one of them changes.
        if cached is None or cached[0] is not workflow:
            cached = self._read[key] = (workflow, read(workflow))
        return cached[1]


def read(workflow: Workflow) -> DeclaredWorkflow:
    declared = workflow.declaration
    return DeclaredWorkflow(
        limit=declared_limit(declared),
        observes=workflow.mode == "observe",
        compresses=declared.get("compression") is not False,
        ladder=_ladder(declared),
        steps=_steps(declared),
    )


# The API validates declarations. Of one that was written around it, whatever can be read still counts.
_UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError)


def _steps(declared: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    try:
        return {str(step["id"]): step for step in flattened(declared.get("steps") or ())}
    except _UNREADABLE:
        return {}


def _ladder(declared: Mapping[str, Any]) -> Ladder | None:
    try:
        return parse_ladder(declared["on_pressure"])
    except _UNREADABLE:
        return None


def declared_limit(declared: Mapping[str, Any]) -> Limit:
    """The budget that a declaration puts on a run of the workflow, or on a step of one."""
    units = (declared.get(f"budget_{unit}") for unit in UNITS)
    return limit_of(*(value if isinstance(value, int) else None for value in units))
