"""Reads the balances of many accounts in parts, so that calls get their turn in between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from gateway.ledger.redis_batches import batched
from policies.reservation import Balance

_AT_ONCE: Final = 200


class Readable(Protocol):
    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]: ...


async def balances_by_account(ledger: Readable, project: str, accounts: Iterable[str]) -> dict[str, Balance]:
    """Raises LedgerUnavailable."""
    found: dict[str, Balance] = {}
    for some in batched(accounts, _AT_ONCE):
        found |= zip(some, await ledger.balances(project, some), strict=True)
    return found
