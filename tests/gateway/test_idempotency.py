"""A call with an `Idempotency-Key`: its key is claimed while it runs, and freed if it fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.answers.memory import MemoryAnswerStorage
from gateway.answers.port import AnswerLimits, AnswerStorageUnavailable, Claimed, Slot, StoredAnswer
from gateway.errors import GatewayError
from gateway.pipeline.call import Call, Principal
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.idempotency import Idempotency


class FakeStorage(MemoryAnswerStorage):
    """Asks for renewals, like an engine whose claims expire, and counts them; may be unavailable."""

    renew_s = 0.01  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(AnswerLimits(), lambda: 0)
        self.renewed = 0
        self.is_away = False

    async def claim(self, slot: Slot, fingerprint: bytes, owner: str) -> StoredAnswer | Claimed | None:
        if self.is_away:
            raise AnswerStorageUnavailable("Redis did not answer in time")
        return await super().claim(slot, fingerprint, owner)

    async def renew(self, slot: Slot, owner: str) -> None:
        self.renewed += 1
        if self.renewed == 1:
            raise AnswerStorageUnavailable("once")

    async def put(self, slot: Slot, answer: StoredAnswer, ttl_ms: int) -> bool:
        if self.is_away:
            raise AnswerStorageUnavailable("Redis did not answer in time")
        return await super().put(slot, answer, ttl_ms)


async def sent(message: Any) -> None:
    """Discards the message."""


def exchange() -> Exchange:
    headers = [(b"idempotency-key", b"k")]
    return Exchange({"path": "/", "headers": headers}, None, sent)


def call(number: int = 1) -> Call:
    principal = Principal("key_1", "ci", "default")
    protocol: Any = SimpleNamespace(name="chat")
    request: Any = SimpleNamespace(body={"model": "m"})
    return Call(f"call-{number}", protocol, principal, request)


async def test_claim_is_renewed_while_the_call_lasts_even_after_a_failed_renewal() -> None:
    storage = FakeStorage()
    async with Idempotency(storage, keep_ms=1000).once(exchange(), call()) as kept_answer:
        assert kept_answer is None
        async with asyncio.timeout(10):
            while storage.renewed < 3:
                await asyncio.sleep(0.01)
    renewed = storage.renewed
    await asyncio.sleep(0.05)
    assert storage.renewed == renewed


async def test_failed_call_frees_its_key() -> None:
    storage = FakeStorage()
    idempotency = Idempotency(storage, keep_ms=1000)
    with pytest.raises(GatewayError, match="refused"):
        async with idempotency.once(exchange(), call()):
            raise GatewayError("refused")
    async with idempotency.once(exchange(), call(2)) as kept_answer:
        assert kept_answer is None


async def test_answer_is_kept_before_the_call_ends() -> None:
    storage = FakeStorage()
    idempotency = Idempotency(storage, keep_ms=1000)
    first = exchange()
    async with idempotency.once(first, call()):
        await first.answer(200, [(b"content-type", b"application/json")], b"{}")
        async with idempotency.once(exchange(), call(2)) as kept_answer:
            assert kept_answer is not None
            assert kept_answer.body == b"{}"


async def test_outage_while_keeping_loses_only_the_kept_answer() -> None:
    storage = FakeStorage()
    idempotency = Idempotency(storage, keep_ms=1000)
    answered = exchange()
    async with idempotency.once(answered, call()):
        storage.is_away = True
        await answered.answer(200, [], b"{}")
    assert answered.is_answered
    with pytest.raises(GatewayError) as away:
        async with idempotency.once(exchange(), call(2)):
            pass
    assert (away.value.status, away.value.code) == (503, "idempotency_unavailable")
