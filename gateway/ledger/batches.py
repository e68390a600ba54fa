"""Works through many items in batches, so that the ledger serves other callers in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from itertools import islice
from typing import Final, TypeVar

from gateway.ledger.port import Ledger
from policies.reservation import Balance

T = TypeVar("T")

# How many commands of one job are in flight at once.
BATCH_SIZE: Final = 64
_ACCOUNTS_BATCH_SIZE: Final = 200


def batched(items: Iterable[T], size: int = BATCH_SIZE) -> Iterable[list[T]]:
    """Lists of at most `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


async def gather_all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all calls. If one fails, its error is raised after all have ended, so that nothing goes on unseen."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    results: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


async def balances_by_account(ledger: Ledger, project: str, accounts: Iterable[str]) -> dict[str, Balance]:
    """Raises LedgerUnavailable."""
    balances: dict[str, Balance] = {}
    for batch in batched(accounts, _ACCOUNTS_BATCH_SIZE):
        balances |= zip(batch, await ledger.balances(project, batch), strict=True)
    return balances
