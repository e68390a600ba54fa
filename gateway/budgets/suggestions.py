"""Suggests budgets for a workflow from what its runs really used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gateway.store import step_history
from gateway.store.budgets import StoredBudget
from gateway.store.database import Database
from gateway.store.step_history import StepSample
from policies.allocation import SAMPLES_MIN, decayed_p95
from policies.amounts import Limit
from policies.budgets import Budget, Scope, Window

# A fifth above the p95, so that normal runs never reach the limit and runaway ones soon do.
_HEADROOM_PERCENT: Final = 120
_ROUND_TO_TOKENS: Final = 50


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`p95_tokens` gives newer runs more weight. Ten samples or more make it `is_sure`."""

    scope: Literal["run", "step"]
    match: str
    samples: int
    p95_tokens: int
    tokens: int
    is_sure: bool


async def suggest(db: Database, project: str, workflow: str, now_ms: int) -> tuple[Suggestion, ...]:
    """For the run and for each step, from finished runs of the last 30 days. Raises StoreUnavailable."""
    suggestions = [_suggestion("run", workflow, await step_history.by_run(db, project, workflow, now_ms))]
    by_step = await step_history.by_step(db, project, workflow, now_ms)
    suggestions += [_suggestion("step", f"{workflow}/{step}", samples) for step, samples in sorted(by_step.items())]
    return tuple(suggestion for suggestion in suggestions if suggestion is not None)


def as_budget(suggestion: Suggestion, project: str, now_ms: int, actor: str) -> StoredBudget:
    """The id is derived from the scope, so that a later suggestion replaces an earlier one."""
    budget = Budget(
        Scope(suggestion.scope),
        Limit(tokens=suggestion.tokens),
        match=suggestion.match,
        window=Window.RUN,
        project=project,
    )
    return StoredBudget(f"suggested:{project}:{suggestion.scope}:{suggestion.match}", budget, now_ms, actor)


def _suggestion(scope: Literal["run", "step"], match: str, samples: Sequence[StepSample]) -> Suggestion | None:
    p95 = decayed_p95(samples)
    if p95 is None:
        return None
    above = -(-p95 * _HEADROOM_PERCENT // 100)
    tokens = -(-above // _ROUND_TO_TOKENS) * _ROUND_TO_TOKENS
    return Suggestion(scope, match, len(samples), p95, tokens, len(samples) >= SAMPLES_MIN)
