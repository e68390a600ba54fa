"""What the pipeline needs of its surroundings: the orchestration, the heartbeat, and the recorder of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.control import Snapshot
from gateway.ledger.port import OutboxEntry
from gateway.pipeline.call import Call
from gateway.upstream.port import SendObserver
from policies.budgets import RunLimits
from policies.pressure import Rung
from policies.reservation import Refused


class Planner(Protocol):
    """Never fails a call: if something goes wrong inside, there is simply no plan."""

    async def plan(self, call: Call, snapshot: Snapshot) -> RunLimits: ...

    async def replan(self, call: Call, refused: Refused, snapshot: Snapshot) -> RunLimits | None:
        """New limits for a refused call, if its run's budget was raised after the run was planned, or if it is the first call of a
        step to which a tight run left too little; otherwise None."""

    def model_for(self, call: Call, snapshot: Snapshot) -> str:
        """The public name of the model to call. Raises `BadRequest` for an `auto` that no model can serve."""

    async def compress(self, call: Call, needed_tokens: int | None, *, under_pressure: bool = False) -> bool:
        """Shorten the prompt to `needed_tokens` if possible (None: by the configured ratio). Returns whether it was changed.

        `under_pressure`: the call does not fit as it is.
        """

    def skip_reason(self, call: Call, rung: Rung) -> str:
        """Why a call may not be compressed or rerouted at all; empty if it may be."""

    async def reroute(self, call: Call, refused: Refused | None) -> bool:
        """Choose a cheaper model for the call. False: there is no suitable one. `refused` is None before any refusal."""

    def output_tokens_min_useful(self, call: Call) -> int:
        """The shortest useful answer to such a call."""

    def output_tokens_expected(self, call: Call) -> int:
        """The usual length of answers to such a call."""

    def refused(self, call: Call, refused: Refused) -> None:
        """Take note that the call is about to be refused."""

    def observed(self, call: Call, accounts: Sequence[str]) -> None:
        """Take note that the call proceeds although these observed accounts would have refused it."""


class Judge(Protocol):
    """Judges the quality of whole answers. Never fails a call."""

    def is_judged(self, call: Call) -> bool: ...

    def judge(self, call: Call, body: bytes, *, streamed: bool = False) -> None: ...


class InFlightCalls(Protocol):
    """The heartbeat, which renews the holds of calls in flight."""

    def sent(self, call: Call) -> SendObserver | None:
        """From now on the call's hold is renewed. None: nothing is held, or it does not matter whether the request has left."""

    def progressed(self, call: Call, output_tokens: int) -> None: ...

    def finished(self, call: Call) -> None: ...


class Recorder(Protocol):
    """Takes events that are not tied to a reservation, and writes them in batches."""

    def record(self, project: str, entry: OutboxEntry) -> None: ...
