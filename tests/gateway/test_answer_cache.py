"""The exact-match cache: how long an answer is kept, and what counts as the same call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.answers.memory import MemoryAnswerStorage
from gateway.answers.port import AnswerLimits
from gateway.pipeline.answer_cache import AnswerCache, CacheLookup
from gateway.pipeline.call import Call, Principal
from gateway.pipeline.exchange import Exchange
from tests.contracts.engines import ManualClock


async def sent(message: Any) -> None:
    """Discards the message."""


def exchange(headers: dict[str, str]) -> Exchange:
    raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Exchange({"path": "/", "headers": raw_headers}, None, sent)


def call(protocol_name: str = "chat") -> Call:
    protocol: Any = SimpleNamespace(name=protocol_name)
    request: Any = SimpleNamespace(model="m", body={"model": "m"})
    return Call("call-1", protocol, Principal("key_1", "ci", "default"), request)


def lookup_of(cache: AnswerCache, protocol_name: str) -> CacheLookup:
    lookup = cache.lookup(exchange({}), call(protocol_name))
    assert lookup is not None
    return lookup


@pytest.mark.parametrize(("model_ttl_s", "headers"), [(60, {}), (None, {"x-farebox-cache": "60"})])
async def test_answer_is_kept_for_the_seconds_asked_for(model_ttl_s: int | None, headers: dict[str, str]) -> None:
    clock = ManualClock()
    cache = AnswerCache(lambda model: model_ttl_s, MemoryAnswerStorage(AnswerLimits(), clock))
    answered = exchange(headers)
    lookup = cache.lookup(answered, call())
    assert lookup is not None
    await answered.answer(200, [], b"{}")
    await clock.advance(59_999)
    assert await cache.find(lookup) is not None
    await clock.advance(1)
    assert await cache.find(lookup) is None


async def test_same_body_in_another_protocol_is_another_call() -> None:
    cache = AnswerCache(lambda model: 60, MemoryAnswerStorage(AnswerLimits(), ManualClock()))
    assert lookup_of(cache, "chat").slot != lookup_of(cache, "completions").slot
