from __future__ import annotations

from itertools import pairwise

import pytest

from gateway.ledger import ledger_clock
from gateway.ledger.clock import SteadyClock, wall_clock_ms
from gateway.ledger.ledger_clock import LedgerClock
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import LedgerError
from tests.waiting import eventually


class FakeWallClock:
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
def test_clock_is_monotonic_and_runs_at_half_pace_while_behind(wall: list[int], steady: list[int]) -> None:
    source = FakeWallClock(wall[0])
    clock = SteadyClock(source)
    read = []
    for now_ms in wall:
        source.now_ms = now_ms
        read.append(clock.now_ms())
    assert read == steady
    assert read == sorted(read)


def test_clock_advances_by_at_most_1_ms_per_ms_while_catching_up() -> None:
    source = FakeWallClock(100)
    clock = SteadyClock(source)
    assert clock.now_ms() == 100
    read = []
    for source.now_ms in range(40, 200):
        read.append(clock.now_ms())
    assert {after - before for before, after in pairwise(read)} == {0, 1}
    assert read[60] == 130
    assert read[-1] == 199


def test_clock_continues_from_the_time_of_an_earlier_process() -> None:
    source = FakeWallClock(1_000)
    clock = SteadyClock(source)
    clock.advance_to(5_000)
    assert clock.now_ms() == 5_000
    source.now_ms = 1_100
    assert clock.now_ms() == 5_050
    clock.advance_to(3)
    assert clock.now_ms() == 5_050


def test_wall_clock_is_in_unix_milliseconds() -> None:
    assert 1_700_000_000_000 < wall_clock_ms() < 4_200_000_000_000


class DamagedLedger(MemoryLedger):
    reads = 0

    async def now_ms(self) -> int:
        self.reads += 1
        if self.reads == 2:
            raise LedgerError("a reply that nobody expected")
        return 1_000_000 * self.reads


async def test_error_of_the_ledger_does_not_end_the_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_clock, "_INTERVAL_S", 0.01)
    clock = LedgerClock(DamagedLedger())
    await clock.start()
    assert 1_000_000 <= clock.now_ms() < 2_000_000
    await eventually(lambda: clock.now_ms() >= 3_000_000)
    await clock.stop()
