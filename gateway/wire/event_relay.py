"""What the relays of all protocols have in common: events in, events out, and two views of how far the answer has come.

What the provider sent is counted at once. What the client got lags one piece behind: where the budget ends an answer, the
last piece is withheld, and the end has to fit what was given before it.
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
    """Events pass as they came, byte for byte; a protocol holds back or adds what is ours."""

    def __init__(self, request: Request, counter: OutputCounter) -> None:
        self.usage: Usage | None = None
        self._request = request
        self._counter = counter
        self._splitter = sse.EventSplitter()
        self._passed: list[bytes] = []
        self._ungiven: list[dict[str, Any]] = []  # events of the last piece that `_given` has to hear of

    @abstractmethod
    def _pass(self, event: bytes, value: dict[str, Any]) -> bytes:
        """What the client gets of one event. Raises `StreamBroken`."""

    @abstractmethod
    def _given(self, value: dict[str, Any]) -> None:
        """An event of `_ungiven` has reached the client. Never raises: what is odd about it is the client's to judge."""

    def _done(self) -> None:  # noqa: B027 - nothing is the right thing for protocols that know no [DONE]
        """The provider said `[DONE]`."""

    @property
    def output_tokens(self) -> int:
        return self._counter.tokens

    def feed(self, piece: bytes) -> bytes:
        self._catch_up()
        for event in split(self._splitter, piece):
            data = sse.data_of(event)
            if data == DONE:
                self._done()
            elif data is not None:  # a provider's keep-alive comments are between it and us
                self._passed.append(self._pass(event, object_of(data)))
        return self._unsent()

    def _unsent(self) -> bytes:
        """What passed before an event of the same piece broke the stream is still the client's."""
        data = b"".join(self._passed)
        self._passed.clear()
        return data

    def _catch_up(self) -> None:
        if self._ungiven:
            for value in self._ungiven:
                self._given(value)
            self._ungiven.clear()


def budget_comment(budget: Mapping[str, Any] | None) -> bytes:
    return b"" if budget is None else sse.comment(b"budget " + orjson.dumps(budget))


def named(value: dict[str, Any]) -> bytes:
    """An event of ours, under the name that its `type` says."""
    return sse.event(orjson.dumps(value), value["type"])
