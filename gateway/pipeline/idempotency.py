"""`Idempotency-Key`: a call that is repeated under its key is answered with what the first one was answered, and paid once.

Keys belong to an API key of a project. An answer is kept for a day in the memory of the process that gave it; calls that failed
or were refused spent nothing, and may be made again under the same key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from gateway.errors import BadRequest
from gateway.pipeline.call import Call
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.kept_answers import KeptAnswer, KeptAnswers, canonical

HEADER: Final = "idempotency-key"
REPLAYED_HEADER: Final = "idempotent-replayed"  # as Stripe, whose rules these are, says it
KEY_CHARS_MAX: Final = 255
_DAY_S: Final = 86_400.0
_BYTES_MAX: Final = 64 * 1024 * 1024


class Idempotency:
    def __init__(self, timer_s: Callable[[], float], *, bytes_max: int = _BYTES_MAX) -> None:
        self._answers = KeptAnswers(bytes_max, timer_s)
        self._in_flight: set[bytes] = set()

    @contextmanager
    def once(self, exchange: Exchange, call: Call) -> Iterator[KeptAnswer | None]:
        """Yields the answer to give again, or None: then the answer that the exchange gives inside is kept, unless it fails.

        Raises `BadRequest`: 400 for a key that cannot be one and for streams, 409 for a key that is in use or was used for
        another request.
        """
        name = exchange.headers.get(HEADER)
        if name is None:
            yield None
            return
        _check(name, call)
        principal = call.principal
        key = hashlib.sha256(canonical([principal.project, principal.key_id, name])).digest()
        fingerprint = hashlib.sha256(canonical([call.protocol.name, call.request.body])).digest()
        kept = self._answers.find(key)
        if kept is not None:
            if kept.fingerprint != fingerprint:
                raise _conflict("was used for another request", {"x-should-retry": "false"})
            yield kept
            return
        if key in self._in_flight:
            raise _conflict("belongs to a call that is still under way", {"retry-after": "1"})
        self._in_flight.add(key)
        try:
            yield None
            if exchange.answered is not None:
                self._answers.keep(key, fingerprint, exchange.answered, _DAY_S)
        finally:
            self._in_flight.discard(key)


def _check(name: str, call: Call) -> None:
    if not 0 < len(name) <= KEY_CHARS_MAX or not (name.isascii() and name.isprintable()):
        raise BadRequest.header(HEADER, f"must be 1 to {KEY_CHARS_MAX} printable characters")
    if call.request.stream:
        raise BadRequest.header(HEADER, "only a buffered answer can be given again; leave it out, or leave out stream")


def _conflict(what: str, headers: dict[str, str]) -> BadRequest:
    return BadRequest(
        f"Header {HEADER}: this key {what}.", status=409, code="idempotency_conflict", param=HEADER, headers=headers
    )
