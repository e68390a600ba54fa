"""What the pipeline needs of a shelf of answers. An embedded gateway has a file, several gateways have Redis, tests have memory.

There are two uses of it, and each has its own room in every project: answers under an `Idempotency-Key`, and the exact-match
cache. When a room is full, what ends soonest makes place; nobody's answers make place for those of another project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

Use = Literal["idempotency", "cache"]
# What one entry weighs beside its body: keys, names, indexes.
ENTRY_BYTES: Final = 1024


class ShelfUnavailable(Exception):
    """The shelf cannot be reached or written now. Says why in a sentence."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an answer belongs. `key` is a digest in hex, so that its length and its characters are known."""

    use: Use
    project: str
    key: str


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer that succeeded. `fingerprint` tells the request apart from another one under the same key."""

    fingerprint: bytes
    content_type: bytes
    body: bytes

    @property
    def size(self) -> int:
        """Bytes, as a room counts them."""
        return len(self.body) + ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Claimed:
    """Somebody else is busy with it, for the request with this fingerprint."""

    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Room:
    """`bytes_max` of one use in one project; a single answer above `answer_bytes_max` is not kept at all."""

    bytes_max: int = 64 * 1024 * 1024
    answer_bytes_max: int = 8 * 1024 * 1024

    def takes(self, answer: KeptAnswer) -> bool:
        return len(answer.body) <= self.answer_bytes_max and answer.size <= self.bytes_max


class AnswerShelf(Protocol):
    """Every method may raise `ShelfUnavailable`. An `owner` is one call's id."""

    @property
    def renew_s(self) -> float | None:
        """How often an owner has to say that it is still busy; None: a claim ends with the process of its owner."""

    async def find(self, slot: Slot) -> KeptAnswer | None: ...

    async def claim(self, slot: Slot, fingerprint: bytes, owner: str) -> KeptAnswer | Claimed | None:
        """None: the owner may go ahead, and has to `keep` or `release`. Claiming again changes nothing."""

    async def renew(self, slot: Slot, owner: str) -> None: ...

    async def release(self, slot: Slot, owner: str) -> None:
        """There will be no answer. Of a claim that is another's, or none, nothing happens."""

    async def keep(self, slot: Slot, answer: KeptAnswer, ttl_ms: int) -> bool:
        """From now on the answer is found, for `ttl_ms`, and a claim on it has ended. False: it is too large to be kept."""

    async def close(self) -> None:
        """May be repeated."""
