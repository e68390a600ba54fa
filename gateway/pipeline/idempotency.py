"""`Idempotency-Key`: a call repeated under its key gets the answer of the first one, and is paid for once.

Keys are scoped to an API key and its project. A call with a key continues when its client disconnects, so that the answer is
there when the client retries. Failed and refused calls may be made again under the same key.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import structlog

from gateway.answers.port import AnswerStorage, AnswerStorageUnavailable, Claimed, Slot, StoredAnswer
from gateway.errors import BadRequest, GatewayError
from gateway.pipeline.call import Call
from gateway.pipeline.exchange import Exchange, SentAnswer
from gateway.pipeline.replay import canonical, storable_answer

HEADER: Final = "idempotency-key"
REPLAYED_HEADER: Final = "idempotent-replayed"  # Stripe's name; these are Stripe's rules
KEY_CHARS_MAX: Final = 255
_log = structlog.get_logger(__name__)


class Idempotency:
    """`keep_ms` is how long an answer can be replayed."""

    def __init__(self, storage: AnswerStorage, *, keep_ms: int) -> None:
        self._storage = storage
        self._keep_ms = keep_ms

    @asynccontextmanager
    async def once(self, exchange: Exchange, call: Call) -> AsyncIterator[StoredAnswer | None]:
        """Yields the stored answer to replay. Yields None for a new call, whose answer is then stored unless it fails.

        Raises `BadRequest`: 400 for an invalid key, 409 for one that is in use or was used for another request; and
        `GatewayError` (503) if it cannot be determined whether the call was made before.
        """
        slot = _slot(exchange.headers[HEADER], call)
        fingerprint = hashlib.sha256(canonical([call.protocol.name, call.request.body])).digest()
        stored = await self._claim(slot, fingerprint, call.id)
        if stored is not None:
            if stored.fingerprint != fingerprint:
                raise _conflict("was used for another request", {"x-should-retry": "false"})
            if not isinstance(stored, StoredAnswer):
                raise _conflict("belongs to a call that is still under way", {"retry-after": "1"})
            yield stored
            return
        exchange.keep_answer(partial(self._keep, slot, fingerprint))
        exchange.outlive_client()
        async with self._claimed(slot, call.id):
            yield None

    async def _claim(self, slot: Slot, fingerprint: bytes, owner: str) -> StoredAnswer | Claimed | None:
        try:
            return await self._storage.claim(slot, fingerprint, owner)
        except AnswerStorageUnavailable as error:
            _log.warning("idempotency_unavailable", error=str(error))
            raise GatewayError(
                f"It cannot be known now whether the call under this {HEADER} was made before. Ask again in a moment.",
                status=503,
                code="idempotency_unavailable",
                headers={"retry-after": "1"},
            ) from error

    @asynccontextmanager
    async def _claimed(self, slot: Slot, owner: str) -> AsyncIterator[None]:
        """Renew the claim inside the block and release it at the end. A claim that cannot be released expires by itself."""
        renewing = None if self._storage.renew_s is None else asyncio.create_task(self._renew(slot, owner))
        try:
            yield
        finally:
            if renewing is not None:
                renewing.cancel()
            with contextlib.suppress(AnswerStorageUnavailable):
                await self._storage.release(slot, owner)

    async def _keep(self, slot: Slot, fingerprint: bytes, sent: SentAnswer) -> None:
        answer = storable_answer(sent, fingerprint)
        if answer is None:
            return
        try:
            await self._storage.put(slot, answer, self._keep_ms)
        except AnswerStorageUnavailable as error:
            _log.warning("answer_not_kept", error=str(error))

    async def _renew(self, slot: Slot, owner: str) -> None:
        while True:
            await asyncio.sleep(self._storage.renew_s or 0.0)
            with contextlib.suppress(AnswerStorageUnavailable):
                await self._storage.renew(slot, owner)


def _slot(key: str, call: Call) -> Slot:
    if not 0 < len(key) <= KEY_CHARS_MAX or not (key.isascii() and key.isprintable()):
        raise BadRequest.header(HEADER, f"must be 1 to {KEY_CHARS_MAX} printable characters")
    principal = call.principal
    return Slot("idempotency", principal.project, hashlib.sha256(canonical([principal.key_id, key])).hexdigest())


def _conflict(problem: str, headers: dict[str, str]) -> BadRequest:
    return BadRequest(
        f"Header {HEADER}: this key {problem}.", status=409, code="idempotency_conflict", param=HEADER, headers=headers
    )
