"""Rungs that are taken early: a call waits while others hold the last share of a budget."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import Reserve
from gateway.pipeline.call import Call, Principal
from gateway.pipeline.early_rungs import EarlyRungs
from gateway.tags import Tags
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import Limit
from policies.budgets import Chain, Link, Scope, Window
from policies.pressure import parse_ladder
from policies.reservation import Demand, Hold


@pytest.mark.parametrize(
    ("freed_after_ms", "actions"),
    [(0, []), (300, ["wait=300ms"]), (10_000, ["wait=700ms"])],
    ids=["nothing-is-held", "until-the-others-are-done", "no-longer-than-the-budget-says"],
)
async def test_call_waits_while_others_hold_what_is_left(freed_after_ms: int, actions: list[str]) -> None:
    ledger, hold, slept_ms = MemoryLedger(), Hold("run/r", Limit(tokens=1000)), 0
    if freed_after_ms:
        await ledger.reserve("p", Reserve("sibling", "me", (hold,), Demand(0, 900, 900), 60_000, b""))

    async def sleep(seconds: float) -> None:
        nonlocal slept_ms
        slept_ms += round(seconds * 1000)
        if slept_ms == freed_after_ms:
            await ledger.void("p", "sibling")

    link = Link(hold, Scope.RUN, "r", Window.RUN)
    chain = Chain((link,), ladder=parse_ladder([{"wait": 0.5}, "refuse"]), wait_ms=700)
    protocol, request = PROTOCOLS["/v1/chat/completions"], Request(body={}, model="m")
    call = Call("c1", protocol, Principal("", "local", "p"), request, Tags("w", "r"), run="r", chain=chain)
    unused = cast(Any, None)
    early = EarlyRungs(ledger=ledger, planner=unused, fitting=unused, skip_reason=lambda call, rung: "", sleep=sleep)
    await early.take(call)
    assert call.actions == actions
