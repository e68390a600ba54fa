"""The exact-match cache: an identical request of the same project is answered from the answer storage, and costs nothing.

Off unless a model's `model_info.cache_ttl_seconds` or the header `x-farebox-cache: SECONDS` asks for it; `x-farebox-cache: off`
bypasses it. A call is admitted before the cache is looked up, so that a paused run stays paused; on a hit its whole hold is
released. A stream is kept once it has ended successfully, and replayed in one piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from gateway.answers.port import AnswerStorage, AnswerStorageUnavailable, Slot, StoredAnswer
from gateway.errors import BadRequest
from gateway.pipeline.call import Call
from gateway.pipeline.exchange import Exchange, SentAnswer
from gateway.pipeline.replay import canonical, storable_answer

HEADER: Final = "x-farebox-cache"
HIT_ACTION: Final = "cache=hit"
# Actions that keep an answer out of the cache. A hit is among them: storing it again would extend its TTL forever.
_UNCACHED_ACTIONS: Final = ("clamp", "compress", "route", "fallback", "cut", HIT_ACTION)
TTL_SECONDS_MAX: Final = 86_400
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CacheLookup:
    """A call that may be answered from the cache, and whose answer may be kept for `ttl_s`."""

    slot: Slot
    ttl_s: int


class AnswerCache:
    """`model_ttl_s` returns the TTL configured for a public model name, or None."""

    def __init__(self, model_ttl_s: Callable[[str], int | None], storage: AnswerStorage) -> None:
        self._model_ttl_s = model_ttl_s
        self._storage = storage

    def lookup(self, exchange: Exchange, call: Call) -> CacheLookup | None:
        """None if the cache is not to be used for this call. Raises `BadRequest` for an invalid header.

        Call this before admission, which may change the request.
        """
        header = exchange.headers.get(HEADER)
        ttl_s = self._model_ttl_s(call.request.model) if header is None else _seconds(header)
        if not ttl_s:
            return None
        version_headers = sorted(
            (name, value) for name, value in call.forwarded_headers.items() if not name.startswith("trace")
        )
        key = hashlib.sha256(canonical([call.protocol.name, version_headers, call.request.body])).hexdigest()
        lookup = CacheLookup(Slot("cache", call.principal.project, key), ttl_s)
        exchange.keep_answer(partial(self._keep, lookup, call))
        return lookup

    async def find(self, lookup: CacheLookup) -> StoredAnswer | None:
        """Look up the answer. An unreachable storage counts as a miss."""
        try:
            return await self._storage.find(lookup.slot)
        except AnswerStorageUnavailable as error:
            _log.warning("cache_unavailable", error=str(error))
            return None

    async def _keep(self, lookup: CacheLookup, call: Call, sent: SentAnswer) -> None:
        """Store the answer, unless the request was changed for this run only: clamped, compressed or rerouted."""
        answer = storable_answer(sent)
        if answer is None or any(action.startswith(_UNCACHED_ACTIONS) for action in call.actions):
            return
        try:
            await self._storage.put(lookup.slot, answer, lookup.ttl_s * 1000)
        except AnswerStorageUnavailable as error:
            _log.warning("cache_unavailable", error=str(error))


def _seconds(value: str) -> int | None:
    if value == "off":
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 6 or not 0 < int(value) <= TTL_SECONDS_MAX:
        raise BadRequest.header(
            HEADER, f"must be off, or for how many seconds to keep the answer: 1 to {TTL_SECONDS_MAX}"
        )
    return int(value)
