"""Joins the control API's own parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio._backends._asyncio  # noqa: F401 - starlette would import it on the event loop, for the first stream

from gateway.bookkeeping.catch_up import CatchUp
from gateway.control import Snapshot
from gateway.endpoints.access import Access
from gateway.endpoints.api.route import ApiServices
from gateway.ledger.clock import wall_clock_ms
from gateway.runs.control import RunControl
from gateway.runs.view import RunViews

if TYPE_CHECKING:
    from gateway.parts import Parts


def make_api_services(parts: Parts, access: Access) -> ApiServices:
    def snapshot() -> Snapshot:
        return parts.control.snapshot

    views = RunViews(
        parts.store,
        parts.ledger,
        budgets=parts.budgets,
        limits_of=parts.orchestration.limits_of,
        now_ms=parts.clock.now_ms,
    )

    async def flush_waiting() -> None:
        await parts.recorder.flush()
        await parts.orchestration.plans.flush()

    catch_up = CatchUp(flush_waiting, parts.flusher)
    control = RunControl(
        parts.store,
        parts.ledger,
        views,
        orchestration=parts.orchestration,
        catch_up=catch_up,
        now_ms=wall_clock_ms,
    )
    return ApiServices(parts, access, views, control, catch_up, wall_clock_ms)
