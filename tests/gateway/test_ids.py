"""Ids sort by time and never repeat."""

from __future__ import annotations

import itertools
import re

from gateway.ids import Ids


def test_ids_sort_by_time() -> None:
    clock = itertools.count(1_700_000_000_000)
    ids = Ids(lambda: next(clock))
    new_ids = [ids.new() for _ in range(1000)]
    assert new_ids == sorted(new_ids)
    assert all(re.fullmatch(r"[0-9a-f]{32}", new_id) for new_id in new_ids)
    assert int(new_ids[0][:12], 16) == 1_700_000_000_000


def test_ids_of_one_millisecond_are_unique() -> None:
    ids = Ids(lambda: 5)
    assert len({ids.new() for _ in range(10_000)}) == 10_000


def test_random_bytes_are_drawn_in_blocks_and_used_once() -> None:
    drawn: list[int] = []

    def chance(size: int) -> bytes:
        drawn.append(size)
        return bytes(i % 256 for i in range(size))

    ids = Ids(lambda: 0, chance)
    first = [ids.new() for _ in range(64)]
    assert drawn == [640]
    assert first[0].endswith(bytes(range(10)).hex())
    assert first[1].endswith(bytes(range(10, 20)).hex())
    ids.new()
    assert drawn == [640, 640]
