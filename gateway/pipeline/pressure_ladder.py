"""Climbs the ladder for a call that does not fit: each rung makes the call smaller, or waits, and asks the ledger again.

A rung is tried once against each account and unit that is short. Once a shorter answer has freed enough tokens, money may be
short instead, which gives earlier rungs something new to try: so the ladder is climbed again until no rung is left to try.
Whatever a rung changed stays changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.pipeline.call import Call
from gateway.pipeline.fitting import Fitting
from gateway.pipeline.ports import Planner
from policies.amounts import Unit
from policies.pressure import Rung, prompt_room
from policies.reservation import Decision, Demand, Granted, Refusal, Refused

WAIT_STEP_MS: Final = 100
_Attempt = tuple[Rung, str, Unit | None, str]  # rung, account and unit that are short, and the model that is asked


@dataclass(slots=True)
class _ClimbState:
    """The state of one climb."""

    demand: Demand
    decision: Decision | None = None  # the ledger's latest
    is_clamped: bool = False  # from now on the answer may be cut to the shortest useful length
    waited_ms: int = 0
    tried: set[_Attempt] = field(default_factory=set)

    @property
    def refused(self) -> Refused | None:
        return self.decision if isinstance(self.decision, Refused) else None

    @property
    def is_over(self) -> bool:
        """Granted, or refused by a gate, which a smaller call would not open."""
        refused = self.refused
        return isinstance(self.decision, Granted) or (refused is not None and refused.reason is Refusal.GATE)


class PressureLadder:
    def __init__(self, *, planner: Planner, fitting: Fitting, sleep: Callable[[float], Awaitable[object]]) -> None:
        self._planner = planner
        self._fitting = fitting
        self._sleep = sleep

    async def climb(self, call: Call) -> tuple[Demand, Decision]:
        """The last demand, and the ledger's decision on it."""
        climb = _ClimbState(self._fitting.demand(call))
        rungs = [rung for rung in call.chain.ladder.tried if not self.skip_reason(call, rung)]
        first: Rung | None = None
        if rungs and rungs[0] is Rung.CLAMP:
            # A clamped request is granted as much as fits, up to the whole call, so there is no need to ask for the whole first.
            first = Rung.CLAMP
            climb.tried.add(_attempt(first, None, call.model))
            climb.demand, climb.is_clamped = self._clamped(call, climb.demand), True
        await self._reserve_again(call, climb, first)
        tried_before = -1
        while not climb.is_over and len(climb.tried) > tried_before:
            tried_before = len(climb.tried)
            for rung in rungs:
                await self._try_rung(call, climb, rung)
        assert climb.decision is not None  # noqa: S101 - set by `_reserve_again` above
        return climb.demand, climb.decision

    def skip_reason(self, call: Call, rung: Rung) -> str:
        """Why a rung of the ladder is not tried; empty if it is. Callers may forbid rungs."""
        if call.tags.options and f"no-{rung}" in call.tags.options:
            return f"the caller forbids it with no-{rung}"
        match rung:
            case Rung.REFUSE:
                return ""
            case Rung.CLAMP:
                return "" if call.request.has_output else "there is no answer to shorten"
            case Rung.WAIT:
                return "" if call.chain.wait_ms > 0 else "the budget gives no time to wait"
            case _:
                return self._planner.skip_reason(call, rung)

    async def _try_rung(self, call: Call, climb: _ClimbState, rung: Rung) -> None:
        refused = climb.refused
        attempt = _attempt(rung, refused, call.model)
        if climb.is_over or attempt in climb.tried:
            return
        climb.tried.add(attempt)
        if refused is not None and rung is Rung.WAIT:
            await self._wait(call, climb, refused)
        elif await self._apply(call, climb, rung, refused):
            climb.demand = self._demand_of(call, climb)
            await self._reserve_again(call, climb, rung)
        else:
            call.decisions.append({"rung": rung, "result": "changed nothing"})

    async def _apply(self, call: Call, climb: _ClimbState, rung: Rung, refused: Refused | None) -> bool:
        """Apply the rung. Returns whether it made the call smaller."""
        if rung is Rung.CLAMP:
            climb.is_clamped = True
            return True
        if refused is None:
            return False
        if rung is Rung.ROUTE:
            return await self._fitting.reroute(call, refused)
        room = self._prompt_tokens_target(call, climb, refused)
        if room is None:
            call.decisions.append({"compress": "a shorter prompt would not make it fit"})
            return False
        return await self._fitting.compress(call, room, under_pressure=True)

    async def _reserve_again(self, call: Call, climb: _ClimbState, rung: Rung | None) -> None:
        is_first = climb.decision is None
        climb.decision = await self._fitting.try_reserve(call, climb.demand)
        refused = climb.refused
        if refused is None:
            if not is_first:
                call.decisions.append({"rung": rung, "result": "fits"})
            return
        if is_first:
            self._note_skipped(call)
        call.decisions.append({"rung": rung or "whole"} | _refusal_facts(refused))

    def _demand_of(self, call: Call, climb: _ClimbState) -> Demand:
        demand = self._fitting.demand(call)
        return self._clamped(call, demand) if climb.is_clamped else demand

    def _clamped(self, call: Call, demand: Demand) -> Demand:
        return replace(demand, output_tokens_min=self._shortest_answer_tokens(call, demand))

    def _shortest_answer_tokens(self, call: Call, demand: Demand) -> int:
        return min(self._fitting.output_tokens_min(call), demand.output_tokens_max)

    def _prompt_tokens_target(self, call: Call, climb: _ClimbState, refused: Refused) -> int | None:
        """The prompt size to aim at, in tokens; None if no prompt would be short enough.

        Prefer to leave room for the answer that the caller asked for. If that leaves no room for a prompt, or the caller names no
        length, the answer will have to be clamped: then leave room for the usual answer, or else for the shortest useful one.
        """
        demand = climb.demand
        answer_lengths = [demand.output_tokens_max]
        if Rung.CLAMP in call.chain.ladder.tried and not self.skip_reason(call, Rung.CLAMP):
            shortest = self._shortest_answer_tokens(call, demand)
            usual = min(self._planner.output_tokens_expected(call), demand.output_tokens_max)
            answer_lengths = [max(usual, shortest), shortest]
            if climb.is_clamped:
                answer_lengths = [shortest]
            elif call.request.output_tokens_max is not None:
                answer_lengths.insert(0, demand.output_tokens_max)
        rooms = (prompt_room(refused, demand, answer_length) for answer_length in answer_lengths)
        room = next((room for room in rooms if room > 0), None)
        # The demand includes the tokens of images and sounds, which compression cannot shorten.
        return None if room is None else max(1, room - call.request.media_tokens)

    async def _wait(self, call: Call, climb: _ClimbState, refused: Refused) -> None:
        """Hold the call while only sibling reservations stand in its way. `wait_seconds` bounds all of its waits together."""
        waited_before_ms = climb.waited_ms
        decision: Decision = refused
        while (
            isinstance(decision, Refused) and decision.reason is Refusal.BUSY and climb.waited_ms < call.chain.wait_ms
        ):
            await self._sleep(WAIT_STEP_MS / 1000)
            climb.waited_ms += WAIT_STEP_MS
            decision = await self._fitting.try_reserve(call, climb.demand)
        if climb.waited_ms == waited_before_ms:
            call.decisions.append({"rung": Rung.WAIT, "result": "changed nothing"})
            return
        climb.decision = decision
        call.actions[:] = [
            *(action for action in call.actions if action != f"wait={waited_before_ms}ms"),
            f"wait={climb.waited_ms}ms",
        ]
        facts = _refusal_facts(decision) if isinstance(decision, Refused) else {"result": "fits"}
        call.decisions.append({"rung": Rung.WAIT} | facts)

    def _note_skipped(self, call: Call) -> None:
        """Record why rungs are skipped. Only for calls that did not fit; the others never need their ladder."""
        for rung in call.chain.ladder.tried:
            skip_reason = self.skip_reason(call, rung)
            if skip_reason:
                call.decisions.append({"rung": rung, "result": "not tried", "why": skip_reason})


def _attempt(rung: Rung, refused: Refused | None, model: str) -> _Attempt:
    """Clamping is tried once, whatever is short. Routing and compressing may be tried again for each new model: there may be
    an even cheaper one, and a prompt short enough for this one."""
    if refused is None or rung is Rung.CLAMP:
        return rung, "", None, ""
    return rung, refused.account, refused.unit, "" if rung is Rung.WAIT else model


def _refusal_facts(refused: Refused) -> dict[str, Any]:
    remaining = refused.balance.remaining(refused.unit) if refused.unit is not None else None
    facts = {"account": refused.account, "unit": refused.unit, "needed": refused.needed, "remaining": remaining}
    return {"result": "does not fit", "why": refused.reason} | {k: v for k, v in facts.items() if v is not None}
