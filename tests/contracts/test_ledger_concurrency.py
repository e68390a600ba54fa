"""Concurrent operations, on every engine."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from gateway.ledger.port import Ledger
from policies.amounts import Amount
from policies.reservation import Demand, Granted, Refusal, Refused
from tests.contracts.engines import LedgerUnderTest
from tests.contracts.ledger_calls import (
    MINUTE_MS,
    assert_account_tokens,
    assert_granted,
    balance,
    hold,
    request,
    tokens,
)


async def test_1000_concurrent_reserves_on_a_budget_of_100_grant_exactly_100(ledger: Ledger) -> None:
    chain = [hold("step", 1_000), hold("run", 100), hold("key")]
    answers = await asyncio.gather(*(ledger.reserve("p", request(f"c{n}", chain, 1)) for n in range(1_000)))
    kinds = Counter(type(answer) for answer in answers)
    assert kinds == {Granted: 100, Refused: 900}
    assert {answer.reason for answer in answers if isinstance(answer, Refused)} == {Refusal.BUSY}
    for account in ("step", "run", "key"):
        await assert_account_tokens(ledger, account, 0, 100)


async def test_100_concurrent_repeats_of_an_id_reserve_and_resolve_once(ledger: Ledger) -> None:
    repeated = request("c1", [hold("run", 1_000)], 10)
    answers = await asyncio.gather(*(ledger.reserve("p", repeated) for _ in range(100)))
    assert len({(assert_granted(answer).held, assert_granted(answer).deadline_ms) for answer in answers}) == 1
    await assert_account_tokens(ledger, "run", 0, 10)
    resolutions = await asyncio.gather(
        *(ledger.settle("p", "c1", tokens(n), b"{}") if n % 2 else ledger.void("p", "c1") for n in range(100))
    )
    (first,) = [resolution for resolution in resolutions if resolution.first]
    assert {(resolution.state, resolution.booked) for resolution in resolutions} == {(first.state, first.booked)}
    await assert_account_tokens(ledger, "run", first.booked.tokens, 0)


async def test_concurrent_expiry_and_settlement_book_the_usage_once(tested: LedgerUnderTest) -> None:
    ledger = tested.ledger
    for n in range(50):
        await ledger.reserve("p", request(f"c{n}", [hold(f"run:{n}", 100)], 10))
    await tested.advance(MINUTE_MS)
    settles = [ledger.settle("p", f"c{n}", tokens(4), b"{}") for n in range(50)]
    sweeps = [ledger.expire_due(7) for _ in range(8)]
    everything = [*settles, *sweeps]
    random.Random(7).shuffle(everything)
    await asyncio.gather(*everything)
    await ledger.expire_due()
    for n in range(50):
        await assert_account_tokens(ledger, f"run:{n}", 4, 0)
    entries = await ledger.outbox_read("flusher")
    assert sum((entry.amount for entry in entries), Amount()) == tokens(200)
    assert len({entry.id for entry in entries}) == len(entries)


@pytest.mark.parametrize("seed", range(3))
async def test_200_interleaved_calls_never_exceed_the_limit_and_sum_exactly(ledger: Ledger, seed: int) -> None:
    """Reserve, extend, settle and void of 200 calls, interleaved as they come: I1 for every answer, sums exact at the end."""
    rng = random.Random(seed)
    chain = [hold("step", 700), hold("run", 900)]
    limits = {"step": 700, "run": 900}
    booked = 0

    async def call(name: str) -> None:
        nonlocal booked
        most = rng.randrange(1, 80)
        answer = await ledger.reserve("p", request(name, chain, Demand(0, most, 1, requests=0)))
        if isinstance(answer, Refused):
            return
        if rng.random() < 0.5:
            extended = await ledger.extend("p", name, chain, Demand(0, 20, 1, requests=0))
            answer = extended if isinstance(extended, Granted) else answer
        for account_balance in answer.balances:
            assert account_balance.settled.tokens + account_balance.reserved.tokens <= limits[account_balance.account]
        if rng.random() < 0.3:
            await ledger.void("p", name)
        else:
            used = rng.randrange(answer.held.tokens + 1)
            resolutions = await ledger.settle("p", name, tokens(used), b"{}")
            booked += resolutions.booked.tokens

    await asyncio.gather(*(call(f"c{n}") for n in range(200)))
    account_balance = await balance(ledger, "run")
    assert (account_balance.settled.tokens, account_balance.reserved.tokens) == (booked, 0)
    assert 0 < booked <= 700
