"""How the pipeline reports calls in flight to the heartbeat."""

from __future__ import annotations

from typing import Protocol

from gateway.pipeline.call import Call
from gateway.upstream.port import SendObserver


class InFlightCalls(Protocol):
    def sent(self, call: Call) -> SendObserver | None:
        """From now on the call's hold is renewed. None: nothing is held, or it does not matter whether the request has left."""

    def progressed(self, call: Call, output_tokens: int) -> None: ...

    def finished(self, call: Call) -> None: ...
