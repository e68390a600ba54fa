"""Assembles the admission of calls, for the pipeline and for dry runs on a dry-run ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from gateway.config.conversion import rules_of
from gateway.ids import process_name
from gateway.ledger.port import Ledger
from gateway.pipeline.admission import Admission
from gateway.pipeline.fitting import Fitting
from gateway.pipeline.ports import Planner
from gateway.pipeline.reserving import Reserving
from gateway.runs.registry import RunRegistry

if TYPE_CHECKING:
    from gateway.parts import Parts


def fitting_for(parts: Parts, reserving: Reserving, *, planner: Planner | None = None) -> Fitting:
    return Fitting(
        tokenizer=parts.tokenizer,
        prices=parts.prices,
        pool=parts.pool,
        planner=planner or parts.orchestration,
        reserving=reserving,
        rules=rules_of(parts.config, process_name()),
    )


def admission_for(
    parts: Parts,
    fitting: Fitting,
    *,
    ledger: Ledger | None = None,
    planner: Planner | None = None,
    runs: RunRegistry | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Admission:
    """The parts of the running gateway, unless others are given."""
    return Admission(
        ledger=ledger or parts.ledger,
        fitting=fitting,
        planner=planner or parts.orchestration,
        runs=runs or parts.runs,
        budgets=parts.budgets,
        snapshot=lambda: parts.control.snapshot,
        now_ms=parts.clock.now_ms,
        sleep=sleep,
    )
