"""Faults of a configuration: the place, the field, and what is wrong; and how a validator reports several at once."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from gateway.config.marked_yaml import Path

# A path below the checked value, and what is wrong there.
Fault = tuple[Path, str]


class ConfigError(Exception):
    """One or more faults of the configuration, one per line: `file:line:column: field: what is wrong`."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def refuse(faults: Iterable[Fault], value: Any) -> None:
    """For validators: a `ValueError` could report only one fault, and only at the place of the whole value."""
    details = [
        InitErrorDetails(type=PydanticCustomError("value_error", "{text}", {"text": text}), loc=path, input=value)
        for path, text in faults
    ]
    if details:
        raise ValidationError.from_exception_data("configuration", details)


def counted_rightly(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Drops false reports of short lists: pydantic only counts the items without faults."""
    paths = [error["loc"] for error in errors]
    return [
        error
        for error in errors
        if error["type"] != "too_short" or not any(_is_below(path, error["loc"]) for path in paths)
    ]


def _is_below(path: Path, ancestor: Path) -> bool:
    return len(path) > len(ancestor) and path[: len(ancestor)] == ancestor


def near(name: str, known_names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known_names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def field_in_words(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the file"
