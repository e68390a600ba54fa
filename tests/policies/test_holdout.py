from __future__ import annotations

import pytest

from policies.holdout import Arm, arm_of

RUNS = [f"run-{number}" for number in range(2000)]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_about_so_many_runs_are_held_out(share: float) -> None:
    held = sum(arm_of("default", run, share) is Arm.HOLDOUT for run in RUNS)
    assert abs(held / len(RUNS) - share) < 0.04


@pytest.mark.parametrize(("share", "arm"), [(0.0, Arm.TREATED), (1.0, Arm.HOLDOUT)])
def test_none_and_all(share: float, arm: Arm) -> None:
    assert {arm_of("default", run, share) for run in RUNS} == {arm}


def test_a_larger_share_holds_out_the_same_runs_and_more() -> None:
    few, many = ({run for run in RUNS if arm_of("default", run, share) is Arm.HOLDOUT} for share in (0.1, 0.4))
    assert few < many


def test_projects_do_not_share_their_draw() -> None:
    assert [arm_of("one", run, 0.5) for run in RUNS] != [arm_of("two", run, 0.5) for run in RUNS]
