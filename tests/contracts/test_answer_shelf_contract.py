"""What every answer shelf guarantees: an answer is found until it expires, claimed by one caller, and bounded per project."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.answers.memory import MemoryShelf
from gateway.answers.port import AnswerShelf, Claimed, KeptAnswer, Room, ShelfUnavailable, Slot
from gateway.answers.redis import RedisShelf
from gateway.answers.sqlite import SqliteShelf
from gateway.ledger.clock import wall_clock_ms
from tests.contracts import redis_engines

DAY_MS = 86_400_000
ROOM = Room(bytes_max=5_000, answer_bytes_max=3_000)
ShelfFactory = Callable[[], AnswerShelf]


def slot(key: str = "a", project: str = "default", use: Any = "cache") -> Slot:
    return Slot(use, project, key)


def answer(body: bytes = b"{}", fingerprint: bytes = b"f") -> KeptAnswer:
    return KeptAnswer(fingerprint, b"application/json", body)


@asynccontextmanager
async def _shelf_factory(engine: str, folder: Path) -> AsyncIterator[ShelfFactory]:
    """Creates a shelf, and then others on the same data."""
    opened: list[AnswerShelf] = []

    def tracked(shelf: AnswerShelf) -> AnswerShelf:
        opened.append(shelf)
        return shelf

    if engine == "memory":
        yield lambda: tracked(MemoryShelf(ROOM, wall_clock_ms))
    elif engine == "sqlite":
        yield lambda: tracked(SqliteShelf(folder / "answers.db", ROOM, wall_clock_ms))
    else:
        url = await redis_engines.empty_server() if engine == "redis" else _OTHER_URLS[engine]()
        yield lambda: tracked(RedisShelf(url, ROOM, deadline_ms=redis_engines.LONG_DEADLINE_MS))
    for shelf in opened:
        await shelf.close()


_OTHER_URLS = {"redis-6.2": redis_engines.empty_oldest_server, "redis-cluster": redis_engines.empty_cluster}


@pytest.fixture(params=["memory", "sqlite", "redis", *_OTHER_URLS])
async def make_shelf(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ShelfFactory]:
    async with _shelf_factory(request.param, tmp_path) as make:
        yield make


@pytest.fixture
def shelf(make_shelf: ShelfFactory) -> AnswerShelf:
    return make_shelf()


async def kept_keys(shelf: AnswerShelf, *keys: str, project: str = "default") -> list[str]:
    return [key for key in keys if await shelf.find(slot(key, project)) is not None]


async def test_answer_is_returned_unchanged_until_it_expires(shelf: AnswerShelf) -> None:
    given = answer(b'\x00\xff\r\n{"a": "\xc3\xa9"}')
    assert await shelf.find(slot()) is None
    assert await shelf.keep(slot(), given, DAY_MS)
    assert await shelf.find(slot()) == given
    assert await shelf.keep(slot(), given, 1)
    await asyncio.sleep(0.05)
    assert await shelf.find(slot()) is None


async def test_answers_are_separate_by_project_and_use(shelf: AnswerShelf) -> None:
    await shelf.keep(slot(), answer(), DAY_MS)
    assert await shelf.find(slot(project="other")) is None
    assert await shelf.find(slot(project="a{b}c")) is None
    assert await shelf.find(slot(use="idempotency")) is None


async def test_earliest_expiring_answer_is_evicted_within_its_own_room_only(shelf: AnswerShelf) -> None:
    await shelf.keep(slot("stays", "other"), answer(b"x" * 1000), 1000)
    for key, ttl_ms in (("short", 2 * DAY_MS), ("shortest", DAY_MS), ("long", 3 * DAY_MS)):
        assert await shelf.keep(slot(key), answer(b"x" * 1000), ttl_ms)
    assert await kept_keys(shelf, "short", "shortest", "long") == ["short", "long"]
    assert await kept_keys(shelf, "stays", project="other") == ["stays"]
    # Replaced, it counts once, and is still the last to expire.
    await shelf.keep(slot("long"), answer(b"y" * 1000), 3 * DAY_MS)
    assert await kept_keys(shelf, "short", "long") == ["short", "long"]
    await shelf.keep(slot("new"), answer(b"x" * 3000), DAY_MS)
    assert await kept_keys(shelf, "short", "long", "new") == ["new"]


async def test_expired_answers_take_no_room(shelf: AnswerShelf) -> None:
    for number in range(10):
        await shelf.keep(slot(f"old {number}"), answer(b"x" * 1000), 1)
        await asyncio.sleep(0.01)
    await shelf.keep(slot("a"), answer(b"x" * 1000), DAY_MS)
    await shelf.keep(slot("b"), answer(b"x" * 1000), DAY_MS)
    assert await kept_keys(shelf, "a", "b") == ["a", "b"]


async def test_too_large_answer_is_not_kept_and_releases_its_claim(shelf: AnswerShelf) -> None:
    await shelf.claim(slot(), b"f", "one")
    assert not await shelf.keep(slot(), answer(b"x" * 3001), DAY_MS)
    assert await shelf.claim(slot(), b"f", "two") is None


async def test_one_of_20_concurrent_claims_succeeds(shelf: AnswerShelf) -> None:
    found = await asyncio.gather(*(shelf.claim(slot(), b"f", f"owner {n}") for n in range(20)))
    assert found.count(None) == 1
    assert found.count(Claimed(b"f")) == 19  # type: ignore[arg-type]


async def test_claim_ends_when_its_answer_is_kept(shelf: AnswerShelf) -> None:
    assert await shelf.claim(slot(), b"f", "one") is None
    assert await shelf.claim(slot(), b"f", "one") is None, "a repetition after a lost reply"
    assert await shelf.claim(slot(), b"g", "two") == Claimed(b"f")
    await shelf.renew(slot(), "one")
    await shelf.keep(slot(), answer(), DAY_MS)
    assert await shelf.claim(slot(), b"f", "two") == answer()
    await shelf.release(slot(), "one")
    assert await shelf.find(slot()) == answer()


async def test_only_the_owner_releases_a_claim(shelf: AnswerShelf) -> None:
    await shelf.claim(slot(), b"f", "one")
    await shelf.release(slot(), "two")
    await shelf.renew(slot(), "two")
    assert await shelf.claim(slot(), b"f", "two") == Claimed(b"f")
    await shelf.release(slot(), "one")
    assert await shelf.claim(slot(), b"f", "two") is None


@pytest.mark.parametrize("engine", ["sqlite", "redis", "redis-cluster"])
async def test_answers_survive_a_restart_and_stay_bounded(engine: str, tmp_path: Path) -> None:
    async with _shelf_factory(engine, tmp_path) as make:
        first = make()
        await first.keep(slot("old"), answer(b"x" * 1000), DAY_MS)
        await first.keep(slot("newer"), answer(b"x" * 1000), 2 * DAY_MS)
        await first.close()
        second = make()
        assert await second.find(slot("old")) == answer(b"x" * 1000)
        await second.keep(slot("newest"), answer(b"x" * 1000), 3 * DAY_MS)
        assert await kept_keys(second, "old", "newer", "newest") == ["newer", "newest"]


@pytest.mark.parametrize("engine", ["redis", "redis-cluster"])
async def test_claim_is_seen_by_other_processes(engine: str, tmp_path: Path) -> None:
    async with _shelf_factory(engine, tmp_path) as make:
        first, second = make(), make()
        assert await first.claim(slot(), b"f", "one") is None
        assert await second.claim(slot(), b"f", "two") == Claimed(b"f")


@pytest.mark.parametrize("renewed", [True, False])
async def test_claim_expires_unless_renewed(renewed: bool, tmp_path: Path) -> None:
    shelf = RedisShelf(
        await redis_engines.empty_server(),
        ROOM,
        deadline_ms=redis_engines.LONG_DEADLINE_MS,
        claim_ms=86_400_000 if renewed else 1,
    )
    short_claims = RedisShelf(
        await redis_engines.empty_server(), ROOM, deadline_ms=redis_engines.LONG_DEADLINE_MS, claim_ms=1_000
    )
    assert await short_claims.claim(slot(), b"f", "one") is None
    await shelf.renew(slot(), "one")  # for a day, or for a millisecond
    await asyncio.sleep(1.2)
    assert await short_claims.claim(slot(), b"f", "two") == (Claimed(b"f") if renewed else None)
    await short_claims.close()
    await shelf.close()


@pytest.mark.parametrize("old_weight", [1026, 999])
async def test_answer_replaced_before_the_old_one_was_swept_counts_once(old_weight: int) -> None:
    """When many answers expire together, one call does not sweep all of them."""
    shelf = RedisShelf(await redis_engines.empty_server(), ROOM, deadline_ms=redis_engines.LONG_DEADLINE_MS)
    room = "farebox:{default}:kept:cache:"

    async def redis(command: str, name: str, *arguments: str | int) -> Any:
        return await shelf._topology.call(room + name, command, room + name, *arguments)

    ended = [part for number in range(1000) for part in (0, f"1 {room}gone:{number}")]
    await redis("ZADD", "ends", *ended, 1, f"{old_weight} {room}answer:a")
    await redis("SET", "bytes", 1000 + old_weight)
    await shelf.keep(slot(), answer(), DAY_MS)
    await shelf.keep(slot("b"), answer(), DAY_MS)
    assert await kept_keys(shelf, "a", "b") == ["a", "b"]
    assert int(await redis("GET", "bytes")) == 2 * answer().size
    await shelf.close()


async def test_file_that_is_not_a_database_is_reported_until_it_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "answers.db").write_bytes(b"this is no database at all, and never was one" * 100)
    shelf = SqliteShelf(tmp_path / "answers.db", ROOM, wall_clock_ms)
    with pytest.raises(ShelfUnavailable, match=r"answers\.db.*may be deleted"):
        await shelf.claim(slot(), b"f", "one")
    (tmp_path / "answers.db").unlink()
    assert await shelf.claim(slot(), b"f", "two") is None, "the failed claim was left behind"
    await shelf.close()


async def test_file_of_another_version_is_recreated(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "answers.db") as other:
        other.execute("CREATE TABLE answers (anything)")
        other.execute("PRAGMA user_version = 99")
    other.close()
    shelf = SqliteShelf(tmp_path / "answers.db", ROOM, wall_clock_ms)
    assert await shelf.keep(slot(), answer(), DAY_MS)
    assert await shelf.find(slot()) == answer()
    await shelf.close()


async def test_unreachable_redis_is_not_asked_again_within_a_second() -> None:
    shelf = RedisShelf("redis://127.0.0.1:1", ROOM)
    with pytest.raises(ShelfUnavailable):
        await shelf.find(slot())
    with pytest.raises(ShelfUnavailable, match="a moment ago"):
        await shelf.find(slot())
    await shelf.close()
