"""Shorthand for what a call asks of a ledger."""

from __future__ import annotations

from gateway.ledger.port import Ledger, Reserve
from policies.amounts import UNLIMITED, Amount, Limit
from policies.reservation import Balance, Demand, Granted, Hold, OnLost, Refused

MINUTE_MS = 60_000
TOLERANCE_MS = 20_000  # how far a server's clock may have run on during a test


def hold(account: str, tokens: int | None = None, **options: object) -> Hold:
    """A hold limited in tokens only, unless `limit` says otherwise."""
    limit = options.pop("limit", UNLIMITED if tokens is None else Limit(tokens=tokens))
    return Hold(account, limit, **options)  # type: ignore[arg-type]


def demand(tokens: int, at_least: int | None = None) -> Demand:
    """Only output tokens: all of them, unless `at_least` is given."""
    return Demand(0, tokens, tokens if at_least is None else at_least, requests=0)


def request(
    name: str,
    holds: list[Hold],
    needed: Demand | int,
    *,
    ttl_ms: int = MINUTE_MS,
    on_lost: OnLost = OnLost.CHARGE,
    draft: bytes = b'{"model":"mock"}',
) -> Reserve:
    requested = demand(needed) if isinstance(needed, int) else needed
    return Reserve(name, "gateway-1", tuple(holds), requested, ttl_ms, draft, on_lost)


def assert_granted(decision: Granted | Refused) -> Granted:
    assert isinstance(decision, Granted), decision
    return decision


def assert_refused(decision: Granted | Refused) -> Refused:
    assert isinstance(decision, Refused), decision
    return decision


def tokens(count: int) -> Amount:
    return Amount(tokens=count)


async def balance(ledger: Ledger, account: str, project: str = "p") -> Balance:
    (account_balance,) = await ledger.balances(project, [account])
    return account_balance


async def assert_account_tokens(ledger: Ledger, account: str, settled: int, reserved: int) -> None:
    account_balance = await balance(ledger, account)
    assert (account_balance.settled.tokens, account_balance.reserved.tokens) == (settled, reserved)
