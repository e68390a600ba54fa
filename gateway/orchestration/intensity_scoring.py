"""Periodic computation of agents' intensity scores from their recorded calls.

Every process does this; whichever comes second finds a fresh score and leaves it. Scores that were set through the API are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import fields
from typing import Final

import structlog

from gateway.control import Snapshot
from gateway.store import active_agents
from gateway.store import intensity as intensity_store
from gateway.store.active_agents import ActiveAgent, ToolUse
from gateway.store.database import Database, StoreError
from gateway.store.intensity import Intensity, ObservedActivity
from gateway.tasks import cancel
from policies.intensity import AgentActivity, IntensityScore, WorkflowShape, intensity_score, shape_of

_log = structlog.get_logger(__name__)
EVERY_MS: Final = 60_000
WINDOW_MS: Final = 30 * 86_400_000
# Scores change with every run; only changes of at least this much are stored.
_CHANGE_MIN: Final = 0.05
MEASURED_BY: Final = "gateway"


class IntensityScoring:
    def __init__(self, store: Database, snapshot: Callable[[], Snapshot], clock_ms: Callable[[], int]) -> None:
        self._store = store
        self._snapshot = snapshot
        self._clock_ms = clock_ms
        self._seen_until_ms: int | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="intensity")

    async def stop(self) -> None:
        await cancel(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_MS / 1000)
            try:
                await self.measure()
            except StoreError as error:
                _log.info("intensity_waits_for_store", error=str(error))
            except Exception:  # noqa: BLE001 - a fault in one round must not end all that follow
                _log.exception("intensity_not_measured")

    async def measure(self) -> int:
        """Score the agents that were active since the last round. Returns how many scores were stored. Raises StoreUnavailable."""
        now_ms = self._clock_ms()
        # Events reach the store a moment after they happen: two rounds overlap.
        since_ms = (self._seen_until_ms or now_ms - WINDOW_MS) - EVERY_MS
        written = 0
        for agent in await active_agents.active_since(self._store, since_ms):
            written += await self._score(agent, now_ms)
        self._seen_until_ms = now_ms
        return written

    async def _score(self, agent: ActiveAgent, now_ms: int) -> bool:
        latest = await intensity_store.history(self._store, agent.project, agent.agent, limit=1)
        previous = latest[0] if latest else None
        if previous is not None and (previous.source == "set" or previous.measured_at_ms > now_ms - EVERY_MS // 2):
            return False
        since_ms = await active_agents.latest_runs_since(self._store, agent.project, agent.agent, now_ms - WINDOW_MS)
        observed = await intensity_store.observed(self._store, agent.project, agent.agent, since_ms)
        tools = await active_agents.tool_use(self._store, agent.project, agent.agent, since_ms)
        activity = activity_of(observed, tools)
        score = intensity_score(activity, self._shape(agent))
        # Without any measure, the score would be the neutral one of an unknown agent, which need not be stored.
        if not score.parts or (previous is not None and not _differs(previous, score)):
            return False
        await intensity_store.put(self._store, _intensity(agent, score, activity, now_ms))
        return True

    def _shape(self, agent: ActiveAgent) -> WorkflowShape | None:
        """The shape of the declared workflow that the agent runs most."""
        snapshot = self._snapshot()
        for name, _ in sorted(agent.workflows.items(), key=lambda item: (-item[1], item[0])):
            workflow = snapshot.workflow(agent.project, name)
            steps = workflow.declaration.get("steps") if workflow is not None else None
            if steps:
                return shape_of(steps)
        return None


def activity_of(observed: ObservedActivity, tools: ToolUse) -> AgentActivity:
    """An agent's activity. Tools and retries are counted in its latest calls only, and extrapolated to the others."""
    share = observed.calls / tools.calls if tools.calls else 0.0
    return AgentActivity(
        runs=observed.runs,
        calls=observed.calls,
        errors=observed.errors,
        input_tokens=observed.input_tokens,
        output_tokens=observed.output_tokens,
        total_tokens=observed.total_tokens,
        peak_run_tokens=observed.peak_run_tokens,
        duration_ms=observed.duration_ms,
        steps=observed.steps,
        retries=round(tools.retries * share),
        tool_calls=round(tools.tool_calls * share),
        distinct_tools=tools.tools_max,
    )


def _differs(previous: Intensity, score: IntensityScore) -> bool:
    pairs = (
        (previous.creation, score.creation),
        (previous.execution, score.execution),
        (previous.combined, score.combined),
    )
    return any(abs(old - new) >= _CHANGE_MIN for old, new in pairs)


def _intensity(agent: ActiveAgent, score: IntensityScore, activity: AgentActivity, now_ms: int) -> Intensity:
    observed = {field.name: getattr(activity, field.name) for field in fields(activity)}
    return Intensity(
        agent.project,
        agent.agent,
        score.creation,
        score.execution,
        score.combined,
        score.runs,
        source="computed",
        metrics={"parts": dict(score.parts), "seen": observed},
        measured_at_ms=now_ms,
        measured_by=MEASURED_BY,
    )
