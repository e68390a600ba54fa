"""Splits byte streams into server-sent events, and creates such events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
# No real event has more lines, and processing two million of them one by one took six seconds.
EVENT_LINES_MAX: Final = 20_000


class EventTooLarge(ValueError):
    """One event is larger than 16 MiB, or has more than 20,000 lines."""


class EventSplitter:
    """Splits a stream into whole events, without the blank line that ends each. Input lines may end with LF, CRLF or CR, as the
    standard says; output lines end with LF."""

    def __init__(self) -> None:
        # The pieces of an unfinished event. They are joined only once: searching all of them again for each new piece
        # would take quadratic time for an image in base64, or for an event with very many lines.
        self._pieces: list[bytes] = []
        self._size = 0
        self._lines = 0
        self._pending_cr = b""  # a trailing CR, which may be half of a CRLF whose LF comes with the next piece
        self._ends_line = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises `EventTooLarge`."""
        if self._pending_cr or b"\r" in piece:
            piece = self._with_line_feeds(piece)
        if b"\n\n" not in piece and not (self._ends_line and piece.startswith(b"\n")):
            self._keep(piece)
            return []
        if self._pieces:
            piece = self._whole(piece)
        events = piece.split(b"\n\n")
        self._size = self._lines = 0
        self._keep(events.pop())
        return [event for event in events if event]

    def _with_line_feeds(self, piece: bytes) -> bytes:
        data = self._pending_cr + piece
        self._pending_cr = b"\r" if data.endswith(b"\r") else b""
        return data[: len(data) - len(self._pending_cr)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _whole(self, piece: bytes) -> bytes:
        joined = b"".join([*self._pieces, piece])
        self._pieces.clear()
        return joined

    def _keep(self, piece: bytes) -> None:
        self._ends_line = piece.endswith(b"\n") or (not piece and self._ends_line and bool(self._size))
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
            self._lines += piece.count(b"\n")
        if self._size > EVENT_BYTES_MAX:
            raise EventTooLarge(f"an event larger than {EVENT_BYTES_MAX} bytes")
        if self._lines > EVENT_LINES_MAX:
            raise EventTooLarge(f"an event of more than {EVENT_LINES_MAX} lines")


def data_of(event: bytes) -> bytes | None:
    """The event's data, or None for a comment. Several data lines are joined with LF, as the standard says."""
    head, separator, data = event.partition(b"data: ")
    # Nearly every event is one data line, perhaps after a name. All others take the slow path.
    if (
        separator
        and b"\n" not in data
        and (not head or (head.startswith(b"event:") and head.find(b"\n") == len(head) - 1))
    ):
        return data
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def event(data: bytes, name: str | None = None) -> bytes:
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


def json_event(value: Mapping[str, Any]) -> bytes:
    return event(orjson.dumps(value))


def typed_event(kind: str, **fields: Any) -> bytes:
    """An object whose `type` is also the event's name, as in Messages and Responses."""
    return event(orjson.dumps({"type": kind, **fields}), kind)


def comment(text: bytes) -> bytes:
    return b": " + text + b"\n\n"
