"""Large calls and the other calls of the same process: how long they block the event loop, and how much is counted again.

Blocking is measured as CPU time of the loop's thread in one turn, which other processes hardly affect. The
best of three attempts counts.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.tokenizer import Tokenizer
from tests.acceptance.in_process import TAGS, ask, running_application
from tests.acceptance.serving import ProviderThread
from tests.fake_provider import FakeProvider
from tests.farebox_process import BLOCKED

BLOCKED_MS_MAX = 10.0
ATTEMPTS = 3
MEGABYTE = 1_000_000
WORDS = (
    "the",
    "people",
    "of",
    "town",
    "had",
    "little",
    "time",
    "for",
    "long",
    "words",
    "after",
    "they",
    "called",
    "tram",
)


class LoopProbe:
    """The longest turn of the event loop since `reset`, over everything that runs in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.longest_ms = 0.0
        run, own = asyncio.Handle._run, threading.get_ident()

        def timed(handle: asyncio.Handle) -> None:
            before_s = time.thread_time()
            run(handle)
            if threading.get_ident() == own:  # the provider has a loop of its own
                self.longest_ms = max(self.longest_ms, (time.thread_time() - before_s) * 1000)

        monkeypatch.setattr(asyncio.Handle, "_run", timed)

    async def blocked_ms(self, work: Any) -> float:
        await asyncio.sleep(0)  # the turn in which the caller made its body is over
        self.longest_ms = 0.0
        assert await asyncio.create_task(work) == 200
        return self.longest_ms


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with ProviderThread() as provider_thread:
        yield provider_thread


def _text(characters: int, seed: int) -> str:
    """Words and numbers that no cache has seen."""
    chance = random.Random(seed)
    words: list[str] = []
    while characters > 0:
        words.append(f"{chance.choice(WORDS)} {chance.randrange(10_000)}")
        characters -= len(words[-1]) + 1
    return " ".join(words)


def _body(messages: list[dict[str, str]]) -> bytes:
    return json.dumps({"model": "model", "messages": messages, "max_tokens": 20}).encode()


def _one_message(seed: int) -> bytes:
    return _body([{"role": "user", "content": _text(MEGABYTE, seed)}])


def _many_messages(seed: int) -> bytes:
    roles = ("user", "assistant")
    return _body([{"role": roles[at % 2], "content": _text(480, seed * 10_000 + at)} for at in range(2_000)])


@pytest.mark.parametrize("make_body", [_one_message, _many_messages])
async def test_call_of_1_mb_blocks_the_event_loop_for_less_than_10_ms(
    tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, make_body: Any
) -> None:
    async with running_application(tmp_path, provider, orchestrated=True) as application:
        await ask(application, TAGS, _body([{"role": "user", "content": "hi"}]))
        bodies = [make_body(seed) for seed in range(ATTEMPTS)]
        probe = LoopProbe(monkeypatch)
        blocked_ms = [await probe.blocked_ms(ask(application, TAGS, body)) for body in bodies]
    assert len(provider.last.raw) > MEGABYTE * 0.9
    print(blocked_ms)
    assert min(blocked_ms) < BLOCKED_MS_MAX, blocked_ms


async def test_tokenizers_of_all_configured_models_are_loaded_at_start(
    tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building a table holds the interpreter's lock, and stalls every stream in flight."""
    async with running_application(tmp_path, provider) as application:
        monkeypatch.setattr("gateway.tokenizer.build_counter", None)
        body = {"model": "older", "messages": [{"role": "user", "content": "How do trams turn?"}]}
        assert await ask(application, TAGS, json.dumps(body).encode()) == 200


async def test_only_new_messages_of_a_growing_conversation_are_counted(
    tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 turns up to half a megabyte; with everything counted on each turn it would be 25 times as much."""
    counted = 0
    count = Tokenizer._count_uncached

    def noting(tokenizer: Tokenizer, encoding: str, text: str) -> int:
        nonlocal counted
        counted += len(text)
        return count(tokenizer, encoding, text)

    monkeypatch.setattr(Tokenizer, "_count_uncached", noting)
    messages = [{"role": "system", "content": _text(4_000, 0)}]
    async with running_application(tmp_path, provider) as application:
        for turn in range(50):
            messages.append({"role": "user", "content": _text(4_700, 2 * turn + 1)})
            assert await ask(application, TAGS, _body(messages)) == 200
            messages.append({"role": "assistant", "content": _text(4_700, 2 * turn + 2)})
    written = sum(len(message["content"]) for message in messages)
    assert written > 450_000
    assert counted < 1.1 * written


BLOCKING = """
import asyncio, concurrent.futures.thread, os, socket, sqlite3, time
import tests.watched_gateway

async def each(call):
    try:
        call()
    except tests.watched_gateway.LoopBlocked as found:
        print(found)

async def main():
    for call in (lambda: open(os.devnull), lambda: time.sleep(1), lambda: socket.getaddrinfo(None, 80),
                 lambda: sqlite3.connect(":memory:"), lambda: os.fsync(1), lambda: __import__("wave")):
        await each(call)
    time.sleep(0)
    await asyncio.to_thread(lambda: open(os.devnull).close())

asyncio.run(main())
"""


def test_watched_gateway_reports_calls_that_block_the_event_loop() -> None:
    """With FAREBOX_TEST_WATCHED=1, every gateway that the tests start is watched in this way, and FareboxProcess checks the findings."""
    ran = subprocess.run([sys.executable, "-c", BLOCKING], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == ["open", "time.sleep", "socket.getaddrinfo", "sqlite3.connect", "os.fsync", "import"]
    assert ran.stderr.count(BLOCKED) == 6
