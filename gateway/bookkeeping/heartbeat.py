"""Heartbeats for the reservations of calls in flight, and the sweep of those whose owner is gone.

If its owner is lost, a hold is booked whole (`on_lost: charge`), because it is unknown whether the request was sent and what
came of it. Long calls are renewed well before their deadline. A call that has waited for a connection for a tick or more is
reported as unsent, so that an unreachable provider does not use up budgets; that is taken back before its request is sent.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.errors import LedgerOutage
from gateway.ledger.port import Ledger, LedgerError, Progress
from gateway.observability.telemetry import Telemetry
from gateway.pipeline.call import Call
from gateway.tasks import cancel
from gateway.upstream.port import SendObserver
from policies.amounts import Amount
from policies.reservation import OnLost

_log = structlog.get_logger(__name__)
_TICK_MS: Final = 50


@dataclass(slots=True)
class _InFlightCall:
    """One call in flight; it is the call's `SendObserver`."""

    heartbeat: Heartbeat
    call: Call
    renewed_tick: int
    output_tokens: int = 0
    is_waiting: bool = False  # no byte of the request was sent
    is_reported_unsent: bool = False  # the ledger was told that it is unsent
    has_sent: bool = False  # set once any attempt has sent something

    def on_waiting(self) -> None:
        self.is_waiting = not self.has_sent

    def before_send(self) -> Awaitable[None] | None:
        self.is_waiting, self.has_sent = False, True
        return self.heartbeat.retract_unsent(self) if self.is_reported_unsent else None

    def is_due(self, tick: int, ticks_between: int) -> bool:
        return tick - self.renewed_tick >= ticks_between or (self.is_waiting and not self.is_reported_unsent)


class Heartbeat:
    def __init__(
        self,
        ledger: Ledger,
        telemetry: Telemetry,
        *,
        ttl_ms: int,
        sweep_ms: int,
        on_lost: OnLost = OnLost.CHARGE,
    ) -> None:
        self._ledger = ledger
        self._telemetry = telemetry
        self._ttl_ms = ttl_ms
        self._sweep_ms = sweep_ms
        self._charges = on_lost is OnLost.CHARGE
        self._calls: dict[str, _InFlightCall] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._tick = 0
        self._missed: dict[str, str] = {}  # why a project's last renewal failed: logged once, and not at each tick

    def sent(self, call: Call) -> SendObserver | None:
        """The request is on its way to the provider, unless its lane says otherwise: from now on it may cost money."""
        if call.grant is None or not call.grant.held.requests:
            return None
        in_flight = self._calls[call.id] = _InFlightCall(self, call, self._tick)
        return in_flight if self._charges else None

    def progressed(self, call: Call, output_tokens: int) -> None:
        in_flight = self._calls.get(call.id)
        if in_flight is not None:
            in_flight.output_tokens = output_tokens

    def finished(self, call: Call) -> None:
        self._calls.pop(call.id, None)

    def calls(self) -> list[Call]:
        """The calls that have a hold and are at a provider now."""
        return [in_flight.call for in_flight in self._calls.values()]

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._renew_forever(), name="heartbeat"),
            asyncio.create_task(self._sweep_forever(), name="sweeper"),
        ]

    async def stop(self) -> None:
        await cancel(*self._tasks)

    async def _renew_forever(self) -> None:
        ticks_between = max(1, self._ttl_ms // 4 // _TICK_MS)
        while True:
            await asyncio.sleep(_TICK_MS / 1000)
            self._tick += 1
            due = [in_flight for in_flight in self._calls.values() if in_flight.is_due(self._tick, ticks_between)]
            if due:
                await self._renew(due)

    async def _renew(self, due: list[_InFlightCall]) -> None:
        by_project: dict[str, list[_InFlightCall]] = defaultdict(list)
        for in_flight in due:
            by_project[in_flight.call.principal.project].append(in_flight)
        for project, flights in by_project.items():
            progress = [_progress_report(in_flight) for in_flight in flights]
            for in_flight in flights:
                # Set before the ledger answers, because from here on it may have been told.
                in_flight.is_reported_unsent = in_flight.is_reported_unsent or in_flight.is_waiting
            try:
                await self._ledger.renew(project, progress, self._ttl_ms)
            except Exception as error:  # noqa: BLE001 - whatever it is, the holds of all later calls have to be renewed
                if self._missed.get(project) != str(error):
                    self._missed[project] = str(error)
                    _log.warning("heartbeat_missed", calls=len(flights), error=str(error), kind=type(error).__name__)
                continue
            self._missed.pop(project, None)
            for in_flight in flights:
                in_flight.renewed_tick = self._tick

    async def retract_unsent(self, in_flight: _InFlightCall) -> None:
        """Take back that the request is unsent. Raises `LedgerOutage` if the ledger cannot be told, or has released the hold."""
        call = in_flight.call
        report = Progress(call.id, _progress(in_flight), OnLost.CHARGE)
        try:
            not_pending = await self._ledger.renew(call.principal.project, [report], self._ttl_ms)
        except LedgerError:
            raise LedgerOutage from None
        if not_pending:
            raise LedgerOutage("The hold of this call ran out while it waited for the provider.")

    async def _sweep_forever(self) -> None:
        reason = ""
        while True:
            await asyncio.sleep(self._sweep_ms / 1000)
            try:
                await self.sweep()
                reason = ""
            except Exception as error:  # noqa: BLE001 - nothing else resolves what dead gateways hold
                if str(error) != reason:  # an outage is logged once, and not at each of its sweeps
                    reason = str(error)
                    _log.warning("sweep_missed", error=reason, kind=type(error).__name__)

    async def sweep(self) -> None:
        for lost in await self._ledger.expire_due():
            self._telemetry.expired.inc()
            _log.warning("reservation_lost", id=lost.id, owner=lost.owner, booked_tokens=lost.booked.tokens)
        await self._ledger.purge()


def _progress_report(in_flight: _InFlightCall) -> Progress:
    if in_flight.is_waiting:
        return Progress(in_flight.call.id, on_lost=OnLost.RELEASE)
    return Progress(in_flight.call.id, _progress(in_flight))


def _progress(in_flight: _InFlightCall) -> Amount:
    """The prompt and the output so far, at the prices of the reservation."""
    call = in_flight.call
    prompt = call.count.reserve_tokens if call.count else 0
    nano_usd = 0
    if call.price is not None:
        rates = call.price.rates
        nano_usd = (prompt * rates.input + in_flight.output_tokens * rates.output) // 1_000_000
    return Amount(prompt + in_flight.output_tokens, nano_usd, 1)
