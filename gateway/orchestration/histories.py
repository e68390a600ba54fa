"""What past runs say about a workflow's steps, read from the store from time to time and cached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from cachetools import LRUCache

from gateway.store import known_steps, step_history
from gateway.store.database import Database, StoreError
from gateway.store.known_steps import KnownStep
from gateway.store.step_history import IntentModel, StepSample
from gateway.tags import DEFAULT_STEP
from policies.allocation import StepHistory, history_of
from policies.declaration import learned_steps
from policies.intents import Intent

_log = structlog.get_logger(__name__)
_HISTORIES_MAX: Final = 5_000
_PROJECTS_MAX: Final = 100
# How long a history is considered fresh: it changes slowly, and a query per run would burden the store.
_FRESH_MS: Final = 60_000
# How long a run's first call waits for a history that was never read before. Later reads happen in the background.
_WAIT_MS: Final = 500

Samples = Sequence[StepSample]


@dataclass(frozen=True, slots=True)
class WorkflowHistory:
    """`alike` has the samples of all workflows by intent and model, for steps with too few samples of their own."""

    by_step: Mapping[str, Samples] = field(default_factory=dict)
    known: Mapping[str, KnownStep] = field(default_factory=dict)
    alike: Mapping[IntentModel, Samples] = field(default_factory=dict)

    def of(self, step: str, intent: str) -> StepHistory | None:
        known_step = self.known.get(step)
        alike = self.alike.get(IntentModel(intent, known_step.model), ()) if known_step is not None else ()
        return history_of(self.by_step.get(step, ()), alike)

    def learned(self) -> tuple[Mapping[str, Any], ...]:
        """The steps of an undeclared workflow, in the order of their first calls; none before three finished runs."""
        names = learned_steps({step: len(samples) for step, samples in self.by_step.items()}) or ()
        ordered = sorted((name for name in names if name != DEFAULT_STEP), key=lambda name: (self._order(name), name))
        return tuple({"id": name, "intent": self._intent(name)} for name in ordered)

    def _order(self, step: str) -> int:
        known_step = self.known.get(step)
        return known_step.order if known_step is not None else len(self.known)

    def _intent(self, step: str) -> str:
        known_step = self.known.get(step)
        return known_step.intent if known_step is not None and known_step.intent else Intent.GENERATE


NOTHING: Final = WorkflowHistory()


@dataclass(slots=True)
class _CachedHistory:
    at_ms: int
    history: WorkflowHistory
    has_alike: bool


class WorkflowHistories:
    def __init__(self, store: Database, clock_ms: Callable[[], int]) -> None:
        self._store = store
        self._clock_ms = clock_ms
        self._histories: LRUCache[tuple[str, str], _CachedHistory] = LRUCache(_HISTORIES_MAX)
        self._alike: LRUCache[str, tuple[int, Mapping[IntentModel, Samples]]] = LRUCache(_PROJECTS_MAX)
        self._loading: dict[tuple[str, str, bool], asyncio.Task[None]] = {}

    def forget(self) -> None:
        self._histories.clear()
        self._alike.clear()

    async def of(self, project: str, workflow: str, *, alike: bool) -> WorkflowHistory:
        """The history of a workflow. Never raises: without a store it is empty. `alike`: include steps of the same intent and model."""
        key = (project, workflow)
        cached = self._histories.get(key)
        is_complete = cached is not None and (cached.has_alike or not alike)
        if cached is not None and is_complete and self._clock_ms() - cached.at_ms < _FRESH_MS:
            return cached.history
        task = self._load_once(project, workflow, alike)
        if cached is not None and is_complete:
            return cached.history
        await asyncio.wait({task}, timeout=_WAIT_MS / 1000)
        cached = self._histories.get(key)
        return cached.history if cached is not None else NOTHING

    def _load_once(self, project: str, workflow: str, alike: bool) -> asyncio.Task[None]:
        key = (project, workflow, alike)
        task = self._loading.get(key)
        if task is None:
            loading: Coroutine[Any, Any, None] = self._load(project, workflow, alike)
            task = self._loading[key] = asyncio.create_task(loading, name="history")
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        return task

    async def _load(self, project: str, workflow: str, alike: bool) -> None:
        now_ms = self._clock_ms()
        try:
            history = WorkflowHistory(
                await step_history.by_step(self._store, project, workflow, now_ms),
                await known_steps.of_workflow(self._store, project, workflow, now_ms),
                await self._alike_in(project, now_ms) if alike else {},
            )
        except StoreError as error:
            _log.warning("history_not_loaded", workflow=workflow, error=str(error))
            return
        self._histories[project, workflow] = _CachedHistory(now_ms, history, alike)

    async def _alike_in(self, project: str, now_ms: int) -> Mapping[IntentModel, Samples]:
        """Shared by all workflows of a project, because it is the most expensive part to read and the largest to keep."""
        cached = self._alike.get(project)
        if cached is None or now_ms - cached[0] >= _FRESH_MS:
            cached = self._alike[project] = now_ms, await step_history.by_intent(self._store, project, now_ms)
        return cached[1]
