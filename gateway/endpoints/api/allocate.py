"""/api/allocate: a dry run of an allocation strategy. Nothing is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from gateway.endpoints.api.route import ApiRequest, Route
from gateway.endpoints.api.schema import STEPS_MAX, Name, ProjectQuery, Share, Strategy, Strict, Tokens
from gateway.endpoints.api.steps import StepBody, declared_steps
from gateway.errors import BadRequest
from gateway.runs.plan import RunRequest
from policies.amounts import Limit


class AllocateBody(Strict):
    """`tokens` is the run's limit (default: the setting); with `workflow`, the strategy `adaptive` learns from its past runs."""

    strategy: Strategy | None = None
    tokens: Tokens | None = None
    workflow: Name | None = None
    agent: Name | None = None
    ais: Share | None = None
    steps: Annotated[tuple[StepBody, ...], Field(min_length=1, max_length=STEPS_MAX)]


@dataclass(frozen=True, slots=True)
class StepShare:
    """`tokens` is the soft limit; above `hard_limit_tokens` the step's calls are refused."""

    step: str
    intent: str
    tokens: int
    hard_limit_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class Shares:
    """The allocations sum to `pool_tokens`."""

    strategy: str
    pool_tokens: int
    allocations: tuple[StepShare, ...]


async def allocate_steps(request: ApiRequest[ProjectQuery, AllocateBody]) -> Shares:
    body = request.body
    try:
        run_request = RunRequest(
            run="",
            workflow=body.workflow or "",
            agent=body.agent or "",
            budget=Limit(tokens=body.tokens),
            strategy=body.strategy,
            ais=body.ais,
            steps=tuple(declared_steps(body.steps)),
        )
        plan = await request.services.parts.orchestration.propose(request.project, run_request)
    except ValueError as error:
        raise BadRequest.field("steps", str(error)) from error
    shares = [
        StepShare(step.step, step.intent, step.allocation_tokens, step.hard_limit_tokens, step.reason)
        for step in plan.steps
    ]
    return Shares(plan.strategy, plan.pool_tokens, tuple(shares))


ROUTES = (
    Route(
        "POST", "/allocate", allocate_steps, Shares, "Try an allocation strategy.", body=AllocateBody, is_question=True
    ),
)
