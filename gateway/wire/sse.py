"""Server-sent events, cut out of a byte stream and made."""

from __future__ import annotations

from typing import Final

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024


class EventTooLarge(ValueError):
    """One event is larger than 16 MiB."""


class EventSplitter:
    """Cuts a stream into whole events, without the blank line that ends each. Lines end with LF, CRLF or CR, as the standard says,
    and with LF in what is given out."""

    def __init__(self) -> None:
        self._rest = b""
        # Pieces from the middle of one long line. Joining each to what came before would copy an image in base64 once
        # for every 64 KiB of it.
        self._middle: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises `EventTooLarge`."""
        if self._size and b"\n" not in piece and b"\r" not in piece and not self._rest.endswith(b"\r"):
            self._middle.append(piece)
            self._keep(self._size + len(piece))
            return []
        data = self._whole(piece)
        if b"\r" in data:
            # A CR at the very end may be half of a CRLF whose LF comes with the next piece.
            held = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        events = data.split(b"\n\n")
        self._rest = events.pop()
        self._keep(len(self._rest))
        return [event for event in events if event]

    def _whole(self, piece: bytes) -> bytes:
        if self._middle:
            parts = [self._rest, *self._middle, piece]
            self._middle.clear()
            return b"".join(parts)
        return self._rest + piece if self._rest else piece

    def _keep(self, size: int) -> None:
        self._size = size
        if size > EVENT_BYTES_MAX:
            raise EventTooLarge(f"an event larger than {EVENT_BYTES_MAX} bytes")

    @property
    def rest(self) -> bytes:
        """What stands behind the last whole event: an event cut off, if the stream ended here."""
        return self._whole(b"").strip()


def data_of(event: bytes) -> bytes | None:
    """The event's data, or None for a comment. Several data lines are joined with LF, as the standard says."""
    head, found, data = event.partition(b"data: ")
    # Nearly every event is one data line, or a name and one data line; the rest takes the slow way.
    if found and b"\n" not in data and (not head or (head.startswith(b"event:") and head.find(b"\n") == len(head) - 1)):
        return data
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def name_of(event: bytes) -> str | None:
    for line in event.split(b"\n"):
        if line.startswith(b"event:"):
            return line[6:].strip().decode("utf-8", "replace")
    return None


def event(data: bytes, name: str | None = None) -> bytes:
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


def comment(text: bytes) -> bytes:
    return b": " + text + b"\n\n"
