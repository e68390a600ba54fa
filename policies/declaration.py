"""The steps of a workflow: nested ones flattened, and those of an undeclared workflow told from its past runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

# After so many runs the steps of a workflow are taken as known, and planned like a declaration.
RUNS_TO_LEARN: Final = 3
# A declaration is read from a request: nothing deeper than this is meant seriously.
DEPTH_MAX: Final = 32
_INHERITED: Final = ("priority", "agent")


def flattened(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps that call models, in the order of the declaration, without their `steps`.

    A group (parallel branches, a loop, scatter and gather) is a step with `steps` inside. The group itself stays only if
    it says something to a model: a `prompt` or an `intent`. Its priority counts for those inside that name none. An id that
    comes again is the same step. Raises ValueError for groups nested deeper than 32.
    """
    found: dict[str, dict[str, Any]] = {}
    _collect(steps, {}, found, DEPTH_MAX)
    return list(found.values())


def _collect(
    steps: Sequence[Mapping[str, Any]], inherited: Mapping[str, Any], found: dict[str, dict[str, Any]], depth: int
) -> None:
    if depth == 0:
        raise ValueError(f"steps are nested deeper than {DEPTH_MAX}")
    for step in steps:
        own = {**inherited, **{name: value for name, value in step.items() if name != "steps" and value is not None}}
        inner = step.get("steps") or ()
        if not inner or "prompt" in step or "intent" in step:
            found.setdefault(str(own["id"]), own)
        _collect(inner, {name: own[name] for name in _INHERITED if name in own}, found, depth - 1)


def learned_steps(runs_by_step: Mapping[str, int]) -> tuple[str, ...] | None:
    """The steps that a new run of an undeclared workflow will have; None before there are three runs to learn from.

    `runs_by_step` says in how many finished runs each step was seen; the step seen most was in all of them. A step counts as
    known when at least half of the runs had it: one odd run neither adds a step to every plan nor takes one away.
    """
    runs = max(runs_by_step.values(), default=0)
    if runs < RUNS_TO_LEARN:
        return None
    return tuple(step for step, seen in runs_by_step.items() if 2 * seen >= runs)
