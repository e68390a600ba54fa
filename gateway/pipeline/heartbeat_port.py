"""What the pipeline tells of calls that are under way."""

from __future__ import annotations

from typing import Protocol

from gateway.pipeline.call import Call
from gateway.upstream.port import Departure


class Flights(Protocol):
    def sent(self, call: Call) -> Departure | None:
        """From here on the call is renewed. None: nothing is held for it."""

    def progressed(self, call: Call, output_tokens: int) -> None: ...

    def landed(self, call: Call) -> None: ...
