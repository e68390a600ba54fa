"""Limits concurrent calls: in total, per key and per project, so that one tenant cannot take all slots (P15).

Each process counts for itself, so N gateways let N times as many calls through.
"""

from __future__ import annotations

from collections import Counter

from gateway.errors import Overloaded
from gateway.pipeline.call import Principal


class ConcurrencyLimits:
    """A call above a limit is refused at once, never queued: a waiting call would take memory and tell its client nothing."""

    def __init__(self, *, total_max: int, key_max: int, project_max: int | None = None) -> None:
        self._total_max = total_max
        self._key_max = key_max
        self._project_max = project_max
        self._by_key: Counter[str] = Counter()
        self._by_project: Counter[str] = Counter()  # stays empty if projects are not limited
        self.total = 0

    def acquire(self, principal: Principal) -> None:
        """Acquire a slot, which `release` frees again. Raises `Overloaded`: 503 if the gateway is full, 429 if key or project is."""
        key = principal.key_id
        if self.total >= self._total_max:
            raise Overloaded(
                "The gateway is serving as many calls as it may.",
                status=503,
                code="gateway_busy",
                headers={"retry-after": "1"},
            )
        if self._by_key[key] >= (principal.concurrency_max or self._key_max):
            raise Overloaded("This key has as many calls under way as it may.", headers={"retry-after": "1"})
        if self._project_max is not None:
            if self._by_project[principal.project] >= self._project_max:
                raise Overloaded("This project has as many calls under way as it may.", headers={"retry-after": "1"})
            self._by_project[principal.project] += 1
        self.total += 1
        self._by_key[key] += 1

    def release(self, principal: Principal) -> None:
        self.total -= 1
        if self._project_max is not None:
            self._by_project[principal.project] -= 1
        self._by_key[principal.key_id] -= 1
        if not self._by_key[principal.key_id]:
            del self._by_key[principal.key_id]
