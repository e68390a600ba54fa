"""A ledger for dry runs: an in-memory twin that starts with another ledger's accounts, and never writes to that one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import Ledger, Reserve
from policies.amounts import UNLIMITED, Limit
from policies.reservation import Account, Balance, Decision, Hold


class DryRunLedger(MemoryLedger):
    """Accounts are copied on first use. `overrides` are the operators' overrides by account, because the original's balances
    combine them with what callers have tightened. Raises `LedgerUnavailable` like the original."""

    def __init__(self, ledger: Ledger, overrides: Mapping[str, Limit]) -> None:
        super().__init__()
        self._ledger = ledger
        self._overrides = overrides
        self._copied: set[tuple[str, str]] = set()

    async def now_ms(self) -> int:
        return await self._ledger.now_ms()

    async def reserve(self, project: str, request: Reserve) -> Decision:
        await self._copy_accounts(project, [hold.account for hold in request.holds])
        return await super().reserve(project, request)

    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]:
        await self._copy_accounts(project, accounts)
        return await super().balances(project, accounts)

    async def _copy_accounts(self, project: str, accounts: Sequence[str]) -> None:
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
            self._book.storage.put_account(project, balance.account, account)
            self._copied.add((project, balance.account))

    def with_effective_limit(self, project: str, hold: Hold, balance: Balance) -> Balance:
        """The balance of a copied account, with the limit that applies to a call with this hold."""
        account = self._book.storage.account(project, hold.account) or Account()
        return replace(balance, limit=account.effective_limit(hold.limit, hold.tighten))
