"""How many calls may be under way: in total, and for each key, so that one tenant cannot take all places (P15)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Overloaded
from gateway.pipeline.call import Principal
from gateway.telemetry import Telemetry


class Places:
    """Full means an immediate answer, never a queue: whoever waits here holds memory and learns nothing."""

    def __init__(self, telemetry: Telemetry, *, total_max: int, key_max: int) -> None:
        self._telemetry = telemetry
        self._total_max = total_max
        self._key_max = key_max
        self._by_key: Counter[str] = Counter()
        self.total = 0

    @contextmanager
    def taken(self, principal: Principal) -> Iterator[None]:
        """Raises `Overloaded`: 503 when the gateway is full, 429 when the key is."""
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
        self.total += 1
        self._by_key[key] += 1
        self._telemetry.in_flight.inc()
        try:
            yield
        finally:
            self.total -= 1
            self._by_key[key] -= 1
            if not self._by_key[key]:
                del self._by_key[key]
            self._telemetry.in_flight.dec()
