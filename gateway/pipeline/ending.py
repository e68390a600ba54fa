"""Ends each call once, whatever happens to its task: settles it, or releases what its admission may have reserved."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.pipeline.call import Call, Outcome
from gateway.pipeline.ports import InFlightCalls
from gateway.pipeline.settlement import Settler
from gateway.upstream.deployments import DeploymentPool

_log = structlog.get_logger(__name__)


class Ending:
    def __init__(self, *, settler: Settler, ledger: Ledger, in_flight: InFlightCalls, pool: DeploymentPool) -> None:
        self._settler = settler
        self._ledger = ledger
        self._in_flight = in_flight
        self._pool = pool
        self._tasks: set[asyncio.Task[Any]] = set()

    async def settle(self, call: Call, outcome: Outcome) -> None:
        """Settle the call; only its first outcome counts. If the calling task is cancelled, it is done in a task of its own.

        Repeating a settlement is safe, because the ledger knows by the call's id what it has already booked.
        """
        if call.is_settled:
            return
        call.is_settled = True
        try:
            await self._settler.settle(call, outcome)
        except asyncio.CancelledError:
            await asyncio.shield(self._start_task(self._settler.settle(call, outcome)))
            raise
        finally:
            self._in_flight.finished(call)

    async def withdraw(self, call: Call, *, is_outage: bool) -> None:
        """Void what an admission that failed may have reserved: its reply may have been lost. Harmless if there is nothing."""
        voiding = self._start_task(self._void(call, is_outage=is_outage))
        # An unreachable ledger replies late or never, so do not keep the client waiting for it.
        if not is_outage:
            await asyncio.shield(voiding)

    def release(self, call: Call) -> None:
        """The call is over. It counts as in flight from the choice of its deployment, so that a burst is spread, to its last byte."""
        if call.deployment is not None:
            self._pool.release(call.deployment)

    async def drain(self) -> None:
        """Wait for what goes on although its callers are gone."""
        while self._tasks:
            # Not `gather`: from Python 3.12 on it does not yield if all are done, and then their callbacks never empty the set.
            await asyncio.wait(self._tasks)

    async def _void(self, call: Call, *, is_outage: bool) -> None:
        try:
            await self._ledger.void(call.principal.project, call.id)
        except LedgerUnavailable:
            # A call that an outage refused has hardly ever a hold, and the outage itself is in the log once.
            if not is_outage:
                _log.warning("hold_left_to_sweeper", request_id=call.id)

    def _start_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
