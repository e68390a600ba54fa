"""What the relays of all protocols share: events in, events out, and two views of how far the answer has got.

Whatever the provider sends is counted at once. The client's view lags one piece behind: if the budget ends an answer, the
last piece is withheld, and the end has to fit what the client got before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.wire import sse
from gateway.wire.events import DONE, object_of, split
from gateway.wire.protocol import OutputCounter, Request
from policies.pricing import Usage


class EventRelay(ABC):
    """Passes events on byte for byte. Each protocol withholds some events, and adds our own."""

    def __init__(self, request: Request, counter: OutputCounter) -> None:
        self.usage: Usage | None = None
        self.usage_lags = False
        self.prompt_usage: Usage | None = None
        self._request = request
        self._counter = counter
        self._splitter = sse.EventSplitter()
        self._passed: list[bytes] = []
        self._undelivered: list[dict[str, Any]] = []  # events of the last piece, still to be marked as delivered

    @abstractmethod
    def _relay_event(self, event: bytes, value: dict[str, Any]) -> bytes:
        """The bytes that the client gets for one event. Raises `StreamBroken`."""

    @abstractmethod
    def _mark_delivered(self, value: dict[str, Any]) -> None:
        """An event of `_undelivered` has gone to the client. Never raises: it is up to the client to judge a malformed event."""

    def _on_done(self) -> None:  # noqa: B027 - protocols without [DONE] have nothing to do here
        """The provider sent `[DONE]`."""

    @property
    def output_tokens(self) -> int:
        return self._counter.tokens

    def feed(self, piece: bytes) -> bytes:
        self._mark_all_delivered()
        for event in split(self._splitter, piece):
            data = sse.data_of(event)
            if data == DONE:
                self._on_done()
            elif data is not None:  # comments are dropped: a provider's keep-alives are meant for us
                self._passed.append(self._relay_event(event, object_of(data)))
        return self._take_passed()

    def _take_passed(self) -> bytes:
        """The events to send now. If an event breaks the stream, those before it in the same piece still go to the client."""
        data = b"".join(self._passed)
        self._passed.clear()
        return data

    def _mark_all_delivered(self) -> None:
        if self._undelivered:
            for value in self._undelivered:
                self._mark_delivered(value)
            self._undelivered.clear()


def budget_comment(budget: Mapping[str, Any] | None) -> bytes:
    return b"" if budget is None else sse.comment(b"budget " + orjson.dumps(budget))


def typed_event(value: dict[str, Any]) -> bytes:
    """An event of our own, named by its `type`."""
    return sse.event(orjson.dumps(value), value["type"])
