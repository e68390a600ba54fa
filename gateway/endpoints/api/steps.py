"""The steps of a run's announcement or a workflow's declaration, which may be nested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator

from gateway.endpoints.api.schema import (
    STEPS_MAX,
    Budgeted,
    LimitBody,
    Line,
    Name,
    Priority,
    Strict,
    Text,
    Tokens,
    Usd,
)
from policies.amounts import usd
from policies.declaration import DEPTH_MAX
from policies.intents import Intent


class StepBody(Strict):
    """A step, or a group of steps (parallel branches, a loop). A group is planned as a step if it has a prompt or an intent itself."""

    id: Name
    prompt: Text | None = None
    description: Text | None = None
    system: Text | None = None
    intent: Intent | None = None
    priority: Priority | None = None
    agent: Name | None = None
    budget: Budgeted | None = Field(default=None, description="Its limits; a plain number is a limit in tokens.")
    budget_tokens: Tokens | None = None
    budget_usd: Usd | None = None
    kind: Line | None = Field(default=None, description="Of a group: parallel, branch or loop.")
    tools: Annotated[tuple[Line | dict[str, Any], ...], Field(max_length=200)] | None = None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    response_format: dict[str, Any] | Line | None = None
    steps: Annotated[tuple[StepBody, ...], Field(max_length=STEPS_MAX)] | None = None

    @field_validator("intent", mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value


def declared_steps(steps: Sequence[StepBody], priority: str | None = None) -> Iterable[Mapping[str, Any]]:
    """The steps as `policies` read them: plain values, `prompt` falling back to the description, and a budget field per unit.

    Raises ValueError for more than 500 steps, for too deep nesting, and for two steps with the same id.
    """
    if _count(steps, DEPTH_MAX) > STEPS_MAX:
        raise ValueError(f"a workflow has at most {STEPS_MAX} steps")
    declarations = [_declared_step(step, priority) for step in steps]
    _check_ids(declarations, set())
    return declarations


def _check_ids(steps: Iterable[Mapping[str, Any]], ids: set[str]) -> None:
    for step in steps:
        if step["id"] in ids:
            raise ValueError(f"two steps have the id {step['id']!r}")
        ids.add(step["id"])
        _check_ids(step.get("steps", ()), ids)


def _count(steps: Sequence[StepBody], depth: int) -> int:
    if depth == 0:
        raise ValueError(f"steps are nested deeper than {DEPTH_MAX}")
    return sum(1 + _count(step.steps or (), depth - 1) for step in steps)


def _declared_step(step: StepBody, priority: str | None) -> dict[str, Any]:
    names = ("prompt", "system", "agent", "kind", "input_schema", "output_schema", "response_format")
    declaration: dict[str, Any] = {"id": step.id}
    declaration |= {name: value for name in names if (value := getattr(step, name)) is not None}
    if step.description is not None:
        declaration["description"] = step.description
        declaration.setdefault("prompt", step.description)
    if step.intent is not None:
        declaration["intent"] = step.intent.value
    if step.priority or priority:
        declaration["priority"] = step.priority or priority
    if step.budget is not None:
        declaration |= budget_fields(step.budget)
    declaration |= budget_fields(LimitBody(tokens=step.budget_tokens), step.budget_usd)
    if step.tools is not None:
        declaration["tools"] = list(step.tools)
    if step.steps:
        declaration["steps"] = [_declared_step(inner, priority) for inner in step.steps]
    return declaration


def budget_fields(budget: LimitBody, nano_usd: int | None = None) -> dict[str, int]:
    """A budget as declarations store it: a field for each limited unit, money in nano-USD."""
    limit = budget.limit()
    fields = {
        "budget_tokens": limit.tokens,
        "budget_nano_usd": limit.nano_usd if nano_usd is None else nano_usd,
        "budget_requests": limit.requests,
    }
    return {name: value for name, value in fields.items() if value is not None}


def budget_shown(declared: Mapping[str, Any]) -> dict[str, float | int] | None:
    """A declaration's budget in the form in which it was given; None if there is none."""
    units = (("tokens", "budget_tokens"), ("usd", "budget_nano_usd"), ("requests", "budget_requests"))
    limits = {unit: declared[name] for unit, name in units if declared.get(name) is not None}
    if "usd" in limits:
        limits["usd"] = usd(limits["usd"])
    return limits or None
