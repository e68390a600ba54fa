from __future__ import annotations

from itertools import pairwise

import pytest

from gateway.ledger.clock import SteadyClock, wall_clock_ms


class Wall:
    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@pytest.mark.parametrize(
    ("wall", "steady"),
    [
        pytest.param([10, 10, 15, 40], [10, 10, 15, 40], id="follows"),
        pytest.param([100, 40, 50, 80, 220], [100, 100, 105, 120, 220], id="half-pace-while-behind"),
        pytest.param([100, 40, 50, 20, 60, 70], [100, 100, 105, 105, 125, 130], id="set-back-twice"),
        pytest.param([100, 99, 100, 101, 102], [100, 100, 100, 101, 102], id="a-tick-back"),
    ],
)
def test_never_goes_back_and_never_stands_still(wall: list[int], steady: list[int]) -> None:
    source = Wall(wall[0])
    clock = SteadyClock(source)
    told = []
    for now_ms in wall:
        source.now_ms = now_ms
        told.append(clock.now_ms())
    assert told == steady
    assert told == sorted(told)


def test_catches_up_ms_by_ms() -> None:
    source = Wall(100)
    clock = SteadyClock(source)
    assert clock.now_ms() == 100
    told = []
    for source.now_ms in range(40, 200):
        told.append(clock.now_ms())
    assert {after - before for before, after in pairwise(told)} == {0, 1}
    assert told[60] == 130
    assert told[-1] == 199


def test_takes_over_the_time_of_an_earlier_process() -> None:
    source = Wall(1_000)
    clock = SteadyClock(source)
    clock.advance_to(5_000)
    assert clock.now_ms() == 5_000
    source.now_ms = 1_100
    assert clock.now_ms() == 5_050
    clock.advance_to(3)
    assert clock.now_ms() == 5_050


def test_the_wall_clock_is_in_this_century() -> None:
    assert 1_700_000_000_000 < wall_clock_ms() < 4_200_000_000_000
