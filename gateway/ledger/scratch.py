"""A ledger to try things on: the twin, with the accounts of another one as they stand. What happens here stays here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import Ledger, Reserve
from policies.amounts import UNLIMITED, Limit
from policies.reservation import Account, Balance, Decision, Hold


class ScratchLedger(MemoryLedger):
    """Accounts are copied when they are first asked for. `overrides` are those that operators set, by account: the copied
    ledger tells them as one with what callers have tightened. Raises `LedgerUnavailable` as that one does."""

    def __init__(self, ledger: Ledger, overrides: Mapping[str, Limit]) -> None:
        super().__init__()
        self._ledger = ledger
        self._overrides = overrides
        self._copied: set[tuple[str, str]] = set()

    async def now_ms(self) -> int:
        return await self._ledger.now_ms()

    async def reserve(self, project: str, request: Reserve) -> Decision:
        await self._copy(project, [hold.account for hold in request.holds])
        return await super().reserve(project, request)

    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]:
        await self._copy(project, accounts)
        return await super().balances(project, accounts)

    async def _copy(self, project: str, accounts: Sequence[str]) -> None:
        missing = [name for name in accounts if (project, name) not in self._copied]
        if not missing:
            return
        now_ms = self._clock.now_ms()
        for balance in await self._ledger.balances(project, missing):
            account = Account(
                settled=balance.settled,
                reserved=balance.reserved,
                override=self._overrides.get(balance.account, UNLIMITED),
                tightened=balance.limit,
                gate=balance.gate,
                used_ms=now_ms,
            )
            self._book.shelf.put_account(project, balance.account, account)
            self._copied.add((project, balance.account))

    def in_force(self, project: str, hold: Hold, balance: Balance) -> Balance:
        """The balance of a copied account with the limit that counts for a call with this hold."""
        account = self._book.shelf.account(project, hold.account) or Account()
        return replace(balance, limit=account.effective_limit(hold.limit, hold.tighten))
