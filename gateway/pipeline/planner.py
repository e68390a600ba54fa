"""The orchestration, as admission sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.control import Snapshot
from gateway.pipeline.call import Call
from policies.budgets import RunLimits
from policies.pressure import Rung
from policies.reservation import Refused


class Planner(Protocol):
    """It never fails a call: what goes wrong inside yields no plan."""

    async def plan(self, call: Call, snapshot: Snapshot) -> RunLimits: ...

    async def replan(self, call: Call, refused: Refused, snapshot: Snapshot) -> RunLimits | None:
        """Other limits for a call that was refused, where its run has got a larger budget since it was planned. None: there are none."""

    def model_for(self, call: Call, snapshot: Snapshot) -> str:
        """The public name of the model to ask. Raises `BadRequest` for an `auto` that no model can take."""

    async def compress(self, call: Call, needed_tokens: int | None, *, pressed: bool = False) -> bool:
        """Make the prompt smaller, so that it needs at most `needed_tokens` if that can be (None: by the settings' ratio).
        `pressed`: the call does not fit as it is. False: nothing was changed."""

    def why_not(self, call: Call, rung: Rung) -> str:
        """Why a call may not be compressed or rerouted at all; empty where it may be."""

    async def reroute(self, call: Call, refused: Refused | None) -> bool:
        """Choose a cheaper model for the call. False: there is none that will do. None: nothing stands in its way yet."""

    def output_tokens_least(self, call: Call) -> int:
        """The least answer that is of use for what the call is to make."""

    def output_tokens_usual(self, call: Call) -> int:
        """How long answers to such a call usually are."""

    def refused(self, call: Call, refused: Refused) -> None:
        """The call fits nowhere and will be refused."""

    def observed(self, call: Call, accounts: Sequence[str]) -> None:
        """The call goes on, though these observed accounts would have refused it."""
