"""Alerts: once for each occasion, to a webhook on a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from gateway.alerts import Alerts
from gateway.pipeline.call import Call, Principal
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import Amount, Limit
from policies.budgets import Budget, RunLimits, Scope, Subject, Window, chain_for
from policies.reservation import Balance


def call_of(*budgets: Budget) -> Call:
    call = Call("c-1", PROTOCOLS["/v1/chat/completions"], Principal("k", "ci", "acme"), Request({}, "m"), run="r")
    call.chain = chain_for(Subject("acme", key="ci", workflow="wf", run="r", step="s"), budgets, RunLimits(), 0)
    return call


def balances(call: Call, settled_tokens: int) -> list[Balance]:
    return [Balance(link.hold.account, link.hold.limit, Amount(settled_tokens), Amount()) for link in call.chain.links]


def events(alerts: Alerts) -> list[tuple[Any, ...]]:
    return [occasion for occasion in alerts._told if occasion[0] == "budget_reached"]


@pytest.mark.parametrize(
    ("settled", "marks"), [(49, []), (50, [50]), (79, [50]), (80, [80]), (100, [100]), (130, [100])]
)
def test_the_highest_mark_that_was_reached_is_told(settled: int, marks: list[int]) -> None:
    alerts = Alerts(None, (50, 80, 100))
    call = call_of(Budget(Scope.KEY, Limit(tokens=100), window=Window.TOTAL))
    alerts.look(call, balances(call, settled))
    assert [occasion[-1] for occasion in events(alerts)] == marks


def test_each_mark_is_told_once_and_runs_only_when_they_end() -> None:
    alerts = Alerts(None, (50, 80, 100))
    call = call_of(Budget(Scope.RUN, Limit(tokens=100)), Budget(Scope.PROJECT, Limit(tokens=100), window=Window.TOTAL))
    for settled in (60, 70, 85, 100, 100):
        alerts.look(call, balances(call, settled))
    told = [(occasion[2], occasion[-1]) for occasion in events(alerts)]
    assert told == [("project/acme@total", 50), ("project/acme@total", 80), ("run/r", 100), ("project/acme@total", 100)]


async def test_a_webhook_hears_of_it_and_a_redirect_is_not_followed() -> None:
    heard: list[dict[str, Any]] = []
    elsewhere: list[str] = []
    came = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        heard.append(await request.json())
        came.set()
        return web.Response(status=307, headers={"location": "/elsewhere"})

    async def other(request: web.Request) -> web.Response:
        elsewhere.append(request.path)
        return web.Response()

    application = web.Application()
    application.router.add_post("/hook", take)
    application.router.add_post("/elsewhere", other)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    alerts = Alerts(f"http://127.0.0.1:{runner.addresses[0][1]}/hook", (50,))
    alerts.start()
    alerts.overran(call_of(), Amount(5, 7))
    await asyncio.wait_for(came.wait(), 5)
    await alerts.stop()
    await runner.cleanup()
    assert heard == [{"event": "overrun", "request": "c-1", "run": "r", "tokens": 5, "nano_usd": 7}]
    assert elsewhere == []
