"""Daily tasks: create partitions for coming months, drop old months, and delete what has expired."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.ledger.clock import wall_clock_ms
from gateway.store import admin_users, audit, intensity, intents, usage
from gateway.store.database import Database, StoreUnavailable

EVERY_MS: Final = 86_400_000
# After a failure it is tried again soon: partitions are three months ahead, but that reserve should not be needed.
AGAIN_MS: Final = 600_000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long usage and the audit trail are kept. None: for ever."""

    usage_months: int | None = None
    audit_days: int | None = None


_FOR_EVER: Final = Retention()


async def run_housekeeping(db: Database, now_ms: int, retention: Retention = _FOR_EVER) -> list[str]:
    """Do all tasks once; several processes may do so concurrently. Returns the partitions that retention dropped."""
    await usage.create_partitions_ahead(db, now_ms)
    await intents.forget_expired(db, now_ms)
    await intensity.forget_old(db, now_ms)
    await admin_users.forget_ended(db, now_ms)
    if retention.audit_days is not None:
        await audit.forget_old(db, now_ms, retention.audit_days)
    return [] if retention.usage_months is None else await usage.drop_old_months(db, now_ms, retention.usage_months)


async def run_housekeeping_daily(db: Database, retention: Retention) -> None:
    """Runs until it is cancelled."""
    while True:
        try:
            dropped = await run_housekeeping(db, wall_clock_ms(), retention)
            pause_ms = EVERY_MS
            if dropped:
                _log.info("usage_months_dropped", partitions=dropped)
        except StoreUnavailable as error:
            _log.warning("housekeeping_failed", error=str(error))
            pause_ms = AGAIN_MS
        except Exception as error:  # noqa: BLE001 - a failure today must not end all later housekeeping
            _log.error("housekeeping_failed", error=str(error), kind=type(error).__name__)
            pause_ms = AGAIN_MS
        await asyncio.sleep(pause_ms / 1000)
