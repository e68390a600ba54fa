"""What every answer storage guarantees: an answer is found until it expires, claimed by one caller, and bounded per project."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.answers.memory import MemoryAnswerStorage
from gateway.answers.port import AnswerLimits, AnswerStorage, AnswerStorageUnavailable, Claimed, Slot, StoredAnswer
from gateway.answers.redis import RedisAnswerStorage
from gateway.answers.sqlite import SqliteAnswerStorage
from gateway.ledger.clock import wall_clock_ms
from tests.contracts import redis_engines

DAY_MS = 86_400_000
LIMITS = AnswerLimits(bytes_max=5_000, answer_bytes_max=3_000)
StorageFactory = Callable[[], AnswerStorage]


def slot(key: str = "a", project: str = "default", use: Any = "cache") -> Slot:
    return Slot(use, project, key)


def answer(body: bytes = b"{}", fingerprint: bytes = b"f") -> StoredAnswer:
    return StoredAnswer(fingerprint, b"application/json", body)


@asynccontextmanager
async def _storage_factory(engine: str, folder: Path) -> AsyncIterator[StorageFactory]:
    """Creates a storage, and then others on the same data."""
    opened: list[AnswerStorage] = []

    def tracked(storage: AnswerStorage) -> AnswerStorage:
        opened.append(storage)
        return storage

    if engine == "memory":
        yield lambda: tracked(MemoryAnswerStorage(LIMITS, wall_clock_ms))
    elif engine == "sqlite":
        yield lambda: tracked(SqliteAnswerStorage(folder / "answers.db", LIMITS, wall_clock_ms))
    else:
        url = await redis_engines.empty_server() if engine == "redis" else _OTHER_URLS[engine]()
        yield lambda: tracked(RedisAnswerStorage(url, LIMITS, deadline_ms=redis_engines.LONG_DEADLINE_MS))
    for storage in opened:
        await storage.close()


_OTHER_URLS = {"redis-6.2": redis_engines.empty_oldest_server, "redis-cluster": redis_engines.empty_cluster}


@pytest.fixture(params=["memory", "sqlite", "redis", *_OTHER_URLS])
async def make_storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageFactory]:
    async with _storage_factory(request.param, tmp_path) as make:
        yield make


@pytest.fixture
def storage(make_storage: StorageFactory) -> AnswerStorage:
    return make_storage()


async def stored_keys(storage: AnswerStorage, *keys: str, project: str = "default") -> list[str]:
    return [key for key in keys if await storage.find(slot(key, project)) is not None]


async def test_answer_is_returned_unchanged_until_it_expires(storage: AnswerStorage) -> None:
    stored = answer(b'\x00\xff\r\n{"a": "\xc3\xa9"}')
    assert await storage.find(slot()) is None
    assert await storage.put(slot(), stored, DAY_MS)
    assert await storage.find(slot()) == stored
    assert await storage.put(slot(), stored, 1)
    await asyncio.sleep(0.05)
    assert await storage.find(slot()) is None


async def test_answers_are_separate_by_project_and_use(storage: AnswerStorage) -> None:
    await storage.put(slot(), answer(), DAY_MS)
    assert await storage.find(slot(project="other")) is None
    assert await storage.find(slot(project="a{b}c")) is None
    assert await storage.find(slot(use="idempotency")) is None


async def test_earliest_expiring_answer_is_evicted_within_its_own_limit_only(storage: AnswerStorage) -> None:
    await storage.put(slot("stays", "other"), answer(b"x" * 1000), 1000)
    for key, ttl_ms in (("short", 2 * DAY_MS), ("shortest", DAY_MS), ("long", 3 * DAY_MS)):
        assert await storage.put(slot(key), answer(b"x" * 1000), ttl_ms)
    assert await stored_keys(storage, "short", "shortest", "long") == ["short", "long"]
    assert await stored_keys(storage, "stays", project="other") == ["stays"]
    # Replaced, it counts once, and is still the last to expire.
    await storage.put(slot("long"), answer(b"y" * 1000), 3 * DAY_MS)
    assert await stored_keys(storage, "short", "long") == ["short", "long"]
    await storage.put(slot("new"), answer(b"x" * 3000), DAY_MS)
    assert await stored_keys(storage, "short", "long", "new") == ["new"]


async def test_expired_answers_take_no_space(storage: AnswerStorage) -> None:
    for number in range(10):
        await storage.put(slot(f"old {number}"), answer(b"x" * 1000), 1)
        await asyncio.sleep(0.01)
    await storage.put(slot("a"), answer(b"x" * 1000), DAY_MS)
    await storage.put(slot("b"), answer(b"x" * 1000), DAY_MS)
    assert await stored_keys(storage, "a", "b") == ["a", "b"]


async def test_too_large_answer_is_not_kept_and_releases_its_claim(storage: AnswerStorage) -> None:
    await storage.claim(slot(), b"f", "one")
    assert not await storage.put(slot(), answer(b"x" * 3001), DAY_MS)
    assert await storage.claim(slot(), b"f", "two") is None


async def test_one_of_20_concurrent_claims_succeeds(storage: AnswerStorage) -> None:
    claims = await asyncio.gather(*(storage.claim(slot(), b"f", f"owner {n}") for n in range(20)))
    assert claims.count(None) == 1
    assert claims.count(Claimed(b"f")) == 19


async def test_claim_ends_when_its_answer_is_kept(storage: AnswerStorage) -> None:
    assert await storage.claim(slot(), b"f", "one") is None
    assert await storage.claim(slot(), b"f", "one") is None, "a repetition after a lost reply"
    assert await storage.claim(slot(), b"g", "two") == Claimed(b"f")
    await storage.renew(slot(), "one")
    await storage.put(slot(), answer(), DAY_MS)
    assert await storage.claim(slot(), b"f", "two") == answer()
    await storage.release(slot(), "one")
    assert await storage.find(slot()) == answer()


async def test_only_the_owner_releases_a_claim(storage: AnswerStorage) -> None:
    await storage.claim(slot(), b"f", "one")
    await storage.release(slot(), "two")
    await storage.renew(slot(), "two")
    assert await storage.claim(slot(), b"f", "two") == Claimed(b"f")
    await storage.release(slot(), "one")
    assert await storage.claim(slot(), b"f", "two") is None


@pytest.mark.parametrize("engine", ["sqlite", "redis", "redis-cluster"])
async def test_answers_survive_a_restart_and_stay_bounded(engine: str, tmp_path: Path) -> None:
    async with _storage_factory(engine, tmp_path) as make:
        first = make()
        await first.put(slot("old"), answer(b"x" * 1000), DAY_MS)
        await first.put(slot("newer"), answer(b"x" * 1000), 2 * DAY_MS)
        await first.close()
        second = make()
        assert await second.find(slot("old")) == answer(b"x" * 1000)
        await second.put(slot("newest"), answer(b"x" * 1000), 3 * DAY_MS)
        assert await stored_keys(second, "old", "newer", "newest") == ["newer", "newest"]


@pytest.mark.parametrize("engine", ["redis", "redis-cluster"])
async def test_claim_is_seen_by_other_processes(engine: str, tmp_path: Path) -> None:
    async with _storage_factory(engine, tmp_path) as make:
        first, second = make(), make()
        assert await first.claim(slot(), b"f", "one") is None
        assert await second.claim(slot(), b"f", "two") == Claimed(b"f")


@pytest.mark.parametrize("renewed", [True, False])
async def test_claim_expires_unless_renewed(renewed: bool, tmp_path: Path) -> None:
    storage = RedisAnswerStorage(
        await redis_engines.empty_server(),
        LIMITS,
        deadline_ms=redis_engines.LONG_DEADLINE_MS,
        claim_ms=86_400_000 if renewed else 1,
    )
    short_claims = RedisAnswerStorage(
        await redis_engines.empty_server(), LIMITS, deadline_ms=redis_engines.LONG_DEADLINE_MS, claim_ms=1_000
    )
    assert await short_claims.claim(slot(), b"f", "one") is None
    await storage.renew(slot(), "one")  # for a day, or for a millisecond
    await asyncio.sleep(1.2)
    assert await short_claims.claim(slot(), b"f", "two") == (Claimed(b"f") if renewed else None)
    await short_claims.close()
    await storage.close()


@pytest.mark.parametrize("old_weight", [1026, 999])
async def test_answer_replaced_before_the_old_one_was_swept_counts_once(old_weight: int) -> None:
    """When many answers expire together, one call does not sweep all of them."""
    storage = RedisAnswerStorage(await redis_engines.empty_server(), LIMITS, deadline_ms=redis_engines.LONG_DEADLINE_MS)
    limits = "farebox:{default}:kept:cache:"

    async def redis(command: str, name: str, *arguments: str | int) -> Any:
        return await storage._topology.call(limits + name, command, limits + name, *arguments)

    ended = [part for number in range(1000) for part in (0, f"1 {limits}gone:{number}")]
    await redis("ZADD", "ends", *ended, 1, f"{old_weight} {limits}answer:a")
    await redis("SET", "bytes", 1000 + old_weight)
    await storage.put(slot(), answer(), DAY_MS)
    await storage.put(slot("b"), answer(), DAY_MS)
    assert await stored_keys(storage, "a", "b") == ["a", "b"]
    assert int(await redis("GET", "bytes")) == 2 * answer().size
    await storage.close()


async def test_file_that_is_not_a_database_is_reported_until_it_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "answers.db").write_bytes(b"this is no database at all, and never was one" * 100)
    storage = SqliteAnswerStorage(tmp_path / "answers.db", LIMITS, wall_clock_ms)
    with pytest.raises(AnswerStorageUnavailable, match=r"answers\.db.*may be deleted"):
        await storage.claim(slot(), b"f", "one")
    (tmp_path / "answers.db").unlink()
    assert await storage.claim(slot(), b"f", "two") is None, "the failed claim was left behind"
    await storage.close()


async def test_file_of_another_version_is_recreated(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "answers.db") as other:
        other.execute("CREATE TABLE answers (anything)")
        other.execute("PRAGMA user_version = 99")
    other.close()
    storage = SqliteAnswerStorage(tmp_path / "answers.db", LIMITS, wall_clock_ms)
    assert await storage.put(slot(), answer(), DAY_MS)
    assert await storage.find(slot()) == answer()
    await storage.close()


async def test_unreachable_redis_is_not_asked_again_within_a_second() -> None:
    storage = RedisAnswerStorage("redis://127.0.0.1:1", LIMITS)
    with pytest.raises(AnswerStorageUnavailable):
        await storage.find(slot())
    with pytest.raises(AnswerStorageUnavailable, match="a moment ago"):
        await storage.find(slot())
    await storage.close()
