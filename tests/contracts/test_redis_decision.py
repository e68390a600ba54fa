"""The decision exists twice, in policies/reservation.py and in lua/fit.lua: both have to decide alike, up to 2^53."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.ledger.port import LedgerError
from gateway.ledger.redis import RedisLedger
from policies.amounts import AMOUNT_MAX, UNITS, Amount, Limit
from policies.book import Book, DictStorage
from policies.reservation import Account, Decision, Demand, Gate, Granted, Hold, Reserve
from tests.contracts import redis_engines
from tests.redis_server import RedisServer

NOW_MS = 1_750_000_000_000

# Round numbers, small ones that meet each other, and those at the edge of what a double carries exactly.
counts = st.one_of(
    st.integers(0, 20),
    st.integers(0, 10_000),
    st.integers(AMOUNT_MAX - 20, AMOUNT_MAX),
    st.integers(2**52 - 3, 2**52 + 3),
    st.integers(0, AMOUNT_MAX),
)
small = st.integers(0, 50)
amounts = st.builds(Amount, counts, counts, small)
limits = st.builds(Limit, st.none() | counts, st.none() | counts, st.none() | small)
few_limits = st.sampled_from([Limit()] * 4) | limits
gates = st.sampled_from([Gate.OPEN] * 19 + [Gate.PAUSED])
holds = st.tuples(st.just(Limit()) | limits, few_limits, st.sampled_from([True] * 4 + [False]))
nothing = st.just(Amount())


@st.composite
def accounts(draw: st.DrawFn) -> Account:
    settled, reserved = draw(nothing | amounts), draw(nothing | amounts)
    # No account gets beyond 2^53: a reservation that would is refused, and a settlement stops there.
    held = Amount(*(min(reserved.of(unit), AMOUNT_MAX - settled.of(unit)) for unit in UNITS))
    return Account(settled, held, draw(few_limits), draw(few_limits), draw(gates))


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """Half of them have a small minimum: these can be granted less than they ask for."""
    size = small if draw(st.booleans()) else counts
    least, price, choices = draw(size), draw(st.sampled_from([0, 1, 7, 30_000])), draw(st.integers(1, 5))
    prompt_tokens, prompt_nano_usd = draw(size), draw(size)
    most = max(least, draw(counts))
    dearest = AMOUNT_MAX // (max(1, price) * choices)
    room = min(
        dearest, (AMOUNT_MAX - prompt_tokens) // choices, (AMOUNT_MAX - prompt_nano_usd) // max(1, price * choices)
    )
    return Demand(prompt_tokens, min(most, room), min(least, room), prompt_nano_usd, price, choices)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    try:
        yield redis_engines.server()
    except FileNotFoundError as lacking:
        pytest.skip(str(lacking))


def text(amount: Amount) -> str:
    return f"{amount.tokens} {amount.nano_usd} {amount.requests}"


def limit_text(limit: Limit) -> str:
    return " ".join("-" if (most := limit.of(unit)) is None else str(most) for unit in UNITS)


def fields(account: Account) -> list[str]:
    """An account as its hash in Redis."""
    values = {
        "settled": text(account.settled),
        "reserved": text(account.reserved),
        "tightened": limit_text(account.tightened),
        "override": limit_text(account.override),
        "gate": account.gate.value,
        "keep_ms": str(account.keep_ms),
        "used_ms": "0",
    }
    return [word for pair in values.items() for word in pair]


async def decide_in_redis(server: RedisServer, chain: dict[str, Account], request: Reserve) -> Decision | str:
    ledger = RedisLedger(server.url, deadline_ms=redis_engines.LONG_DEADLINE_MS, clock_ms=lambda: NOW_MS)
    try:
        await ledger.balances("p", ["none"])
        for name, account in chain.items():
            await ledger._topology.call("p", "HSET", f"farebox:{{p}}:account:{name}", *fields(account))
        return await ledger.reserve("p", request)
    except LedgerError:
        return "beyond 2^53"
    finally:
        await ledger.close()


def decide_in_policies(chain: dict[str, Account], request: Reserve) -> Decision | str:
    storage = DictStorage()
    storage.accounts = {("p", name): account for name, account in chain.items()}
    try:
        return Book(storage).reserve("p", request, NOW_MS)
    except ValueError:
        return "beyond 2^53"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(demand=demands(), chain=st.lists(st.tuples(accounts(), holds), min_size=1, max_size=4))
def test_redis_and_policies_decide_any_reserve_identically(
    server: RedisServer, demand: Demand, chain: list[tuple[Account, tuple[Limit, Limit, bool]]]
) -> None:
    standing = {f"a{index}": account for index, (account, _) in enumerate(chain)}
    request_holds = tuple(Hold(f"a{index}", *hold) for index, (_, hold) in enumerate(chain))
    request = Reserve("c1", "gateway-1", request_holds, demand, 60_000, b"{}")
    expected = decide_in_policies(standing, request)
    server.command("FLUSHALL")
    decision = asyncio.run(decide_in_redis(server, standing, request))
    assert decision == expected


@pytest.mark.parametrize(
    ("free", "price", "choices", "output_tokens"),
    [
        # free ÷ (price × choices) in doubles rounds up to the next integer in each of these.
        (2 * (2**52 - 1) + 1, 2, 1, 2**52 - 1),
        (3 * 3002399751580329 + 2, 3, 1, 3002399751580329),
        (AMOUNT_MAX, 2, 1, 2**52 - 1),
        (AMOUNT_MAX, 1, 2, 2**52 - 1),
        (AMOUNT_MAX - 1, 7, 3, (AMOUNT_MAX - 1) // 21),
        (20, 7, 3, 0),
        (21, 7, 3, 1),
    ],
)
def test_redis_rounds_the_room_for_output_down(
    server: RedisServer, free: int, price: int, choices: int, output_tokens: int
) -> None:
    most = AMOUNT_MAX // (price * choices)
    demand = Demand(0, most, 0, 0, price, choices, requests=0)
    request = Reserve("c1", "g", (Hold("a0", Limit(nano_usd=free)),), demand, 60_000, b"{}")
    server.command("FLUSHALL")
    decision = asyncio.run(decide_in_redis(server, {}, request))
    assert isinstance(decision, Granted)
    assert decision.output_tokens == output_tokens
    assert decision == decide_in_policies({}, request)
