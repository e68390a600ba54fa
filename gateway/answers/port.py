"""The port for stored answers. An embedded gateway has a file, several gateways have Redis, tests have memory.

There are two uses, each with its own limits in every project: answers under an `Idempotency-Key`, and the exact-match cache. A
full storage evicts what expires soonest; no project's answers evict those of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

Use = Literal["idempotency", "cache"]
# The size of an entry besides its body: keys, names, indexes.
ENTRY_BYTES: Final = 1024


class AnswerStorageUnavailable(Exception):
    """The storage cannot be reached or written now. The message says why."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of an answer. `key` is a digest in hex, so that its length and characters are known."""

    use: Use
    project: str
    key: str


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A successful answer. `fingerprint` distinguishes its request from another one under the same key."""

    fingerprint: bytes
    content_type: bytes
    body: bytes

    @property
    def size(self) -> int:
        """The bytes that count against the limit."""
        return len(self.body) + ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Claimed:
    """Another owner is working on it, for the request with this fingerprint."""

    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """`bytes_max` for one use in one project. A single answer above `answer_bytes_max` is not kept."""

    bytes_max: int = 64 * 1024 * 1024
    answer_bytes_max: int = 8 * 1024 * 1024

    def accepts(self, answer: StoredAnswer) -> bool:
        return len(answer.body) <= self.answer_bytes_max and answer.size <= self.bytes_max


class AnswerStorage(Protocol):
    """Every method may raise `AnswerStorageUnavailable`. An `owner` is the id of a call."""

    @property
    def renew_s(self) -> float | None:
        """How often an owner has to renew its claim; None: claims end with their owner's process."""

    async def find(self, slot: Slot) -> StoredAnswer | None: ...

    async def claim(self, slot: Slot, fingerprint: bytes, owner: str) -> StoredAnswer | Claimed | None:
        """None: the caller owns the claim, and has to `put` or `release`. Claiming again changes nothing."""

    async def renew(self, slot: Slot, owner: str) -> None: ...

    async def release(self, slot: Slot, owner: str) -> None:
        """There will be no answer. Does nothing unless the owner has the claim."""

    async def put(self, slot: Slot, answer: StoredAnswer, ttl_ms: int) -> bool:
        """Store the answer for `ttl_ms`, and end the claim on it. False: it is too large to be kept."""

    async def close(self) -> None:
        """May be repeated."""
