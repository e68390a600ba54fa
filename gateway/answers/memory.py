"""The in-memory twin of the other answer storages, and the claims of all engines that belong to one process."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.answers.port import AnswerLimits, Claimed, Slot, StoredAnswer


class ProcessClaims:
    """Who is working on what. Claims end with the process that would have answered."""

    def __init__(self) -> None:
        self._claims: dict[Slot, tuple[str, bytes]] = {}

    def claim(self, slot: Slot, fingerprint: bytes, owner: str) -> Claimed | None:
        claim = self._claims.setdefault(slot, (owner, fingerprint))
        return None if claim[0] == owner else Claimed(claim[1])

    def release(self, slot: Slot, owner: str) -> None:
        if self._claims.get(slot, ("",))[0] == owner:
            del self._claims[slot]

    def end(self, slot: Slot) -> None:
        self._claims.pop(slot, None)


@dataclass(slots=True)
class _StoredEntry:
    expires_ms: int
    answer: StoredAnswer


@dataclass(slots=True)
class _Answers:
    """The answers of one use in one project. `ends` may contain answers that were replaced, which are skipped."""

    size: int = 0
    stored: dict[str, _StoredEntry] = field(default_factory=dict)
    ends: list[tuple[int, str]] = field(default_factory=list)


class MemoryAnswerStorage:
    renew_s = None

    def __init__(self, limits: AnswerLimits, clock_ms: Callable[[], int]) -> None:
        self._limits = limits
        self._clock_ms = clock_ms
        self._claims = ProcessClaims()
        self._partitions: dict[tuple[str, str], _Answers] = {}

    async def find(self, slot: Slot) -> StoredAnswer | None:
        answers = self._partitions.get((slot.use, slot.project))
        stored = answers.stored.get(slot.key) if answers is not None else None
        return stored.answer if stored is not None and stored.expires_ms > self._clock_ms() else None

    async def claim(self, slot: Slot, fingerprint: bytes, owner: str) -> StoredAnswer | Claimed | None:
        return await self.find(slot) or self._claims.claim(slot, fingerprint, owner)

    async def renew(self, slot: Slot, owner: str) -> None:
        """Nothing expires here."""

    async def release(self, slot: Slot, owner: str) -> None:
        self._claims.release(slot, owner)

    async def put(self, slot: Slot, answer: StoredAnswer, ttl_ms: int) -> bool:
        self._claims.end(slot)
        if not self._limits.accepts(answer):
            return False
        now_ms = self._clock_ms()
        answers = self._partitions.setdefault((slot.use, slot.project), _Answers())
        _remove(answers, slot.key)
        while answers.ends and (answers.ends[0][0] <= now_ms or answers.size + answer.size > self._limits.bytes_max):
            expires_ms, key = heapq.heappop(answers.ends)
            if key in answers.stored and answers.stored[key].expires_ms == expires_ms:
                _remove(answers, key)
        answers.stored[slot.key] = _StoredEntry(now_ms + ttl_ms, answer)
        answers.size += answer.size
        heapq.heappush(answers.ends, (now_ms + ttl_ms, slot.key))
        return True

    async def close(self) -> None:
        self._partitions.clear()


def _remove(answers: _Answers, key: str) -> None:
    stored = answers.stored.pop(key, None)
    if stored is not None:
        answers.size -= stored.answer.size
