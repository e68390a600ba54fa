"""Intents, allocations, compression and routing of tagged calls. It never fails a call: an error inside yields no plan."""

from __future__ import annotations

import structlog

from gateway.control import Snapshot
from gateway.pipeline.call import Call
from policies.budgets import Rung, RunLimits
from policies.reservation import Refused

_log = structlog.get_logger(__name__)


class Orchestration:
    async def plan(self, call: Call, snapshot: Snapshot) -> RunLimits:
        return RunLimits(tightened=call.tags.budget)

    def offers(self, call: Call, rung: Rung) -> bool:
        return False

    async def compress(self, call: Call, needed_tokens: int) -> bool:
        return False

    async def reroute(self, call: Call, refused: Refused) -> bool:
        return False
