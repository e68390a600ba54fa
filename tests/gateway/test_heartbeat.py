"""The heartbeat: holds of long calls are renewed, expired ones are swept, and ledger errors stop neither."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest
import structlog

from gateway.bookkeeping.heartbeat import Heartbeat
from gateway.errors import LedgerOutage
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import ExpiredReservation, LedgerError, LedgerUnavailable, Progress, Reserve
from gateway.observability.telemetry import Telemetry
from gateway.pipeline.call import Call, Principal
from gateway.upstream.port import SendObserver
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import ZERO, Amount, Limit
from policies.budgets import Chain, Link, Scope, Window
from policies.pricing import price_from_map
from policies.reservation import Demand, Granted, Hold, OnLost
from policies.tokens import PromptCount
from tests.waiting import eventually


class RecordingLedger(MemoryLedger):
    """Its first sweeps fail."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        super().__init__(clock_ms=clock_ms)
        self.renewed: list[Progress] = []
        self.errors: list[Exception] = []
        self.sweeps = 0

    async def renew(self, project: str, progress: Sequence[Progress], ttl_ms: int) -> tuple[str, ...]:
        if self.errors:
            raise self.errors.pop()
        self.renewed += progress
        return await super().renew(project, progress, ttl_ms)

    async def expire_due(self, limit: int = 1000) -> Sequence[ExpiredReservation]:
        self.sweeps += 1
        if self.sweeps <= 3:
            raise LedgerError("damaged for a moment") if self.sweeps <= 2 else ValueError("a fault of ours")
        return await super().expire_due()


@asynccontextmanager
async def beating(
    ledger: RecordingLedger, ttl_ms: int = 400, telemetry: Telemetry | None = None
) -> AsyncIterator[Heartbeat]:
    heartbeat = Heartbeat(ledger, telemetry or Telemetry(), ttl_ms=ttl_ms, sweep_ms=30)
    heartbeat.start()
    try:
        yield heartbeat
    finally:
        await heartbeat.stop()


async def held(ledger: MemoryLedger, name: str) -> Call:
    call = Call(
        id=name,
        protocol=PROTOCOLS["/v1/chat/completions"],
        principal=Principal("", "local", "default"),
        request=Request(body={}, model="m"),
        chain=Chain((Link(Hold("run/r", Limit(1000)), Scope.RUN, "r", Window.RUN),)),
        count=PromptCount(10, 12, exact=True),
    )
    decision = await ledger.reserve(
        "default", Reserve(name, "me", call.chain.holds, Demand(12, 50, 50), 400, b"{}", OnLost.CHARGE)
    )
    assert isinstance(decision, Granted)
    call.grant = decision
    return call


async def test_long_call_is_renewed_with_its_prompt_and_output_until_it_ends() -> None:
    ledger = RecordingLedger(lambda: 0)
    async with beating(ledger) as heartbeat:
        call = await held(ledger, "a")
        heartbeat.sent(call)
        await eventually(lambda: len(ledger.renewed) == 1)
        assert ledger.renewed[0] == Progress("a", Amount(12, 0, 1)), "the prompt as it was reserved"
        heartbeat.progressed(call, 30)
        await eventually(lambda: len(ledger.renewed) == 2)
        assert ledger.renewed[1] == Progress("a", Amount(42, 0, 1))
        heartbeat.finished(call)
        renewals = len(ledger.renewed)
        await asyncio.sleep(0.2)
        assert len(ledger.renewed) == renewals


async def test_call_is_renewed_once_in_a_quarter_of_its_ttl() -> None:
    ledger = RecordingLedger(lambda: 0)
    async with beating(ledger, ttl_ms=800) as heartbeat:
        heartbeat.sent(await held(ledger, "a"))
        await eventually(lambda: heartbeat._tick >= 12)
        assert len(ledger.renewed) == heartbeat._tick // 4


