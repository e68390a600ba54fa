"""A fault at every `await` of the pipeline: the call ends, nothing stays held, and it is booked once.

The places are found in the source (`await_points`), so a new `await` is tested like all others, or is reported as never reached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Functions whose awaits no scenario reaches, with the reason.
UNREACHED = {
    "early_rungs.EarlyRungs._wait": "a ladder that waits early needs a crowd that lasts: tests/gateway/test_early_rungs.py",
    "ending.Ending.drain": "runs when the gateway stops, and not in a call",
    "idempotency.Idempotency._renew": "the first renewal comes after twenty seconds",
    "reserving.Reserving.extend": "the local allowance needs a Redis that is away: tests/faults/test_redis_outage_allowance.py",
    "reserving.Reserving.reserve": "as above",
}
# If the ledger fails with an unknown error in a settlement, only the sweeper can resolve the hold.
LEFT_TO_THE_SWEEPER = ("settlement.Settler.",)
# Before a call is known by its principal and its tags there is nothing to record.
NOT_A_CALL_YET = (" at exchange:", " at intake:")
# A settlement runs in a task of its own that is never cancelled. Cancelling it here shows that its hold is still resolved.
NEVER_CANCELLED = ("cancel at settlement:", "late at settlement:")


def run_scenarios(folder: Path, mode: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.await_scenarios", str(folder), mode],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["memory", "sqlite"])
def test_fault_at_every_await_ends_the_call_and_books_it_once(tmp_path: Path, engine: str) -> None:
    result = run_scenarios(tmp_path, "memory://" if engine == "memory" else f"sqlite:///{tmp_path}/ledger.db")
    assert result["strikes"] > 2 * result["points"], (
        "too few faults were injected: do the scenarios still reach every await?"
    )
    assert set(result["unreached"]) <= set(UNREACHED), "add a scenario that waits there"
    assert result["hung"] == []
    left = [held for held in result["held_after_call"] if not held.startswith(LEFT_TO_THE_SWEEPER)]
    assert left == [], "these kept their hold until the sweeper ran"
    assert result["held_at_end"] == []
    assert result["books"] == []
    excused = (*NOT_A_CALL_YET, *NEVER_CANCELLED)
    assert [event for event in result["events"] if not any(reason in event for reason in excused)] == []


def check_kills(result: Any) -> None:
    assert set(result["endings"]) <= {"-9", "0"}, result["endings"]
    assert result["endings"]["-9"] >= 0.9 * result["points"]
    assert result["held"] == []
    assert result["duplicates"] == 0
    assert result["mismatches"] == []


@pytest.mark.timeout(300)
def test_kill_9_at_every_twelfth_await_books_each_call_once(tmp_path: Path) -> None:
    """Every twelfth await; all of them with `make soak`. Each gateway starts on the files of the killed one."""
    check_kills(run_scenarios(tmp_path, "kill:12"))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_kill_9_at_every_await_books_each_call_once(tmp_path: Path) -> None:
    result = run_scenarios(tmp_path, "kill:1")
    check_kills(result)
    assert result["points"] > 80
    assert result["lost"] > 10, "gateways died with calls at the provider"
