"""Outages of the ledger: fail fast, go on where budgets allow it, and lose no settlement.

the ledger answers       every call goes through to it
it fails or is slow      the breaker opens: `LedgerUnavailable` at once, while a probe tries every second
  · settlements          are written to a local spool (fsync) and reported as done
  · reservations         fail, unless the caller asks for `reserve_locally` (budgets with `on_outage: allow`)
it answers again         the spool is booked by reservation id, then the breaker closes

More calls than the ledger can take at once are no outage: they wait for their turn (`in_flight`), and no timeout runs
meanwhile. When the breaker opens, the waiting calls fail with the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, ParamSpec, TypeVar

import structlog

from gateway.ledger import checks
from gateway.ledger.allowance import Allowance
from gateway.ledger.batches import batched, gather_all
from gateway.ledger.circuit_breaker import CircuitBreaker
from gateway.ledger.clock import wall_clock_ms
from gateway.ledger.concurrency_limiter import ConcurrencyLimiter
from gateway.ledger.health import Health
from gateway.ledger.loop_lag import LoopLag
from gateway.ledger.port import (
    BackingLedger,
    CountersMissing,
    ExpiredReservation,
    LedgerError,
    LedgerUnavailable,
    OutboxEntry,
    Progress,
    Reserve,
    Resolution,
)
from gateway.ledger.retries import retry_while_unavailable
from gateway.ledger.spool import RecordedEvent, Settlement, Spool, SpoolRecord
from gateway.tasks import cancel
from policies.amounts import ZERO, Amount, Limit
from policies.reservation import Balance, Decision, Demand, Gate, Granted, Hold, Refusal, State

P = ParamSpec("P")
T = TypeVar("T")

# A second or two in total, if connections are refused or the deadline is short.
_STARTUP_TRIES: Final = 10
_STARTUP_PAUSE_S: Final = 0.1
_PROBE_S: Final = 1.0
# In normal operation, the gateway processes are counted once in so many rounds of `_probe_forever`.
_COUNT_PROCESSES_EVERY: Final = 10
# Owners renew every 15 s. After an outage they get this long to do so before their holds count as lost.
_SWEEP_GRACE_S: Final = 20.0
# A shorter outage costs no living owner its hold (it renews at a quarter of the time). Otherwise a flapping ledger, such as a
# busy Redis, would put off the sweep again and again.
_GRACE_MIN_OUTAGE_S: Final = 10.0
# A reserve whose reply was lost may be retried at once with the same id, but not after this long.
_VOID_UNWANTED_AFTER_S: Final = 5.0
_REPLAY_BATCH: Final = 200
_REMEMBERED_MAX: Final = 100_000
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _KnownReservation:  # a reservation that this process made in the ledger
    request: Reserve
    granted: Granted


class OutageLedger:
    """Wraps a ledger behind a network. `slow_ms`: an answer that takes longer is bad."""

    def __init__(
        self,
        ledger: BackingLedger,
        spool: Spool,
        *,
        slow_ms: int = 80,
        processes_hint: int = 1,
        probe_s: float = _PROBE_S,
        sweep_grace_s: float = _SWEEP_GRACE_S,
        grace_min_outage_s: float = _GRACE_MIN_OUTAGE_S,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._breaker = CircuitBreaker(slow_ms=slow_ms)
        self._limiter = ConcurrencyLimiter()
        self._ready: set[str] = set()
        self._allowance = Allowance()
        self._processes_hint = processes_hint
        self._processes = processes_hint
        self._probe_s = probe_s
        self._sweep_grace_s = sweep_grace_s
        self._grace_min_outage_s = grace_min_outage_s
        self._known: OrderedDict[tuple[str, str], _KnownReservation] = OrderedDict()
        self._settling: dict[tuple[str, str], Settlement] = {}
        self._unwanted: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._reason = "the ledger was not opened yet"
        self._is_opened = False
        self._is_down = True
        self._sweep_after_s = 0.0
        self._outage_began_s = time.monotonic()
        self._prober: asyncio.Task[None] | None = None
        self._lag = LoopLag()

    @property
    def health(self) -> Health:
        available = not self._is_unavailable
        reason = "" if available else self._reason
        return Health(available, reason, self._ledger.warnings, len(self._spool), self._breaker.times_opened)

    async def open(self) -> None:
        """Open the spool and the ledger. If the ledger cannot be reached for a second or two, that is no error: probes go on.

        Raises `LedgerError` if it can be reached but is not fit to keep money.
        """
        try:
            await self._spool.open()
        except OSError as error:
            raise LedgerError(f"the spool of the ledger cannot be written: {error}") from error
        self._lag.start()
        try:
            # No call waits yet, and the first answers of a cold system are slow.
            await retry_while_unavailable(self._end_outage, tries=_STARTUP_TRIES, pause_s=_STARTUP_PAUSE_S)
        except LedgerUnavailable as error:
            self._start_outage(str(error))
        except LedgerError:
            await self._lag.stop()
            await self._spool.close()
            raise
        self._prober = asyncio.create_task(self._probe_forever())

    async def close(self) -> None:
        await cancel(self._prober)
        await self._lag.stop()
        if self._is_opened:
            with contextlib.suppress(LedgerError):
                await self._replay_spool()
        await self._ledger.close()
        await self._spool.close()

    async def now_ms(self) -> int:
        return await self._call(None, self._ledger.now_ms)

    async def reserve(self, project: str, request: Reserve) -> Decision:
        decision = await self._call(project, self._reserve, project, request)
        if isinstance(decision, Granted):
            self._remember(project, request, decision)
            self._allowance.record_balances(project, decision.balances)
        return decision

    async def reserve_locally(self, project: str, request: Reserve) -> Decision:
        """Grant without the ledger, within what was left when it was last seen, divided by the number of gateway processes.

        For calls whose enforced budgets all say `on_outage: allow`, after `reserve` has raised `LedgerUnavailable`. Raises
        `LedgerUnavailable` if the demand does not fit into the allowance.
        """
        checks.check_reserve(request)
        decision = self._require_allowed(self._allowance.reserve(project, request, wall_clock_ms()))
        if isinstance(decision, Granted):
            self._unwanted.pop((project, request.id), None)
            self._remember(project, request, decision)
        return decision

    async def extend(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand) -> Decision:
        if self._allowance.has_reservation(project, reservation_id):
            return await self.extend_locally(project, reservation_id, holds, extra)
        decision = await self._call(project, self._ledger.extend, project, reservation_id, holds, extra)
        known = self._known.get((project, reservation_id))
        if known is not None and isinstance(decision, Granted):
            known.granted = decision
        return decision

    async def extend_locally(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand) -> Decision:
        """Like `reserve_locally`."""
        checks.check_extra(extra)
        if not self._allowance.has_reservation(project, reservation_id):
            known = self._known.get((project, reservation_id))
            if known is None:
                raise LedgerUnavailable(self._reason)
            self._allowance.adopt(project, known.granted, known.request)
        decision = self._allowance.extend(project, reservation_id, holds, extra, wall_clock_ms())
        return self._require_allowed(decision)

    async def renew(self, project: str, progress: Sequence[Progress], ttl_ms: int) -> tuple[str, ...]:
        """Reservations that were granted locally need no renewal: only this process knows them."""
        renewable = [sign for sign in progress if not self._allowance.is_local(project, sign.id)]
        return await self._call(project, self._ledger.renew, project, renewable, ttl_ms) if renewable else ()

    async def settle(self, project: str, reservation_id: str, used: Amount, detail: bytes) -> Resolution:
        """See the port. If the ledger is out of reach, the settlement is on this machine's disk on return, without balances."""
        checks.check_amount("used", used)
        key = (project, reservation_id)
        # A cancelled settle is retried, and must then still find what this process knows of the reservation.
        record = self._settling.get(key) or self._settlement_of(project, reservation_id, used, detail)
        self._settling[key] = record
        try:
            resolution = await self._call(project, self._book, record)
        except LedgerUnavailable:
            await self._spool_records([record])
            overrun = ZERO if record.request is None else record.used.excess_over(record.held)
            resolution = Resolution(State.SETTLED, True, record.used, overrun, ())
        except LedgerError as error:
            await self._reject_record(record, error)
            self._settling.pop(key, None)
            raise
        self._settling.pop(key, None)
        return resolution

    async def void(self, project: str, reservation_id: str) -> Resolution:
        """See the port. If the ledger is out of reach, the hold is released when it answers again."""
        key = (project, reservation_id)
        was_local = self._allowance.is_local(project, reservation_id)
        if self._allowance.has_reservation(project, reservation_id):
            self._allowance.resolve(project, reservation_id, ZERO)
        try:
            resolution = await self._call(project, self._ledger.void, project, reservation_id)
        except LedgerUnavailable:
            # Refused calls void what they never held, too. An outage with many of them must not end with as many voids.
            if key in self._known or key in self._unwanted:
                self._remember_unwanted(project, reservation_id)
            resolution = None
        self._known.pop(key, None)
        if resolution is None or (resolution.state is None and was_local):
            return Resolution(State.VOIDED, True, ZERO, ZERO, ())
        return resolution

    async def expire_due(self, limit: int = 1000) -> Sequence[ExpiredReservation]:
        if time.monotonic() < self._sweep_after_s:
            return ()
        return await self._call_long(self._ledger.expire_due, limit)

    async def record(self, project: str, entries: Sequence[OutboxEntry]) -> None:
        checks.check_entries(entries)
        try:
            await self._call_long(self._ledger.record, project, entries)
        except LedgerUnavailable:
            now_ms = wall_clock_ms()
            dated = (replace(entry, project=project, at_ms=entry.at_ms or now_ms) for entry in entries)
            await self._spool_records([RecordedEvent(entry) for entry in dated])

    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]:
        return await self._call(project, self._ledger.balances, project, accounts)

    async def set_override(self, project: str, account: str, limit: Limit) -> Balance:
        return await self._call(project, self._ledger.set_override, project, account, limit)

    async def set_gate(self, project: str, account: str, gate: Gate) -> Balance:
        return await self._call(project, self._ledger.set_gate, project, account, gate)

    async def current_run(self, project: str, workflow: str, candidate: str, silence_ms: int) -> str:
        return await self._call(project, self._ledger.current_run, project, workflow, candidate, silence_ms)

    async def pending(self, project: str, limit: int = 1000) -> Sequence[tuple[str, str, Amount, int]]:
        return await self._call_long(self._ledger.pending, project, limit)

    async def outbox_read(self, consumer: str, limit: int = 1000) -> Sequence[OutboxEntry]:
        return await self._call_outbox(self._ledger.outbox_read, consumer, limit)

    async def outbox_acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        await self._call_outbox(self._ledger.outbox_acknowledge, entries)

    async def outbox_size(self) -> int:
        return await self._call_long(self._ledger.outbox_size)

    async def restore(
        self,
        project: str,
        account: str,
        settled: Amount,
        keep_ms: int,
        gate: Gate | None = None,
        override: Limit | None = None,
    ) -> None:
        await self._call_long(self._ledger.restore, project, account, settled, keep_ms, gate, override)

    async def epoch(self) -> str:
        return await self._call(None, self._ledger.epoch)

    async def purge(self, limit: int = 1000) -> int:
        return await self._call_long(self._ledger.purge, limit)

    @property
    def _is_unavailable(self) -> bool:
        return self._is_down or not self._is_opened

    async def _call(
        self, project: str | None, call: Callable[P, Awaitable[T]], *arguments: P.args, **keywords: P.kwargs
    ) -> T:
        """Run one short operation. Its outcome, and its time since its turn came, count for the breaker.

        `project` is the one it belongs to, if any. Waiting for the project's counters neither counts as slow nor occupies a place.
        """
        if project is not None and project not in self._ready:
            self._require_available()
            await self._call_measured(False, self._ledger.ready, project)
            self._ready.add(project)
        return await self._call_limited(True, call, *arguments, **keywords)

    async def _call_long(self, call: Callable[P, Awaitable[T]], *arguments: P.args, **keywords: P.kwargs) -> T:
        """Run an operation on many keys, which may take long: only failures count for the breaker."""
        return await self._call_limited(False, call, *arguments, **keywords)

    async def _call_outbox(self, call: Callable[P, Awaitable[T]], *arguments: P.args, **keywords: P.kwargs) -> T:
        """Goes on while the breaker is open: it is what makes room in a Redis that is full."""
        bypasses_breaker = self._is_opened and self._is_down
        return await (
            call(*arguments, **keywords) if bypasses_breaker else self._call_long(call, *arguments, **keywords)
        )

    async def _call_limited(
        self, is_short: bool, call: Callable[P, Awaitable[T]], *arguments: P.args, **keywords: P.kwargs
    ) -> T:
        """An operation that gets no turn was not sent: that says nothing about the ledger, and leaves nothing there."""
        self._require_available()
        await self._limiter.acquire()
        try:
            self._require_available()
            return await self._call_measured(is_short, call, *arguments, **keywords)
        finally:
            self._limiter.release()

    def _require_available(self) -> None:
        if self._is_unavailable:
            raise LedgerUnavailable(self._reason)

    async def _call_measured(
        self, is_short: bool, call: Callable[P, Awaitable[T]], *arguments: P.args, **keywords: P.kwargs
    ) -> T:
        started_at_s, lag_ms = time.monotonic(), self._lag.total_ms
        try:
            result = await call(*arguments, **keywords)
        except CountersMissing:
            # The ledger works; only one project has to wait.
            raise
        except LedgerUnavailable as error:
            self._breaker.record_failure(started_at_s, time.monotonic())
            self._check_breaker(str(error))
            raise
        if is_short:
            now_s = time.monotonic()
            duration_ms = (now_s - started_at_s) * 1000 - (self._lag.total_ms - lag_ms)
            self._breaker.record_answer(started_at_s, now_s, duration_ms)
            self._check_breaker("the ledger answers too slowly")
        return result

    def _check_breaker(self, reason: str) -> None:
        if self._breaker.is_open and not self._is_down:
            self._start_outage(reason)

    def _start_outage(self, reason: str) -> None:
        self._is_down, self._reason = True, reason
        self._outage_began_s = time.monotonic()
        self._allowance.start_outage(self._processes)
        self._limiter.reject_queued(reason)
        _log.error("ledger_out_of_reach", reason=reason)

    async def _probe_forever(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(self._probe_s)
            rounds += 1
            try:
                await self._probe(rounds)
            except LedgerError as error:
                self._reason = str(error)
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the watch: the ledger would stay lost
                _log.exception("ledger_watch_failed", error=str(error))

    async def _probe(self, rounds: int) -> None:
        if self._is_unavailable:
            await self._end_outage()
            return
        if len(self._spool) or self._unwanted:
            await self._call_long(self._replay_spool)
        if rounds % _COUNT_PROCESSES_EVERY == 0:
            self._processes = max(self._processes_hint, await self._call(None, self._ledger.processes))

    async def _end_outage(self) -> None:
        """Probe, book the spool, and only then let calls through: the holds that it frees are not free before."""
        if not self._is_opened:
            await self._ledger.open()
        started_s, lag_ms = time.monotonic(), self._lag.total_ms
        await self._ledger.processes()  # the number is not used: after an outage it counts those that came back first
        if (time.monotonic() - started_s) * 1000 - (self._lag.total_ms - lag_ms) > self._breaker.slow_ms:
            raise LedgerUnavailable("the ledger answers too slowly")
        await self._replay_spool()
        if self._breaker.is_open:
            now_s = time.monotonic()
            if now_s - self._outage_began_s >= self._grace_min_outage_s:
                self._sweep_after_s = now_s + self._sweep_grace_s
            _log.info("ledger_is_back")
        self._breaker.close()
        self._is_opened, self._is_down = True, False

    async def _replay_spool(self) -> None:
        while records := self._spool.pending(_REPLAY_BATCH):
            for batch in batched(records):
                await gather_all(self._replay(record) for record in batch)
            await self._spool.forget(records)
        for key, since_s in list(self._unwanted.items()):
            if time.monotonic() - since_s >= _VOID_UNWANTED_AFTER_S:
                await self._ledger.void(*key)
                self._unwanted.pop(key, None)

    async def _reserve(self, project: str, request: Reserve) -> Decision:
        """Runs when its turn has come, so that a call that is rejected before leaves nothing to release."""
        self._unwanted.pop((project, request.id), None)
        try:
            return await self._ledger.reserve(project, request)
        except (LedgerUnavailable, asyncio.CancelledError):
            # Perhaps only the reply was lost. Unless it is settled, the hold is released when the ledger answers again.
            self._remember_unwanted(project, request.id)
            raise

    async def _replay(self, record: SpoolRecord) -> None:
        try:
            if isinstance(record, Settlement):
                await self._book(record)
            else:
                await self._ledger.record(record.entry.project, [record.entry])
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            await self._reject_record(record, error)

    async def _book(self, record: Settlement) -> Resolution:
        """Settle in the ledger. If it does not know a reservation of this process, it was lost there, or never arrived."""
        resolution = await self._ledger.settle(record.project, record.reservation_id, record.used, record.detail)
        if resolution.state is None and record.request is not None:
            resolution = await self._ledger.book(
                record.project, record.request, record.held, record.used, record.detail
            )
        self._allowance.record_balances(record.project, resolution.balances)
        return resolution

    def _settlement_of(self, project: str, reservation_id: str, used: Amount, detail: bytes) -> Settlement:
        """The settlement of a reservation, with all that is known of it here. Frees its local allowance."""
        known = self._known.pop((project, reservation_id), None)
        held = ZERO if known is None else known.granted.held
        if self._allowance.has_reservation(project, reservation_id):
            held = self._allowance.resolve(project, reservation_id, used)
        return Settlement(project, reservation_id, used, detail, None if known is None else known.request, held)

    async def _spool_records(self, records: Sequence[SpoolRecord]) -> None:
        try:
            await self._spool.append(records)
        except OSError as error:
            # It stays in memory, and is booked when the ledger is back, if this process lives that long.
            _log.error("spool_not_written", error=str(error), records=[record.key for record in records])

    async def _reject_record(self, record: SpoolRecord, error: LedgerError) -> None:
        """The ledger is up but refuses the record: retrying is useless, and losing it is not an option."""
        _log.error("spooled_record_rejected", record=record.key, error=str(error))
        try:
            await self._spool.reject(record)
        except OSError as failure:
            _log.error("spool_not_written", error=str(failure), records=[record.key])

    def _remember(self, project: str, request: Reserve, granted: Granted) -> None:
        self._known[project, request.id] = _KnownReservation(request, granted)
        if len(self._known) > _REMEMBERED_MAX:
            self._known.popitem(last=False)

    def _remember_unwanted(self, project: str, reservation_id: str) -> None:
        self._unwanted[project, reservation_id] = time.monotonic()
        if len(self._unwanted) > _REMEMBERED_MAX:
            self._unwanted.popitem(last=False)

    def _require_allowed(self, decision: Decision) -> Decision:
        if isinstance(decision, Granted) or decision.reason in (Refusal.GATE, Refusal.RESOLVED):
            return decision
        # This is not a refusal by the budget, which may have more: the caller may retry when the ledger is back.
        raise LedgerUnavailable(f"{self._reason}; what may be used of {decision.account!r} meanwhile is used up")
