"""A stream and its hold: checked often near the limit, rarely far from it, and extended before it is used up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import LedgerUnavailable, Reserve
from gateway.pipeline.call import Call, Principal
from gateway.pipeline.hold import HoldKeeper
from gateway.pipeline.reserving import Reserving
from gateway.runs.registry import RunRegistry
from gateway.tags import Tags
from gateway.upstream.port import Deployment
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import Limit
from policies.budgets import Chain, HoldKind, Link, Scope, Window
from policies.pricing import price_from_map
from policies.reservation import Decision, Demand, Granted, Hold, OnLost
from policies.tokens import PromptCount

FAR = 16_384


async def held(
    ledger: MemoryLedger,
    limit: int | None,
    output: int,
    *,
    kind: HoldKind = HoldKind.WORST_CASE,
    cap: int | None = None,
) -> Call:
    """A call with a reservation of `output` tokens in `ledger`, on a run limited to `limit` tokens."""
    link = Link(Hold("run/r", Limit(limit)), Scope.RUN, "r", Window.RUN)
    call = Call(
        id="id-1",
        protocol=PROTOCOLS["/v1/chat/completions"],
        principal=Principal("", "local", "default"),
        request=Request(body={}, model="m", output_tokens_max=cap),
        tags=Tags("w", "r"),
        run="r",
        chain=Chain((link,), hold=kind),
        deployment=Deployment("m/0", "m", "openai", "gpt-4o", "auto", {}, {}),
    )
    demand = Demand(10, output, output)
    decision: Decision = await ledger.reserve(
        "default", Reserve(call.id, "me", call.chain.holds, demand, 60_000, b"{}", OnLost.CHARGE)
    )
    assert isinstance(decision, Granted)
    call.grant = decision
    return call


def reserving(ledger: MemoryLedger) -> Reserving:
    runs = RunRegistry(ledger, silence_s=1, new_id=lambda: "new")
    return Reserving(ledger, local=None, runs=runs, is_outbox_full=lambda: False)


def sizes(keeper: HoldKeeper, size: int) -> list[int]:
    return [len(part) for part in keeper.parts(b"x" * size)]


async def test_pieces_far_from_the_limit_are_not_split() -> None:
    keeper = HoldKeeper(await held(MemoryLedger(), 100_000, 50_000), reserving(MemoryLedger()), slice_tokens=512)
    assert sizes(keeper, FAR) == [FAR]
    assert not keeper.is_due(FAR - 1)
    assert keeper.is_due(1)


async def test_pieces_near_the_limit_are_split() -> None:
    keeper = HoldKeeper(await held(MemoryLedger(), 1000, 100), reserving(MemoryLedger()), slice_tokens=512)
    assert sizes(keeper, 1000) == [400, 400, 200], "four bytes per held token"
    assert b"".join(keeper.parts(b"abc" * 999)) == b"abc" * 999


async def test_used_up_hold_is_extended_while_the_budget_has_room() -> None:
    ledger = MemoryLedger()
    call = await held(ledger, 1000, 100)
    keeper = HoldKeeper(call, reserving(ledger), slice_tokens=64)
    assert await keeper.covers(100)
    assert await keeper.covers(101)
    assert keeper.allowed_tokens == 164
    assert await keeper.covers(990)
    assert not await keeper.covers(991), "ten of the thousand tokens are the prompt"
    assert keeper.allowed_tokens == 990
    (balance,) = await ledger.balances("default", ["run/r"])
    assert (balance.settled.tokens, balance.reserved.tokens) == (0, 1000)


async def test_budget_that_only_the_ledger_knows_binds_too() -> None:
    ledger = MemoryLedger()
    await ledger.set_override("default", "run/r", Limit(1000))
    keeper = HoldKeeper(await held(ledger, None, 100), reserving(ledger), slice_tokens=64)
    assert await keeper.covers(990)
    assert not await keeper.covers(991), "ten of the thousand tokens are the prompt"


PRIORITY = {"input_cost_per_token_priority": 2e-6, "output_cost_per_token_priority": 4e-6}
SPOKEN = {"input_cost_per_audio_token": 2e-5, "output_cost_per_audio_token": 8e-5}


@pytest.mark.parametrize(
    ("prices", "request_fields", "nano_usd"),
    [
        ({}, {}, 2_000),
        (PRIORITY, {"body": {"service_tier": "priority"}}, 4_000),
        (PRIORITY, {}, 2_000),
        (SPOKEN, {"has_audio": True}, 80_000),
        (SPOKEN, {}, 2_000),
    ],
)
async def test_extension_is_priced_by_service_tier_and_audio(
    prices: dict[str, float], request_fields: dict[str, Any], nano_usd: int
) -> None:
    ledger = MemoryLedger()
    call = await held(ledger, 1000, 100)
    call.request = replace(call.request, **request_fields)
    call.price = price_from_map({"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, **prices})
    call.count = PromptCount(10, 10, exact=True)
    assert await HoldKeeper(call, reserving(ledger), slice_tokens=64).covers(101)
    (balance,) = await ledger.balances("default", ["run/r"])
    assert balance.reserved.nano_usd == 64 * nano_usd


async def test_slices_are_extended_ahead_up_to_the_clients_cap() -> None:
    ledger = MemoryLedger()
    call = await held(ledger, 100_000, 64, kind=HoldKind.SLICES, cap=100)
    keeper = HoldKeeper(call, reserving(ledger), slice_tokens=64)
    assert await keeper.covers(10)
    assert keeper.allowed_tokens == 64
    assert await keeper.covers(60)
    assert keeper.allowed_tokens == 100
    assert await keeper.covers(100)
    assert not await keeper.covers(101)


async def test_slice_refused_ahead_of_need_is_asked_for_again_before_the_answer_is_cut() -> None:
    ledger = MemoryLedger()
    keeper = HoldKeeper(await held(ledger, 200, 64, kind=HoldKind.SLICES), reserving(ledger), slice_tokens=64)
    other_reserve = Reserve("other", "me", (Hold("run/r", Limit(200)),), Demand(126, 0, 0), 60_000, b"{}")
    assert isinstance(await ledger.reserve("default", other_reserve), Granted)
    assert await keeper.covers(60), "the next slice is refused, but this one is not used up"
    assert keeper.allowed_tokens == 64
    await ledger.void("default", "other")
    assert await keeper.covers(65)
    assert keeper.allowed_tokens == 128


async def test_extension_smaller_than_a_slice_is_used() -> None:
    ledger = MemoryLedger()
    keeper = HoldKeeper(await held(ledger, 100, 64, kind=HoldKind.SLICES), reserving(ledger), slice_tokens=64)
    assert await keeper.covers(80)
    assert keeper.allowed_tokens == 90


@pytest.mark.parametrize("limit", [None, 1000])
async def test_answer_without_an_enforced_limit_is_never_cut(limit: int | None) -> None:
    ledger = MemoryLedger()
    call = await held(ledger, limit, 100)
    if limit is not None:
        link = call.chain.links[0]
        call.chain = replace(call.chain, links=(replace(link, hold=replace(link.hold, enforce=False)),))
    keeper = HoldKeeper(call, reserving(ledger), slice_tokens=64)
    assert await keeper.covers(10**6)
    assert sizes(keeper, FAR) == [FAR]


async def test_unreachable_ledger_ends_the_answer_at_the_held_tokens() -> None:
    class Away(MemoryLedger):
        async def extend(self, *_: object) -> Decision:
            raise LedgerUnavailable("away")

    ledger = MemoryLedger()
    keeper = HoldKeeper(await held(ledger, 1000, 100), reserving(Away()), slice_tokens=64)
    assert await keeper.covers(100)
    assert not await keeper.covers(101)


async def test_hold_covers_the_tokens_of_all_choices() -> None:
    ledger = MemoryLedger()
    call = await held(ledger, 10_000, 100)
    call.request.choices = 3
    keeper = HoldKeeper(call, reserving(ledger), slice_tokens=64)
    assert keeper.allowed_tokens == 300


async def test_extension_is_divided_among_the_choices_and_is_no_further_request() -> None:
    ledger = MemoryLedger()
    call = await held(ledger, 10_000, 100)
    call.request.choices = 3
    keeper = HoldKeeper(call, reserving(ledger), slice_tokens=64)
    assert await keeper.covers(301)
    assert keeper.allowed_tokens == 300 + 3 * 22, "64 tokens, rounded up to the same number for each choice"
    (balance,) = await ledger.balances("default", ["run/r"])
    assert (balance.reserved.tokens, balance.reserved.requests) == (10 + 100 + 3 * 22, 1)
