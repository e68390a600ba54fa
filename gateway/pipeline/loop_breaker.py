"""The loop breaker: stops a run whose agent repeats itself exactly, until someone resumes it.

Each process counts for itself, but trips the breaker for all: it closes the run's gate in the ledger, so every gateway refuses
the run from then on. With N gateways behind a load balancer, noticing a loop takes up to N times as many turns.

Not counted: calls that do not name their run (many users may share an implicit one), retries marked by the SDK, calls that failed
or whose client disconnected, copies sent while the first is still in flight, and replays of an idempotent call. The whole body
is hashed only if its length and last two kilobytes have been seen before, so a call that does not repeat costs very little.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.config.schema import LoopConfig
from gateway.errors import BudgetRefusal
from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.observability.alerts import Alerts
from gateway.pipeline.call import Call
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.refusal import loop_detected
from policies.budgets import run_account
from policies.loop_detection import RepeatCount, count_repeat, is_conversation, last_tool_turn
from policies.reservation import Gate

_log = structlog.get_logger(__name__)
_REMEMBERED_MAX: Final = 50_000
_TAIL_BYTES: Final = 2048

_Key = tuple[str, str, str, int]


@dataclass(slots=True)
class _Entry:
    repeats: RepeatCount
    under_way: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One call as the breaker sees it, from `begin` to `end`."""

    keys: tuple[_Key, ...]
    previous: tuple[RepeatCount, ...]  # restored if the call fails
    occurrences: int
    repeated: str  # request or tools


class LoopBreaker:
    """Lets `rules.repeats` identical turns through, and trips on the next one; 0: never trips."""

    def __init__(self, ledger: Ledger, alerts: Alerts, rules: LoopConfig) -> None:
        self._ledger = ledger
        self._alerts = alerts
        self._repeats = rules.repeats
        self._all_requests = rules.requests == "all"
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()

    def begin(self, call: Call) -> Turn | None:
        """Count the call. None: it is of a kind that is not counted."""
        raw, call.raw = call.raw, b""
        if not raw or not self._repeats or call.retry or call.run is None:
            return None
        body = call.request.body
        if not self._all_requests and not is_conversation(body):
            return None
        scope = (call.principal.project, call.run, call.tags.step)
        keys = [(*scope, hash((len(raw), raw[-_TAIL_BYTES:])))]
        request = self._count_occurrence(keys[0], raw)
        tools = last_tool_turn(body)
        if tools is None:
            return Turn(tuple(keys), (request[0],), request[1], "request")
        keys.append((*scope, hash(tools)))
        tool_turn = self._count_occurrence(keys[1], None)
        repeated = "tools" if tool_turn[1] >= request[1] else "request"
        return Turn(tuple(keys), (request[0], tool_turn[0]), max(request[1], tool_turn[1]), repeated)

    def is_loop(self, turn: Turn) -> bool:
        return turn.occurrences > self._repeats

    async def trip(self, call: Call, turn: Turn) -> BudgetRefusal:
        """Close the run for all gateways, and reset the count, so that a resumed run starts afresh."""
        for key in turn.keys:
            self._entries.pop(key, None)
        run = call.run or ""
        self._alerts.report(
            "loop_detected",
            call.id,
            project=call.principal.project,
            run=run,
            step=call.tags.step,
            repeated=turn.repeated,
        )
        try:
            await self._ledger.set_gate(call.principal.project, run_account(run), Gate.LOOPING)
        except LedgerUnavailable as error:
            _log.warning("loop_not_closed", run=run, error=str(error))
        return loop_detected(call, repeated=turn.repeated, occurrences=turn.occurrences)

    def end(self, turn: Turn, exchange: Exchange | None) -> None:
        """`exchange` is None for a call that failed. A failed call is not counted, since the next one is its retry."""
        failed = (
            exchange is None
            or exchange.is_client_gone
            or (exchange.sent_answer is not None and exchange.sent_answer.status >= 400)
        )
        for key, previous in zip(turn.keys, turn.previous, strict=True):
            entry = self._entries.get(key)
            if entry is not None:
                entry.under_way -= 1
                if failed:
                    entry.repeats = previous

    def _count_occurrence(self, key: _Key, raw: bytes | None) -> tuple[RepeatCount, int]:
        """Count one more occurrence of `key`. Returns the previous repeat count, and the new number of repeats."""
        entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = _Entry(RepeatCount(), 1)
            if len(self._entries) > _REMEMBERED_MAX:
                self._entries.popitem(last=False)
            return RepeatCount(0), 1
        self._entries.move_to_end(key)
        previous = entry.repeats
        if not entry.under_way:
            entry.repeats = count_repeat(previous, 0 if raw is None else hash(raw))
        entry.under_way += 1
        return previous, entry.repeats.count
