"""After a mixed load, with and without kills of the gateway: every answer is recorded once, nothing is reserved, and no run exceeds its
budget."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.mixed_load import BUDGETS, RAISED_TOKENS, RUN_TOKENS, SETTINGS, MixedLoad, models
from tests.acceptance.serving import Served, ledger_rows, serving, store_rows
from tests.waiting import until

ROOT = Path(__file__).parents[2]
CLIENTS = 24
TTL_SECONDS = 10.0
# One in every test run; the others with `make soak`.
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 12))]


def run_reconcile(served: Served) -> subprocess.CompletedProcess[str]:
    config = served.gateway.folder / "config.yaml"
    command = [sys.executable, "-m", "gateway", "--config", str(config), "reconcile", "--url", served.gateway.url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def check_accounts(folder: Path, load: MixedLoad) -> None:
    """After a clean stop."""
    usage = store_rows(folder, "SELECT request_id, run, parent_run, overrun_tokens FROM token_usage")
    recorded = Counter(row["request_id"] for row in usage)
    assert [name for name in load.answered if name not in recorded] == []
    held = "reserved_tokens + reserved_nano_usd + reserved_requests > 0"
    assert ledger_rows(folder, f"SELECT account FROM account WHERE {held}") == []
    assert ledger_rows(folder, "SELECT id FROM reservation WHERE state = 'pending'") == []
    overruns: Counter[str] = Counter()
    for row in usage:
        overruns[row["run"]] += row["overrun_tokens"]
        overruns[row["parent_run"]] += row["overrun_tokens"]
    for row in ledger_rows(
        folder, "SELECT account, settled_tokens, override_tokens FROM account WHERE account LIKE 'run/%'"
    ):
        run = row["account"].removeprefix("run/")
        limit = RUN_TOKENS.get(run.partition("-")[0])
        if limit is not None:
            limit = row["override_tokens"] or limit
            assert limit <= RAISED_TOKENS
            assert row["settled_tokens"] - overruns[run] <= limit, run


@pytest.mark.parametrize("is_killed", [False, True], ids=["alive", "killed"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_usage_rows_and_accounts_agree_after_a_mixed_load(tmp_path: Path, seed: int, is_killed: bool) -> None:
    reservations = {"ttl_seconds": TTL_SECONDS, "sweep_seconds": 0.5}
    tiers = {"fast": ["small"], "balanced": ["mid"], "powerful": ["big"]}
    retries = {"num_retries": 1, "fallbacks": [{"mid": ["big"]}]}
    with serving(
        tmp_path,
        models=models,
        budgets=BUDGETS,
        settings=SETTINGS,
        reservations=reservations,
        tiers=tiers,
        router_settings=retries,
    ) as served:
        gateway = served.gateway
        load = MixedLoad(lambda: gateway.url, seed, is_killed)
        loading = asyncio.create_task(load.run(8.0, CLIENTS))
        while is_killed and not loading.done():
            await asyncio.sleep(3.0)
            await asyncio.to_thread(gateway.kill)
            await asyncio.to_thread(gateway.start)
        await loading
        assert load.wrong == []
        assert load.answered, load.ends
        await asyncio.to_thread(
            until, lambda: served.metric("farebox_calls_in_flight") == 0, timeout_s=30, description="calls that end"
        )
        await asyncio.sleep(TTL_SECONDS + 2 if is_killed else 0)
        reconciled = await asyncio.to_thread(run_reconcile, served)
        assert reconciled.returncode == 0, reconciled.stdout + reconciled.stderr
        assert await asyncio.to_thread(gateway.stop) == 0
        check_accounts(tmp_path, load)
