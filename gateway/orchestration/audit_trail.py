"""The gateway's own decisions in the audit trail: one event for each new decision, none for repeating it.

    intent.classified   a step's intent was found (later calls of the step repeat it)
    budget.allocated    a step of a run was given its share
    run.planned         a run was announced and planned
    call.refused        a call did not fit a budget
    call.observed       a call would have been refused, were its budget enforced
    prompt.compressed   a prompt was made smaller
    model.routed        another model than the one asked for was chosen

Changes that people make (settings, keys, budgets, runs) are recorded by the control API, under their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.orchestration.batch_writer import BatchWriter
from gateway.pipeline.call import Call
from gateway.store import audit
from gateway.store.audit import AuditEvent
from gateway.store.database import Database

ACTOR: Final = "gateway"


class AuditTrail:
    """Noting an event only queues it. While the store is unreachable, the oldest events may be dropped; calls never fail."""

    def __init__(self, store: Database, clock_ms: Callable[[], int]) -> None:
        self._store = store
        self._clock_ms = clock_ms
        self._batches: BatchWriter[AuditEvent] = BatchWriter("audit-trail", self._write)

    def start(self) -> None:
        self._batches.start()

    async def stop(self) -> None:
        await self._batches.stop()

    async def flush(self) -> None:
        await self._batches.flush()

    def note(self, action: str, call: Call, target: str, **detail: Any) -> None:
        """Record a decision about a call. `target` is its subject: a step, a model or a scope."""
        event_detail = {"workflow": call.tags.workflow, "step": call.tags.step} | detail
        self._batches.put(
            AuditEvent(
                self._clock_ms(),
                ACTOR,
                action,
                target,
                call.principal.project,
                call.run or "",
                call.id,
                {name: value for name, value in event_detail.items() if value is not None},
            )
        )

    def note_run(self, action: str, project: str, run: str, **detail: Any) -> None:
        self._batches.put(AuditEvent(self._clock_ms(), ACTOR, action, run, project, run, "", detail))

    async def _write(self, events: Sequence[AuditEvent]) -> None:
        await audit.append(self._store, events)
