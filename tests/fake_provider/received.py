"""What the fake provider saw of one request, for tests to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Received:
    """One request. Times are of the event loop's clock, in seconds."""

    method: str
    path: str
    query: str
    headers: dict[str, str]  # names in lower case; of equal names the last value
    raw: bytes
    body: dict[str, Any]
    model: str  # without a directive
    at_s: float
    peer: tuple[str, int] | None
    answered_s: float | None = None  # the answer was sent in full
    disconnected_s: float | None = None  # the client left before that
    content_events: int = 0  # sent so far, in a stream
    output_tokens: int = 0  # of the full answer

    @property
    def credential(self) -> str | None:
        """The key that came along, whichever header carried it."""
        bearer = self.headers.get("authorization", "")
        return self.headers.get("x-api-key") or (bearer.removeprefix("Bearer ") or None)

    def as_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "body": self.body,
            "model": self.model,
            "content_events": self.content_events,
            "output_tokens": self.output_tokens,
            "answered": self.answered_s is not None,
            "disconnected": self.disconnected_s is not None,
        }
