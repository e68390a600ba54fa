"""Answers that were paid for and may be given once more: so many bytes of them, each for so long, in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.pipeline.exchange import Answered

# What one entry weighs beside its body: keys, the objects, the dictionary's slot.
_ENTRY_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    fingerprint: bytes
    content_type: bytes
    body: bytes
    expires_s: float


class KeptAnswers:
    """The oldest make room. `timer_s` is monotonic."""

    def __init__(self, bytes_max: int, timer_s: Callable[[], float]) -> None:
        self._bytes_max = bytes_max
        self._timer_s = timer_s
        self._bytes = 0
        self._answers: OrderedDict[bytes, KeptAnswer] = OrderedDict()

    def find(self, key: bytes) -> KeptAnswer | None:
        kept = self._answers.get(key)
        if kept is not None and kept.expires_s <= self._timer_s():
            self._drop(key)
            return None
        return kept

    def keep(self, key: bytes, fingerprint: bytes, answered: Answered, ttl_s: float) -> None:
        """Only an answer that succeeded; one that is larger than all the room there is, is not kept."""
        size = len(answered.body) + _ENTRY_BYTES
        if answered.status >= 300 or size > self._bytes_max:
            return
        self._drop(key)
        content_type = dict(answered.headers).get(b"content-type", b"application/json")
        self._answers[key] = KeptAnswer(fingerprint, content_type, answered.body, self._timer_s() + ttl_s)
        self._bytes += size
        while self._bytes > self._bytes_max:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: bytes) -> None:
        kept = self._answers.pop(key, None)
        if kept is not None:
            self._bytes -= len(kept.body) + _ENTRY_BYTES


def canonical(value: Any) -> bytes:
    """The same bytes for the same request, whatever the order of its keys. Uploads stand for themselves."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=_plain)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else repr(value)
