from __future__ import annotations

import pytest

from policies.holdout import Arm, arm_of

RUNS = [f"run-{number}" for number in range(2000)]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_fraction_of_runs_held_out_matches_the_share(share: float) -> None:
    held = sum(arm_of("default", run, share) is Arm.HOLDOUT for run in RUNS)
    assert abs(held / len(RUNS) - share) < 0.04


@pytest.mark.parametrize(("share", "arm"), [(0.0, Arm.TREATED), (1.0, Arm.HOLDOUT)])
def test_share_of_0_holds_out_no_run_and_share_of_1_every_run(share: float, arm: Arm) -> None:
    assert {arm_of("default", run, share) for run in RUNS} == {arm}


def test_larger_share_holds_out_a_superset_of_runs() -> None:
    few, many = ({run for run in RUNS if arm_of("default", run, share) is Arm.HOLDOUT} for share in (0.1, 0.4))
    assert few < many


def test_projects_hold_out_different_runs() -> None:
    assert [arm_of("one", run, 0.5) for run in RUNS] != [arm_of("two", run, 0.5) for run in RUNS]