async def test_progress_has_the_money_for_prompt_and_output() -> None:
    ledger = RecordingLedger(lambda: 0)
    async with beating(ledger) as heartbeat:
        call = await held(ledger, "a")
        call.price = price_from_map({"input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6})
        heartbeat.sent(call)
        heartbeat.progressed(call, 30)
        await eventually(lambda: bool(ledger.renewed))
        assert ledger.renewed[0] == Progress("a", Amount(42, 12 * 1_000 + 30 * 4_000, 1))


@pytest.mark.parametrize("holds", ["no grant", "a grant that holds nothing"])
async def test_call_without_a_hold_is_not_renewed(holds: str) -> None:
    ledger = RecordingLedger(lambda: 0)
    async with beating(ledger) as heartbeat:
        call = await held(ledger, "a")
        call.grant = None if holds == "no grant" else replace(cast(Granted, call.grant), held=ZERO)
        heartbeat.sent(call)
        heartbeat.progressed(call, 5)
        await eventually(lambda: heartbeat._tick >= 4)
    assert ledger.renewed == []


async def test_lost_call_is_released_if_still_waiting_to_connect_and_charged_if_sent() -> None:
    now_ms = 0
    ledger = RecordingLedger(lambda: now_ms)
    async with beating(ledger, ttl_ms=60_000) as heartbeat:
        send_observers = [heartbeat.sent(await held(ledger, name)) for name in ("never", "left", "quick")]
        for send_observer in send_observers:
            assert send_observer is not None
            send_observer.on_waiting()
        _, left, quick = cast(list[SendObserver], send_observers)
        assert quick.before_send() is None, "a call that waited less than a tick is not reported"
        await eventually(lambda: len(ledger.renewed) == 2)
        confirmation = left.before_send()
        assert confirmation is not None
        await confirmation
        assert {sign.id: sign.on_lost for sign in ledger.renewed} == {"never": OnLost.RELEASE, "left": OnLost.CHARGE}
        now_ms, sweeps_before = 70_000, ledger.sweeps
        await eventually(lambda: ledger.sweeps >= sweeps_before + 5)
    (balance,) = await ledger.balances("default", ["run/r"])
    assert (balance.settled.tokens, balance.reserved.tokens) == (2 * 62, 0)


async def test_call_that_waits_again_after_it_was_sent_is_not_reported_as_unsent() -> None:
    ledger = RecordingLedger(lambda: 0)
    async with beating(ledger) as heartbeat:
        send_observer = heartbeat.sent(await held(ledger, "a"))
        assert send_observer is not None
        send_observer.on_waiting()
        assert send_observer.before_send() is None
        send_observer.on_waiting()  # another attempt, after the first one failed
        await eventually(lambda: bool(ledger.renewed))
        assert ledger.renewed == [Progress("a", Amount(12, 0, 1))]


@pytest.mark.parametrize("trouble", ["away", "gone"])
async def test_request_is_not_sent_if_its_hold_cannot_be_confirmed(trouble: str) -> None:
    now_ms = 0
    ledger = RecordingLedger(lambda: now_ms)
    async with beating(ledger, ttl_ms=60_000) as heartbeat:
        send_observer = heartbeat.sent(await held(ledger, "a"))
        assert send_observer is not None
        send_observer.on_waiting()
        await eventually(lambda: bool(ledger.renewed))
        if trouble == "away":
            ledger.errors = [LedgerUnavailable("away")]
        else:
            now_ms, sweeps_before = 70_000, ledger.sweeps
            await eventually(lambda: ledger.sweeps >= sweeps_before + 5)
        confirmation = send_observer.before_send()
        assert confirmation is not None
        with pytest.raises(LedgerOutage):
            await confirmation


async def test_no_send_observer_is_needed_when_lost_holds_are_released() -> None:
    ledger = RecordingLedger(lambda: 0)
    heartbeat = Heartbeat(ledger, Telemetry(), ttl_ms=400, sweep_ms=30, on_lost=OnLost.RELEASE)
    assert heartbeat.sent(await held(ledger, "a")) is None


async def test_errors_stop_neither_renewal_nor_sweep() -> None:
    ledger = RecordingLedger(lambda: 0)
    ledger.errors = [LedgerUnavailable("away"), LedgerError("damaged"), ValueError("a fault of ours")]
    async with beating(ledger) as heartbeat:
        heartbeat.sent(await held(ledger, "a"))
        await eventually(lambda: bool(ledger.renewed))
        assert not ledger.errors
        await eventually(lambda: ledger.sweeps >= 5)


async def test_expired_hold_of_a_dead_process_is_charged_in_full() -> None:
    now_ms, telemetry = 0, Telemetry()
    ledger = RecordingLedger(lambda: now_ms)
    async with beating(ledger, telemetry=telemetry) as heartbeat:
        call = await held(ledger, "a")
        heartbeat.sent(call)
        heartbeat.progressed(call, 7)
        heartbeat.finished(call)  # as if its process had died
        now_ms = 10_000
        sweeps = ledger.sweeps
        await eventually(lambda: ledger.sweeps >= sweeps + 5)
    (balance,) = await ledger.balances("default", ["run/r"])
    assert (balance.settled.tokens, balance.reserved.tokens) == (62, 0)
    assert telemetry.expired._value.get() == 1


async def test_outage_of_one_project_is_logged_once_while_another_is_renewed() -> None:
    class HalfDown(RecordingLedger):
        failures = 0

        async def renew(self, project: str, progress: Sequence[Progress], ttl_ms: int) -> tuple[str, ...]:
            if project == "far":
                self.failures += 1
                raise LedgerUnavailable("away")
            return await super().renew(project, progress, ttl_ms)

    ledger = HalfDown(clock_ms=lambda: 1)
    with structlog.testing.capture_logs() as log:
        async with beating(ledger) as heartbeat:
            near, far = await held(ledger, "near"), await held(ledger, "far")
            far.principal = replace(far.principal, project="far")
            heartbeat.sent(near)
            heartbeat.sent(far)
            await eventually(lambda: ledger.failures >= 5 and len(ledger.renewed) >= 2, 10)
    assert [line["error"] for line in log if line["event"] == "heartbeat_missed"] == ["away"]


async def test_outage_is_logged_once_and_not_at_each_tick() -> None:
    ledger = RecordingLedger(clock_ms=lambda: 1)
    ledger.errors = [LedgerUnavailable("away")] * 4
    with structlog.testing.capture_logs() as log:
        async with beating(ledger) as heartbeat:
            heartbeat.sent(await held(ledger, "a"))
            await eventually(lambda: bool(ledger.renewed) and ledger.sweeps >= 4, 10)
    assert [line["error"] for line in log if line["event"] == "heartbeat_missed"] == ["away"]
    assert [line["error"] for line in log if line["event"] == "sweep_missed"] == [
        "damaged for a moment",
        "a fault of ours",
    ]
