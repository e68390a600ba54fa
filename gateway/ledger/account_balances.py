"""Reads the balances of many accounts in parts, so that calls get their turn in between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from gateway.ledger.redis_batches import batched
from policies.reservation import Balance

_BATCH_SIZE: Final = 200


class BalanceReader(Protocol):
    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]: ...


async def balances_by_account(ledger: BalanceReader, project: str, accounts: Iterable[str]) -> dict[str, Balance]:
    """Raises LedgerUnavailable."""
    balances: dict[str, Balance] = {}
    for batch in batched(accounts, _BATCH_SIZE):
        balances |= zip(batch, await ledger.balances(project, batch), strict=True)
    return balances
