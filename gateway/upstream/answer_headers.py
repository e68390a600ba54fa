"""Filters a provider's response headers: only the port's list, and the request id under our own name, reach the client."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from gateway.upstream.port import FORWARDED_ANSWER_HEADERS, FORWARDED_ANSWER_PREFIXES

_VALUE_CHARS_MAX: Final = 512
_REQUEST_IDS: Final = frozenset({"x-request-id", "request-id", "apim-request-id", "x-amzn-requestid"})


def answer_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The filtered headers, with lower-case names. Values that could break our own response are dropped, because a control
    character must not fail an answer that is already paid for."""
    forwarded: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name = _name_for_clients(raw_name)
        if name is None:
            continue
        value = raw_value.decode("latin-1")
        if value.isascii() and value.isprintable() and len(value) <= _VALUE_CHARS_MAX:
            forwarded[name] = value
    return forwarded


@lru_cache(maxsize=1024)  # a provider sends the same twenty names with every answer
def _name_for_clients(raw_name: bytes) -> str | None:
    name = raw_name.decode("latin-1").lower()
    if name in _REQUEST_IDS:
        return "x-upstream-request-id"
    if name in FORWARDED_ANSWER_HEADERS or name.startswith(FORWARDED_ANSWER_PREFIXES):
        return name
    return None
