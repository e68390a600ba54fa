"""The steps of a workflow: nested steps flattened, and the steps of an undeclared workflow learned from its past runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

# After this many runs the steps of a workflow are considered known, and planned like declared ones.
RUNS_TO_LEARN: Final = 3
# Declarations come from requests: no reasonable one is nested deeper than this.
DEPTH_MAX: Final = 32
_INHERITED: Final = ("priority", "agent")


def flattened(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps that call models, in the order of the declaration, without their `steps`.

    A group (parallel branches, a loop, scatter and gather) is a step with `steps` inside. The group itself is included only
    if it has something for a model: a `prompt` or an `intent`. Steps without a priority inherit that of their group. A
    repeated id is the same step. Raises ValueError for groups nested deeper than 32.
    """
    steps_by_name: dict[str, dict[str, Any]] = {}
    _collect(steps, {}, steps_by_name, DEPTH_MAX)
    return list(steps_by_name.values())


def _collect(
    steps: Sequence[Mapping[str, Any]],
    inherited: Mapping[str, Any],
    steps_by_name: dict[str, dict[str, Any]],
    depth: int,
) -> None:
    if depth == 0:
        raise ValueError(f"steps are nested deeper than {DEPTH_MAX}")
    for step in steps:
        fields = {**inherited, **{name: value for name, value in step.items() if name != "steps" and value is not None}}
        inner = step.get("steps") or ()
        if not inner or "prompt" in step or "intent" in step:
            steps_by_name.setdefault(str(fields["id"]), fields)
        _collect(inner, {name: fields[name] for name in _INHERITED if name in fields}, steps_by_name, depth - 1)


def learned_steps(runs_by_step: Mapping[str, int]) -> tuple[str, ...] | None:
    """The expected steps of a new run of an undeclared workflow; None until there are three runs to learn from.

    `runs_by_step` is the number of finished runs in which each step was seen; the most frequent step is assumed to be in all
    of them. A step counts as known if at least half of the runs had it, so that one unusual run neither adds a step nor
    removes one.
    """
    runs = max(runs_by_step.values(), default=0)
    if runs < RUNS_TO_LEARN:
        return None
    return tuple(step for step, runs_with_step in runs_by_step.items() if 2 * runs_with_step >= runs)


def tool_name(tool: Any) -> str:
    """Accepts a tool's name, or a tool as in a model request."""
    if isinstance(tool, str):
        return tool
    if not isinstance(tool, Mapping):
        return ""
    inner = tool.get("function")
    definition = inner if isinstance(inner, Mapping) else tool
    return str(definition.get("name") or "")
