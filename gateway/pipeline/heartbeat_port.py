"""What the pipeline tells of calls that are under way."""

from __future__ import annotations

from typing import Protocol

from gateway.pipeline.call import Call


class Flights(Protocol):
    def sent(self, call: Call) -> None: ...

    def progressed(self, call: Call, output_tokens: int) -> None: ...

    def landed(self, call: Call) -> None: ...
