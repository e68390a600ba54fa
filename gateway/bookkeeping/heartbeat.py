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
from gateway.upstream.port import Departure
from policies.amounts import Amount
from policies.reservation import OnLost

_log = structlog.get_logger(__name__)
_TICK_MS: Final = 50


@dataclass(slots=True)
class _Flight:
    """One call in flight; it is the call's `Departure`."""

    heartbeat: Heartbeat
    call: Call
    renewed_tick: int
    output_tokens: int = 0
    is_waiting: bool = False  # no byte of the request was sent
    is_said_unsent: bool = False  # the ledger was told that it is unsent
    has_left: bool = False  # set once any attempt has sent something

    def waits(self) -> None:
        self.is_waiting = not self.has_left

    def leaves(self) -> Awaitable[None] | None:
        self.is_waiting, self.has_left = False, True
        return self.heartbeat.unsay(self) if self.is_said_unsent else None

    def is_due(self, tick: int, ticks_between: int) -> bool:
        return tick - self.renewed_tick >= ticks_between or (self.is_waiting and not self.is_said_unsent)


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
        self._flights: dict[str, _Flight] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._tick = 0

    def sent(self, call: Call) -> Departure | None:
        """The request is on its way to the provider, unless its lane says otherwise: from now on it may cost money."""
        if call.grant is None or not call.grant.held.requests:
            return None
        flight = self._flights[call.id] = _Flight(self, call, self._tick)
        return flight if self._charges else None

    def progressed(self, call: Call, output_tokens: int) -> None:
        flight = self._flights.get(call.id)
        if flight is not None:
            flight.output_tokens = output_tokens

    def finished(self, call: Call) -> None:
        self._flights.pop(call.id, None)

    def calls(self) -> list[Call]:
        """The calls that have a hold and are at a provider now."""
        return [flight.call for flight in self._flights.values()]

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._renew_forever(), name="heartbeat"),
            asyncio.create_task(self._sweep_forever(), name="sweeper"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _renew_forever(self) -> None:
        ticks_between = max(1, self._ttl_ms // 4 // _TICK_MS)
        while True:
            await asyncio.sleep(_TICK_MS / 1000)
            self._tick += 1
            due = [flight for flight in self._flights.values() if flight.is_due(self._tick, ticks_between)]
            if due:
                await self._renew(due)

    async def _renew(self, due: list[_Flight]) -> None:
        by_project: dict[str, list[_Flight]] = defaultdict(list)
        for flight in due:
            by_project[flight.call.principal.project].append(flight)
        for project, flights in by_project.items():
            progress = [_sign(flight) for flight in flights]
            for flight in flights:
                # Set before the ledger answers, because from here on it may have been told.
                flight.is_said_unsent = flight.is_said_unsent or flight.is_waiting
            try:
                await self._ledger.renew(project, progress, self._ttl_ms)
            except LedgerError as error:
                _log.warning("heartbeat_missed", calls=len(flights), error=str(error))
                continue
            for flight in flights:
                flight.renewed_tick = self._tick

    async def unsay(self, flight: _Flight) -> None:
        """Take back that the request is unsent. Raises `LedgerOutage` if the ledger cannot be told, or has released the hold."""
        call = flight.call
        sign = Progress(call.id, _progress(flight), OnLost.CHARGE)
        try:
            gone = await self._ledger.renew(call.principal.project, [sign], self._ttl_ms)
        except LedgerError:
            raise LedgerOutage from None
        if gone:
            raise LedgerOutage("The hold of this call ran out while it waited for the provider.")

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_ms / 1000)
            try:
                await self.sweep()
            except LedgerError as error:
                _log.warning("sweep_missed", error=str(error))

    async def sweep(self) -> None:
        for lost in await self._ledger.expire_due():
            self._telemetry.expired.inc()
            _log.warning("reservation_lost", id=lost.id, owner=lost.owner, booked_tokens=lost.booked.tokens)
        await self._ledger.purge()


def _sign(flight: _Flight) -> Progress:
    if flight.is_waiting:
        return Progress(flight.call.id, on_lost=OnLost.RELEASE)
    return Progress(flight.call.id, _progress(flight))


def _progress(flight: _Flight) -> Amount:
    """The prompt and the output so far, at the prices of the reservation."""
    call = flight.call
    prompt = call.count.reserve_tokens if call.count else 0
    nano_usd = 0
    if call.price is not None:
        rates = call.price.rates
        nano_usd = (prompt * rates.input + flight.output_tokens * rates.output) // 1_000_000
    return Amount(prompt + flight.output_tokens, nano_usd, 1)
