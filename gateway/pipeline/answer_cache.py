"""The exact-match cache: the very same request of the same project is answered from memory, and costs nothing.

Off unless a model's `model_info.cache_ttl_seconds` or the header `x-farebox-cache: SECONDS` asks for it; `x-farebox-cache: off`
keeps a call away from it. A call is admitted before the cache is asked, so that a paused run stays paused, and its whole hold is
given back on a hit. Streams are neither kept nor answered from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.errors import BadRequest
from gateway.pipeline.call import Call
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.kept_answers import KeptAnswer, KeptAnswers, canonical
from gateway.wire.body import drop_tags

HEADER: Final = "x-farebox-cache"
HIT_ACTION: Final = "cache=hit"
_CHANGES: Final = ("clamp", "compress", "route", "fallback", "cut")
TTL_SECONDS_MAX: Final = 86_400
_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Lookup:
    """A call that may be answered from the cache, and whose answer may be kept for `ttl_s`."""

    key: bytes
    ttl_s: int
    kept: KeptAnswer | None


class AnswerCache:
    """`model_ttl_s` tells what a public model name asks for; None: nothing."""

    def __init__(
        self,
        model_ttl_s: Callable[[str], int | None],
        timer_s: Callable[[], float],
        *,
        bytes_max: int = _BYTES_MAX,
    ) -> None:
        self._model_ttl_s = model_ttl_s
        self._answers = KeptAnswers(bytes_max, timer_s)

    def look_up(self, exchange: Exchange, call: Call) -> Lookup | None:
        """None: the cache has nothing to do with this call. Raises `BadRequest` for a header that says nothing sensible.

        To be asked before admission, which may change the request.
        """
        asked = exchange.headers.get(HEADER)
        ttl_s = self._model_ttl_s(call.request.model) if asked is None else _seconds(asked)
        if not ttl_s or call.request.stream:
            return None
        body = dict(call.request.body)
        drop_tags(body)
        versions = sorted(
            (name, value) for name, value in call.forwarded_headers.items() if not name.startswith("trace")
        )
        key = hashlib.sha256(canonical([call.principal.project, call.protocol.name, versions, body])).digest()
        return Lookup(key, ttl_s, self._answers.find(key))

    def keep(self, lookup: Lookup, call: Call, exchange: Exchange) -> None:
        """What a budget clamped, compressed or rerouted is an answer to this run's request only, and is not kept."""
        is_changed = any(action.startswith(_CHANGES) for action in call.actions)
        if exchange.answered is not None and not is_changed:
            self._answers.keep(lookup.key, b"", exchange.answered, lookup.ttl_s)


def _seconds(value: str) -> int | None:
    if value == "off":
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 6 or not 0 < int(value) <= TTL_SECONDS_MAX:
        raise BadRequest.header(
            HEADER, f"must be off, or for how many seconds to keep the answer: 1 to {TTL_SECONDS_MAX}"
        )
    return int(value)
