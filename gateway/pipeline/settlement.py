"""The end of every call: either its usage is booked and recorded, or its whole hold is released."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from gateway.ledger.port import EntryKind, Ledger, LedgerUnavailable, OutboxEntry
from gateway.ledger.retries import retry_while_unavailable
from gateway.observability.alerts import Alerts
from gateway.observability.telemetry import Telemetry
from gateway.pipeline.call import Call, Outcome
from gateway.pipeline.cost_bounds import booked_cost, plausible_usage
from gateway.pipeline.events import detail_of, draft_of, whole_event
from gateway.pipeline.fitting import Fitting
from gateway.pipeline.hold import booked_output
from gateway.pipeline.ports import Recorder
from gateway.wire.protocol import WireProtocol
from policies.amounts import ZERO, Amount
from policies.pricing import Usage, cost_nano_usd
from policies.reservation import State
from policies.values import value_class

_log = structlog.get_logger(__name__)
_TRIES: Final = 4
_PAUSE_S: Final = 0.05
_OVERAGE: Final = "overage"


@value_class
class MeasuredUsage:
    usage: Usage
    amount: Amount
    source: str  # provider or estimated


class Settler:
    def __init__(
        self,
        *,
        ledger: Ledger,
        recorder: Recorder,
        telemetry: Telemetry,
        alerts: Alerts,
        now_ms: Callable[[], int],
        fitting: Fitting,
        on_usage_reported: Callable[[Call, Usage], None],
    ) -> None:
        self._ledger = ledger
        self._recorder = recorder
        self._telemetry = telemetry
        self._alerts = alerts
        self._now_ms = now_ms
        self._fitting = fitting
        self._on_usage_reported = on_usage_reported

    async def settle(self, call: Call, outcome: Outcome) -> None:
        """Fill in the call's `reported_balances`. Never raises when the ledger is unreachable: its outage wrapper keeps what could
        not be written, and replays it.

        Nothing is counted or recorded before the last await, so that a cancelled settlement can be repeated.
        """
        measured = await self._measure(call, outcome)
        if measured is not None and measured.usage.stored_ids:
            self._fitting.remember_history(call, measured.usage)
        if measured is not None and call.is_tagged:
            self._note_routing_and_cache(call, measured)
        if call.grant is None or not call.grant.held.requests:
            self._record(call, outcome, measured)
        else:
            try:
                await (self._void(call, outcome) if measured is None else self._book(call, outcome, measured))
            except LedgerUnavailable as error:
                _log.error("settlement_not_written", request_id=call.id, error=str(error))
        self._telemetry.ended(
            call, outcome, measured.usage if measured else None, measured.amount if measured else ZERO
        )
        call.timings.stop("settle")

    def _note_routing_and_cache(self, call: Call, measured: MeasuredUsage) -> None:
        """Compute what routing to another model has saved, and learn from the provider's usage about its prompt cache."""
        if measured.source == "provider":
            self._on_usage_reported(call, measured.usage)
        if call.requested_price is not None:
            requested_nano_usd = booked_cost(call.request, call.requested_price, measured.usage)
            call.saved += Amount(0, requested_nano_usd - measured.amount.nano_usd)
            call.requested_price = None  # so that a repeated settlement does not count it again

    def refused(self, call: Call, code: str) -> None:
        """Record a refusal: it costs nothing, but operators look for it in the usage."""
        self._telemetry.refused(call, code)
        self._not_admitted(call, code, "refused")

    def rejected(self, protocol: WireProtocol, code: str) -> None:
        """Refused before it was known whose call this is, so that only the metrics can show it."""
        self._telemetry.rejected(protocol.name, code)

    def broke(self, protocol: WireProtocol, call: Call | None) -> None:
        """Record a fault of ours that came before the call was admitted."""
        self._telemetry.broke(protocol.name)
        if call is not None:
            self._not_admitted(call, "internal_error", "error")

    def _not_admitted(self, call: Call, code: str, status: str) -> None:
        outcome = Outcome(status=status, code=code)
        self._alerts.refused(call)
        self._recorder.record(call.principal.project, self._entry(call, ZERO, whole_event(call, outcome)))

    async def _book(self, call: Call, outcome: Outcome, measured: MeasuredUsage) -> None:
        if _is_overage(call, measured.amount) and _OVERAGE not in call.actions:
            call.actions.append(_OVERAGE)
        detail = detail_of(call, outcome, measured.usage, measured.source)
        project = call.principal.project
        resolution = await retry_while_unavailable(
            lambda: self._ledger.settle(project, call.id, measured.amount, detail), tries=_TRIES, pause_s=_PAUSE_S
        )
        if resolution.overrun != ZERO:
            call.actions.append(f"overrun={resolution.overrun.tokens}")
            self._telemetry.overran(call, resolution.overrun)
            self._alerts.overran(call, resolution.overrun)
        if resolution.state is State.LATE:
            _log.warning("settled_late", request_id=call.id, run=call.run)
        self._alerts.check_budgets(call, resolution.balances, resolution.booked)
        call.reported_balances = resolution.balances

    async def _void(self, call: Call, outcome: Outcome) -> None:
        project = call.principal.project
        resolution = await retry_while_unavailable(
            lambda: self._ledger.void(project, call.id), tries=_TRIES, pause_s=_PAUSE_S
        )
        self._recorder.record(project, self._entry(call, ZERO, whole_event(call, outcome)))
        call.reported_balances = resolution.balances

    def _record(self, call: Call, outcome: Outcome, measured: MeasuredUsage | None) -> None:
        amount = measured.amount if measured else ZERO
        detail = detail_of(call, outcome, measured.usage if measured else None, measured.source if measured else "none")
        self._recorder.record(call.principal.project, self._entry(call, amount, draft_of(call), detail))

    def _entry(self, call: Call, amount: Amount, draft: bytes, detail: bytes = b"") -> OutboxEntry:
        return OutboxEntry(
            "", call.id, EntryKind.RECORDED, call.principal.project, amount, self._now_ms(), draft, detail
        )

    async def _measure(self, call: Call, outcome: Outcome) -> MeasuredUsage | None:
        """The usage that the provider reported, or else our own count. None: nothing was spent."""
        if not outcome.reached:
            return None
        usage, source = plausible_usage(call.request, call.price, outcome.usage), "provider"
        if usage is None:
            tokens = await self._prompt_tokens(call)
            output_tokens = booked_output(call, outcome.output_tokens_seen)
            usage = replace(call.request.units(), input_tokens=tokens, output_tokens=output_tokens)
            source = "estimated"
        if source == "estimated" or not usage.input_tokens + usage.output_tokens:
            with_media = _with_media(call, usage)
            source = source if with_media is usage else "estimated"
            usage = with_media
        if _is_speech_by_prompt_tokens(call, usage):
            usage, source = replace(usage, input_tokens=await self._prompt_tokens(call)), "estimated"
        cost = booked_cost(call.request, call.price, usage)
        return MeasuredUsage(usage, Amount(usage.input_tokens + usage.output_tokens, cost, 1), source)

    async def _prompt_tokens(self, call: Call) -> int:
        """Our count of the prompt. If counting fails, the figure is lost, but the call is still recorded."""
        if call.count is not None:
            return call.count.tokens
        try:
            return (await self._fitting.count(call)).tokens
        except Exception:  # noqa: BLE001 - the client may already have its answer
            _log.exception("prompt_not_counted", request_id=call.id)
            return 0


def _is_speech_by_prompt_tokens(call: Call, usage: Usage) -> bool:
    """Whether this is speech billed by prompt tokens. Its answer is plain audio, which reports no token counts."""
    has_price = call.price is not None and call.price.million_characters_nano_usd > 0
    return bool(usage.characters) and not usage.input_tokens and not has_price


def _with_media(call: Call, usage: Usage) -> Usage:
    """Add the reserved media tokens, if images or audio are billed only by tokens and the answer reports none."""
    tokens, price = call.request.media_tokens, call.price
    if not tokens or price is None or cost_nano_usd(price, call.request.units()):
        return usage
    if price.rates.output:
        return replace(usage, output_tokens=tokens, audio_output_tokens=tokens if usage.audio_ms else 0)
    return replace(usage, input_tokens=usage.input_tokens + tokens) if price.rates.input else usage


def _is_overage(call: Call, used: Amount) -> bool:
    """Whether the step has now exceeded its allocation. That is tolerated up to the hard limit, but flagged."""
    if call.grant is None:
        return False
    for balance, link in zip(call.grant.balances, call.chain.links, strict=False):
        if link.soft_tokens is not None and balance.settled.tokens + used.tokens > link.soft_tokens:
            return True
    return False
