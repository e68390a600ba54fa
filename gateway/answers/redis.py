"""The answer storage that several gateways share: the Redis of their ledger, over a separate connection.

Large answers must not delay reservations on the ledger's connection. A claim expires if its owner is silent, so that a killed
gateway does not leave claims behind for long. If Redis was flushed, calls are simply made again.
"""

from __future__ import annotations

import hashlib
import time
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

from gateway.answers.port import AnswerLimits, AnswerStorageUnavailable, Claimed, Slot, StoredAnswer
from gateway.ledger.port import LedgerError
from gateway.ledger.redis_connection import Argument, RedisReplyError
from gateway.ledger.redis_errors import as_port_error
from gateway.ledger.redis_topology import make_topology, parse_url

_DEADLINE_MS: Final = 1_000  # an answer may be megabytes
_CLAIM_MS: Final = 60_000
# How long calls do without stored answers once it was out of reach, so that not each of them waits for it.
_PAUSE_S: Final = 1.0


class RedisAnswerStorage:
    """A claim ends `claim_ms` after its owner last renewed it."""

    def __init__(
        self, url: str, limits: AnswerLimits, *, deadline_ms: int = _DEADLINE_MS, claim_ms: int = _CLAIM_MS
    ) -> None:
        self.renew_s = claim_ms / 1000 / 3
        self._claim_ms = claim_ms
        self._topology = make_topology(parse_url(url), deadline_ms)
        self._limits = limits
        self._paused_until_s = 0.0

    async def find(self, slot: Slot) -> StoredAnswer | None:
        entry = _key(slot, "answer")
        fingerprint, content_type, body = await self._call(entry, "HMGET", entry, "fingerprint", "content_type", "body")
        return None if body is None else StoredAnswer(fingerprint, content_type, body)

    async def claim(self, slot: Slot, fingerprint: bytes, owner: str) -> StoredAnswer | Claimed | None:
        keys = (_key(slot, "answer"), _key(slot, "claim"))
        kind, *fields = await self._run(_CLAIM, keys, owner, fingerprint, self._claim_ms)
        if kind == b"kept":
            return StoredAnswer(*fields)
        return Claimed(fields[0]) if kind == b"claimed" else None

    async def renew(self, slot: Slot, owner: str) -> None:
        await self._run(_HOLD, (_key(slot, "claim"),), owner, self._claim_ms)

    async def release(self, slot: Slot, owner: str) -> None:
        await self._run(_HOLD, (_key(slot, "claim"),), owner, 0)

    async def put(self, slot: Slot, answer: StoredAnswer, ttl_ms: int) -> bool:
        if not self._limits.accepts(answer):
            claim = _key(slot, "claim")
            await self._call(claim, "DEL", claim)
            return False
        keys = (_key(slot, "answer"), _key(slot, "claim"), _partition_key(slot, "ends"), _partition_key(slot, "bytes"))
        content = (answer.fingerprint, answer.content_type, answer.body)
        await self._run(_KEEP, keys, *content, ttl_ms, answer.size, self._limits.bytes_max)
        return True

    async def close(self) -> None:
        await self._topology.close()

    async def _run(self, script: tuple[str, str], keys: tuple[str, ...], *arguments: Argument) -> Any:
        text, sha = script
        eval_arguments = (len(keys), *keys, *arguments)
        try:
            return await self._call(keys[0], "EVALSHA", sha, *eval_arguments)
        except RedisReplyError as reply_error:
            if reply_error.code != "NOSCRIPT":
                raise AnswerStorageUnavailable(str(as_port_error(reply_error))) from reply_error
            return await self._call(keys[0], "EVAL", text, *eval_arguments)

    async def _call(self, key: str, *arguments: Argument) -> Any:
        if time.monotonic() < self._paused_until_s:
            raise AnswerStorageUnavailable("Redis did not answer a moment ago")
        try:
            return await self._topology.call(key, *arguments)
        except RedisReplyError as reply_error:
            if reply_error.code == "NOSCRIPT":
                raise
            raise AnswerStorageUnavailable(str(as_port_error(reply_error))) from reply_error
        except LedgerError as error:
            self._paused_until_s = time.monotonic() + _PAUSE_S
            raise AnswerStorageUnavailable(str(error)) from error


def _script(name: str) -> tuple[str, str]:
    """The text and the hash by which Redis knows it."""
    text = (resources.files("gateway.answers") / "lua" / f"{name}.lua").read_text()
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_CLAIM: Final = _script("claim")
_HOLD: Final = _script("hold")
_KEEP: Final = _script("keep")


def _partition_key(slot: Slot, kind: str) -> str:
    # The hash tag of the ledger, quoted in the same way: a brace in the name would end it early.
    return f"farebox:{{{quote(slot.project, safe='._:@/-')}}}:kept:{slot.use}:{kind}"


def _key(slot: Slot, kind: str) -> str:
    return f"{_partition_key(slot, kind)}:{slot.key}"
