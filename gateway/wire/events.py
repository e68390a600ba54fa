"""Reads a provider's events as objects, and detects the ways in which they can be malformed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from gateway.errors import StreamBroken
from gateway.wire import lenient_json, sse

DONE: Final = b"[DONE]"
# No real answer has more choices, tool calls or content parts.
INDEX_MAX: Final = 4_096


def object_of(data: bytes) -> dict[str, Any]:
    """Raises `StreamBroken` for anything but one JSON object."""
    try:
        value = lenient_json.loads(data)
    except ValueError as error:
        raise StreamBroken("The provider sent an event that is not JSON.") from error
    if not isinstance(value, dict):
        raise StreamBroken("The provider sent an event that is no object.")
    return value


def objects_of(pieces: bytes) -> Iterator[dict[str, Any]]:
    """The events of a whole stream, without comments and `[DONE]`. Raises `StreamBroken`."""
    for event in split(sse.EventSplitter(), pieces):
        data = sse.data_of(event)
        if data is not None and data != DONE:
            yield object_of(data)


def split(splitter: sse.EventSplitter, piece: bytes) -> list[bytes]:
    """Raises `StreamBroken` for an event that is too large."""
    try:
        return splitter.feed(piece)
    except sse.EventTooLarge as error:
        raise StreamBroken(f"The provider sent {error}.") from error


def kind_of(value: Mapping[str, Any]) -> str:
    """The `type` of an event or a part; empty if it is not a string."""
    kind = value.get("type")
    return kind if isinstance(kind, str) else ""


def index_of(item: dict[str, Any], key: str = "index", default: int = 0) -> int:
    """Raises `StreamBroken` for an invalid index."""
    value = item.get(key, default)
    if type(value) is not int or not 0 <= value <= INDEX_MAX:
        raise StreamBroken(f"The provider sent an event whose {key} is {str(value)[:40]!r}.")
    return value


def object_in(event: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Raises `StreamBroken` if there is no object under `key`."""
    value = event.get(key)
    if not isinstance(value, dict):
        raise StreamBroken(f"The provider sent an event without its {key}.")
    return value


def objects_in(value: Any, name: str) -> list[dict[str, Any]]:
    """A list of objects; empty for None. Raises `StreamBroken` for anything else."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise StreamBroken(f"The provider sent {name} that are no list of objects.")
    return value


def append_text(text: Any, part: str) -> str:
    """A text with its next piece appended. Anything but a text is replaced."""
    return text + part if isinstance(text, str) else part
