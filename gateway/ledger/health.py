"""The health of a ledger, as shown by `/readyz`, `farebox doctor`, the admin pages and the alerts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Health:
    """`reason` is empty while the ledger is available. `spooled`: events that wait on disk for it."""

    is_available: bool = True
    reason: str = ""
    warnings: tuple[str, ...] = ()
    spooled: int = 0
    times_opened: int = 0


@runtime_checkable
class HealthReporter(Protocol):
    @property
    def health(self) -> Health: ...


def health_of(ledger: object) -> Health:
    """A ledger in memory has nothing that could fail, and reports nothing."""
    return ledger.health if isinstance(ledger, HealthReporter) else Health()
