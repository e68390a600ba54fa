"""Reserves what a call may spend: in the ledger or, while that is unreachable and every budget allows it, from a local allowance."""

from __future__ import annotations

from collections.abc import Callable

from gateway.errors import LedgerOutage, OutboxFull
from gateway.ledger.port import Ledger, LedgerUnavailable, LocalGrants, Reserve
from gateway.pipeline.call import Call
from gateway.runs.registry import RunRegistry
from policies.reservation import Decision, Demand, Granted


class Reserving:
    """`local` is None for an embedded ledger: while its disk fails, nothing could be kept beside it either.

    `is_outbox_full` returns True if no more usage events can be stored. Calls with enforced budgets are refused then, because
    that is better than losing their records.
    """

    def __init__(
        self, ledger: Ledger, *, local: LocalGrants | None, runs: RunRegistry, is_outbox_full: Callable[[], bool]
    ) -> None:
        self._ledger = ledger
        self._local = local
        self._runs = runs
        self._is_outbox_full = is_outbox_full

    async def reserve(self, call: Call, request: Reserve) -> Decision:
        """Raises `OutboxFull`, and `LedgerOutage` if the call may not proceed without the ledger."""
        if call.chain.is_enforced and self._is_outbox_full():
            raise OutboxFull
        project = call.principal.project
        try:
            decision = await self._ledger.reserve(project, request)
        except LedgerUnavailable:
            if self._local is None or not self._may_use_allowance(call):
                raise LedgerOutage from None
        else:
            # Not for local grants: their smaller limits do not mean that someone tightened the run.
            if isinstance(decision, Granted):
                self._runs.note_granted(call, decision)
            return decision
        try:
            return await self._local.reserve_locally(project, request)
        except LedgerUnavailable:
            raise LedgerOutage(
                "The budget ledger cannot be reached, and what may be spent without it has been spent."
            ) from None

    async def extend(self, call: Call, extra: Demand) -> Granted | None:
        """Extend the call's hold and return it. None if the extension does not fit or the ledger is unreachable."""
        project, holds = call.principal.project, call.chain.holds
        try:
            decision = await self._ledger.extend(project, call.id, holds, extra)
        except LedgerUnavailable:
            if self._local is None or not self._may_use_allowance(call):
                return None
            try:
                decision = await self._local.extend_locally(project, call.id, holds, extra)
            except LedgerUnavailable:
                return None
        if not isinstance(decision, Granted):
            return None
        call.grant = decision
        return decision

    def _may_use_allowance(self, call: Call) -> bool:
        return call.chain.survives_outage and not self._runs.is_tightened(call)
