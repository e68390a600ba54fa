"""Whatever happens wherever the pipeline waits: the call ends, nothing stays held, and it is in the books once.

The places are found in the source (`await_points`), so a new `await` is struck like all others, or is reported as never reached.
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
# Functions whose waiting no scenario brings about, with the reason. Whoever adds one here says why.
UNREACHED = {
    "early_rungs.EarlyRungs._wait": "a ladder that waits early needs a crowd that lasts; tests/gateway has it",
    "handler.CallHandler.drain": "runs when the gateway stops, and not in a call",
    "idempotency.Idempotency._renew": "the first renewal comes after twenty seconds",
    "reserving.Reserving.extend": "the local allowance needs a Redis that is away: tests/faults/test_redis_outage.py",
    "reserving.Reserving.reserve": "as above",
}
# Where the ledger breaks in an unknown way while it settles, only the sweeper is left to resolve the hold.
LEFT_TO_THE_SWEEPER = ("settlement.Settler.",)
# Before a call is known by its principal and its tags there is nothing to record.
NOT_A_CALL_YET = (" at exchange:", " at intake:")
# A settlement runs in a task of its own that nobody cancels. Striking it shows that its hold is resolved all the same.
NOBODY_CANCELS = ("cancel at settlement:", "late at settlement:")


def found(folder: Path, what: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.await_scenarios", str(folder), what],
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
def test_an_error_an_outage_a_cancellation_and_a_client_that_leaves(tmp_path: Path, engine: str) -> None:
    result = found(tmp_path, "memory://" if engine == "memory" else f"sqlite:///{tmp_path}/ledger.db")
    assert result["strikes"] > 2 * result["points"], (
        "fewer faults than that struck: do the scenarios still go everywhere?"
    )
    assert set(result["unreached"]) <= set(UNREACHED), "add a scenario that waits there"
    assert result["hung"] == []
    left = [one for one in result["held_at_once"] if not one.startswith(LEFT_TO_THE_SWEEPER)]
    assert left == [], "these held on to what they had reserved until the sweeper came"
    assert result["held_at_last"] == []
    assert result["books"] == []
    excused = (*NOT_A_CALL_YET, *NOBODY_CANCELS)
    assert [one for one in result["events"] if not any(reason in one for reason in excused)] == []


def look_at(result: Any) -> None:
    assert set(result["endings"]) <= {"-9", "0"}, result["endings"]
    assert result["endings"]["-9"] >= 0.9 * result["points"]
    assert result["held"] == []
    assert result["doubled"] == 0
    assert result["wrong"] == []


@pytest.mark.timeout(300)
def test_kill_9_at_some_of_the_places(tmp_path: Path) -> None:
    """Every twelfth here; all of them with `make soak`. Each gateway starts on the files of the one that died."""
    look_at(found(tmp_path, "kill:12"))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_kill_9_at_every_place(tmp_path: Path) -> None:
    result = found(tmp_path, "kill:1")
    look_at(result)
    assert result["points"] > 80
    assert result["lost"] > 10, "gateways died with calls at the provider"
