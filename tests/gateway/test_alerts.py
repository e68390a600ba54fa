"""Alerts: sent once per occasion, to a webhook on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from aiohttp import web

from gateway.config.schema import AlertConfig
from gateway.ids import process_name
from gateway.observability import alerts as alerts_module
from gateway.observability import webhook
from gateway.observability.alerts import Alerts
from gateway.observability.gauges import Gauges
from gateway.observability.telemetry import Telemetry
from gateway.pipeline.call import Call, Principal
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import Amount, Limit
from policies.budgets import Budget, RunLimits, Scope, Subject, Window, chain_for
from policies.reservation import Balance
from tests.api_client import close_api, make_api
from tests.ports import free_port
from tests.waiting import eventually


def call_of(*budgets: Budget) -> Call:
    call = Call("c-1", PROTOCOLS["/v1/chat/completions"], Principal("k", "ci", "acme"), Request({}, "m"), run="r")
    call.chain = chain_for(Subject("acme", key="ci", workflow="wf", run="r", step="s"), budgets, RunLimits(), 0)
    return call


def balances(call: Call, settled_tokens: int) -> list[Balance]:
    return [Balance(link.hold.account, link.hold.limit, Amount(settled_tokens), Amount()) for link in call.chain.links]


def events(alerts: Alerts) -> list[tuple[Any, ...]]:
    return [occasion for occasion in alerts._reported if occasion[0] == "budget_reached"]


@asynccontextmanager
async def serving(
    routes: Mapping[str, Callable[[web.Request], Awaitable[web.Response]]], port: int = 0
) -> AsyncIterator[int]:
    """The port of a server that takes POST requests to the paths in `routes`."""
    application = web.Application()
    for path, handler in routes.items():
        application.router.add_post(path, handler)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("settled", "thresholds"), [(49, []), (50, [50]), (79, [50]), (80, [80]), (100, [100]), (130, [100])]
)
def test_only_the_highest_threshold_reached_is_alerted(settled: int, thresholds: list[int]) -> None:
    alerts = Alerts(AlertConfig())
    call = call_of(Budget(Scope.KEY, Limit(tokens=100), window=Window.TOTAL))
    alerts.check_budgets(call, balances(call, settled), Amount(settled))
    assert [occasion[-1] for occasion in events(alerts)] == thresholds


def test_each_threshold_is_alerted_once_and_for_runs_only_when_exhausted() -> None:
    alerts = Alerts(AlertConfig())
    call = call_of(Budget(Scope.RUN, Limit(tokens=100)), Budget(Scope.PROJECT, Limit(tokens=100), window=Window.TOTAL))
    for before, settled in pairwise((0, 60, 70, 85, 100, 100)):
        alerts.check_budgets(call, balances(call, settled), Amount(settled - before))
    alerted = [(occasion[2], occasion[-1]) for occasion in events(alerts)]
    assert alerted == [
        ("project/acme@total", 50),
        ("project/acme@total", 80),
        ("run/r", 100),
        ("project/acme@total", 100),
    ]


def test_raised_budget_alerts_its_thresholds_again() -> None:
    alerts = Alerts(AlertConfig())
    for limit, settled in ((100, 100), (200, 200)):
        call = call_of(Budget(Scope.KEY, Limit(tokens=limit), window=Window.TOTAL))
        alerts.check_budgets(call, balances(call, settled), Amount(settled))
    assert [(occasion[-2].tokens, occasion[-1]) for occasion in events(alerts)] == [(100, 100), (200, 100)]


async def test_alert_is_posted_to_the_webhook_and_redirects_are_not_followed() -> None:
    received: list[dict[str, Any]] = []
    elsewhere: list[str] = []
    arrived = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        received.append(await request.json())
        arrived.set()
        return web.Response(status=307, headers={"location": "/elsewhere"})

    async def other(request: web.Request) -> web.Response:
        elsewhere.append(request.path)
        return web.Response()

    async with serving({"/hook": take, "/elsewhere": other}) as port:
        url = f"http://127.0.0.1:{port}/hook"
        alerts = Alerts(AlertConfig(webhook=url, budget_percent=(50,), private_networks=True))
        alerts.start()
        alerts.overran(call_of(), Amount(5, 7))
        await asyncio.wait_for(arrived.wait(), 5)
        await alerts.stop()
    assert received == [
        {"event": "overrun", "request": "c-1", "run": "r", "tokens": 5, "nano_usd": 7, "gateway": process_name()}
    ]
    assert elsewhere == []


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[tuple[Alerts, list[dict[str, Any]]]]:
    """Alerts with a webhook that answers with these statuses, and then with 200; and what it received."""
    received: list[dict[str, Any]] = []
    left = list(statuses)

    async def take(request: web.Request) -> web.Response:
        received.append(await request.json())
        return web.Response(status=left.pop(0) if left else 200)

    async with serving({"/hook": take}) as port:
        alerts = Alerts(AlertConfig(webhook=f"http://127.0.0.1:{port}/hook", private_networks=True))
        alerts.start()
        try:
            yield alerts, received
        finally:
            await alerts.stop()


async def test_alert_is_sent_again_when_the_receiver_fails_and_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook, "_PAUSES_S", (0.01, 0.01, 0.01))
    async with receiving(500, 429, 503, 502, 400) as (alerts, received):
        with structlog.testing.capture_logs() as log:
            for number in range(3):
                alerts.report("overrun", number, number=number)
            await eventually(lambda: len(received) == 6, 10)
    assert [message["number"] for message in received] == [0, 0, 0, 0, 1, 2], "a 400 would not become better"
    failures = [(line["status"], line["retry_in_s"]) for line in log if line["event"] == "alert_not_taken"]
    assert failures == [(500, 0.01), (429, 0.01), (503, 0.01), (502, None), (400, None)]


async def test_alert_outlives_a_receiver_that_is_down_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_PAUSES_S", (0.01, 0.5, 5.0))
    port = free_port()
    alerts = Alerts(AlertConfig(webhook=f"http://127.0.0.1:{port}/hook", private_networks=True))
    alerts.start()
    with structlog.testing.capture_logs() as log:
        alerts.overran(call_of(), Amount(5, 7))
        await eventually(lambda: len([line for line in log if line["event"] == "alert_not_sent"]) == 2, 10)
    arrived = asyncio.Event()

    async def take(_: web.Request) -> web.Response:
        arrived.set()
        return web.Response()

    async with serving({"/hook": take}, port):
        await asyncio.wait_for(arrived.wait(), 10)
        await alerts.stop()


async def test_many_alerts_of_one_event_do_not_flood_the_receiver_or_bury_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with receiving() as (alerts, received):
        with structlog.testing.capture_logs() as log:
            for number in range(100):
                alerts.report("overrun", number)
            alerts.report("breaker_opened", 1)
            await eventually(lambda: len(received) == 31, 10)
            monkeypatch.setattr(alerts_module, "monotonic", lambda: monotonic() + 61)
            alerts.report("overrun", "in the next minute")
            await eventually(lambda: len(received) == 32, 10)
    assert received[30]["event"] == "breaker_opened"
    assert [message.get("withheld") for message in received] == [None] * 31 + [70]
    assert len([line for line in log if line["event"] == "overrun"]) == 101, "the log has all of them"


async def test_webhook_gets_no_secret_that_is_kept_out_of_the_log() -> None:
    """Callers choose the names of runs, and errors of engines may repeat a URL."""
    async with receiving() as (alerts, received):
        alerts.report("budget_reached", account="run/sk-proj-abcdefgh12345678")
        alerts.report("breaker_opened", reason="no answer from redis://:opensesame@redis:6379")
        await eventually(lambda: len(received) == 2, 10)
    assert received[0]["account"] == "run/sk-pro…"
    assert "opensesame" not in received[1]["reason"]


def test_only_the_settlement_that_crosses_a_threshold_alerts() -> None:
    """Other processes see the same balance: they must not alert again."""
    alerts = Alerts(AlertConfig())
    call = call_of(Budget(Scope.KEY, Limit(tokens=100), window=Window.TOTAL))
    alerts.check_budgets(call, balances(call, 85), Amount(4))
    assert events(alerts) == []
    alerts.check_budgets(call, balances(call, 101), Amount(6))
    assert [occasion[-1] for occasion in events(alerts)] == [100]


def test_suspected_loop_of_a_step_is_alerted_once() -> None:
    alerts = Alerts(AlertConfig(loop_calls=5))
    call = call_of()
    for _ in range(3):
        alerts.check_budgets(call, [], Amount())
        alerts.refused(call)
    alerted = [occasion for occasion in alerts._reported if occasion[0] == "loop_suspected"]
    assert alerted == [("loop_suspected", "acme", "r", "default")]
    quiet = Alerts(AlertConfig(loop_calls=None))
    for _ in range(100):
        quiet.refused(call)
    assert not quiet._reported


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_webhook_to_a_private_address_is_refused_on_connect(host: str) -> None:
    """As after DNS rebinding: the check of the configuration passed before the name's address changed."""
    received: list[str] = []

    async def take(request: web.Request) -> web.Response:
        received.append(request.path)
        return web.Response()

    async with serving({"/hook": take}) as port:
        url = f"http://{host}:{port}/hook"
        alerts = Alerts(AlertConfig.model_construct(**{**dict(AlertConfig()), "webhook": url}))
        alerts.start()
        with structlog.testing.capture_logs() as log:
            alerts.overran(call_of(), Amount(5, 7))
            await eventually(lambda: any(line["event"] == "alert_not_sent" for line in log), 10)
        await alerts.stop()
    assert received == []
    assert "forbidden place" in next(line["error"] for line in log if line["event"] == "alert_not_sent")


def test_breaker_alerts_at_each_change_of_state_and_only_then() -> None:
    alerts = Alerts(AlertConfig())
    parts: Any = SimpleNamespace(alerts=alerts, telemetry=Telemetry())
    gauges = Gauges(parts)
    for is_available in (True, False, False, True, True, False):
        gauges._show_breaker("store", is_available, "refused")
    assert [occasion[0] for occasion in alerts._reported] == ["breaker_opened", "breaker_closed", "breaker_opened"]


async def test_call_whose_settlement_takes_a_budget_past_a_mark_is_reported(tmp_path: Path) -> None:
    api = await make_api(tmp_path, more="alerts: {budget_percent: [20]}\n")
    await api.post("/api/budgets", {"scope": "workflow", "match": "w", "tokens": 40, "window": "day"})
    with structlog.testing.capture_logs() as log:
        assert (await api.chat(workflow="w", body={"max_tokens": 5})).status_code == 200
    await close_api(api)
    (alert,) = [line for line in log if line["event"] == "budget_reached"]
    assert (alert["project"], alert["scope"]) == ("default", "workflow")
