"""Ledger and store compared, repaired and rebuilt, with real reservations on the in-memory ledger."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import orjson
import pytest
from sqlalchemy import text

from gateway.bookkeeping import reconcile
from gateway.bookkeeping.flusher import Flusher
from gateway.bookkeeping.reconcile import Reconciliation, RunRows
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.port import EntryKind, Reserve
from gateway.store import runs as runs_store
from gateway.store import usage, usage_report
from gateway.store.bulk import ignore_conflict, insert
from gateway.store.database import Database
from gateway.store.keys import ApiKey
from gateway.store.tables import runs
from gateway.store.usage_report import GroupBy, UsageFilter
from policies.amounts import Amount, Limit
from policies.budgets import Budget, Parent, RunLimits, Scope, Subject, Window, chain_for
from policies.reservation import Demand, Gate, Granted
from tests.store_events import DAY_MS, NOW_MS, entry

pytest_plugins = ("tests.store_fixtures",)

BUDGETS = (
    Budget(Scope.WORKFLOW, Limit(tokens=10**9), window=Window.TOTAL),
    Budget(Scope.KEY, Limit(nano_usd=10**12), window=Window.MONTH),
    Budget(Scope.AGENT, Limit(requests=10**6), "ada", window=Window.DAY),
    Budget(Scope.PROJECT, Limit(tokens=10**9), window=Window.TOTAL),
)
KEY_NAMES = {"k1": "ci", "k2": "ci", "k3": "ops"}
KEYS = [ApiKey(key_id, name, "default", "", "") for key_id, name in KEY_NAMES.items()]
PARENT = {"r1": "r0", "r2": "r1"}  # run → its parent


class System:
    """A ledger, a store and a flusher; `call` does what the pipeline does."""

    def __init__(self, db: Database) -> None:
        self.ledger = MemoryLedger(clock_ms=lambda: NOW_MS)
        self.db = db
        self.flusher = Flusher(self.ledger, db, consumer="one")
        self.calls = 0

    async def call(
        self, run: str, step: str, used: Amount, key_id: str = "k1", agent: str = "ada", *, has_parent: bool = True
    ) -> str:
        self.calls += 1
        ancestors = []
        above = PARENT.get(run) if has_parent else None
        while above:
            ancestors.append(Parent(above, "wf"))
            above = PARENT.get(above)
        subject = Subject("default", KEY_NAMES[key_id], "wf", run, step, agent, tuple(ancestors))
        draft = {"workflow": "wf", "run": run, "step": step, "agent": agent, "key_id": key_id}
        if ancestors:
            draft["parent_run"] = PARENT[run]
        holds = chain_for(subject, BUDGETS, RunLimits(), await self.ledger.now_ms()).holds
        call_id = f"c{self.calls}"
        reserve = Reserve(call_id, "me", holds, Demand(10_000, 0, 0), 60_000, orjson.dumps(draft))
        assert isinstance(await self.ledger.reserve("default", reserve), Granted)
        await self.ledger.settle("default", call_id, used, b'{"status": "ok"}')
        return call_id

    async def some_calls(self) -> None:
        rng = random.Random(3)
        for _ in range(60):
            used = Amount(rng.randrange(500), rng.randrange(10**6), 1)
            names = rng.choice(["r0", "r1", "r2", "r9"]), rng.choice(["plan", "draft"])
            await self.call(*names, used, rng.choice(["k1", "k2", "k3"]), rng.choice(["ada", "bob"]))

    async def flush(self) -> bool:
        return await self.flusher.drain(10_000)

    async def check(self) -> Reconciliation:
        await self.flush()
        accounts = await reconcile.run_accounts(self.db, "default", 0)
        return await reconcile.reconcile(self.ledger, self.db, "default", accounts, self.flush)

    async def repair(self, reconciliation: Reconciliation) -> int:
        accounts = await reconcile.run_accounts(self.db, "default", 0)
        entries = await reconcile.repair(self.ledger, self.db, reconciliation, accounts)
        await self.flush()
        return len(entries)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    await database.open()
    await database.migrate(NOW_MS)
    yield System(database)
    await database.close()


async def test_usage_rows_sum_up_to_the_account_of_every_run_and_step(system: System) -> None:
    await system.some_calls()
    reconciliation = await system.check()
    assert reconciliation.checked == 4 + 8
    assert (reconciliation.drifts, reconciliation.moving, reconciliation.drift_nano_usd) == ((), (), 0)


async def test_drift_of_1_nano_usd_is_found_and_repaired_by_one_entry(system: System) -> None:
    await system.some_calls()
    call_id = await system.call("r2", "plan", Amount(10, 10, 1))
    await system.flush()
    async with system.db.begin() as connection:
        statement = "UPDATE token_usage SET cost_nano_usd = cost_nano_usd + 1 WHERE id = :id"
        await connection.execute(text(statement), {"id": call_id})
    reconciliation = await system.check()
    # The step, its run and its ancestors: each is reported with its difference.
    assert {drift.account: drift.difference for drift in reconciliation.drifts} == dict.fromkeys(
        ("step/r2/plan", "run/r2", "run/r1", "run/r0"), Amount(0, -1, 0)
    )
    assert reconciliation.drift_nano_usd == 4
    assert await system.repair(reconciliation) == 1
    assert (await system.check()).drifts == ()
    page = await usage_report.calls(system.db, UsageFilter(run="r2"))
    (row,) = [call for call in page.calls if call["status"] == "repair"]
    assert (row["step"], row["workflow"], row["cost_nano_usd"], row["requests"]) == ("plan", "wf", -1, 0)
    assert orjson.loads(row["detail"])["account"] == "step/r2/plan"
    assert await system.repair(reconciliation) == 1  # the same finding repaired again: the same id
    assert (await system.check()).drifts == ()


async def test_deleted_rows_are_repaired_once_on_every_level(system: System) -> None:
    await system.some_calls()
    await system.flush()
    async with system.db.begin() as connection:
        await connection.execute(text("DELETE FROM token_usage WHERE run IN ('r1', 'r9')"))
    reconciliation = await system.check()
    assert {drift.account for drift in reconciliation.drifts} >= {
        "run/r0",
        "run/r1",
        "run/r9",
        "step/r1/plan",
        "step/r9/draft",
    }
    assert await system.repair(reconciliation) == 4  # two steps of two runs
    again = await system.check()
    assert (again.drifts, again.moving) == ((), ())


async def test_usage_before_a_run_had_a_parent_is_not_charged_to_the_parent(system: System) -> None:
    await system.call("r2", "plan", Amount(7, 7, 1), has_parent=False)
    await system.some_calls()
    assert (await system.check()).drifts == ()
    async with system.db.begin() as connection:
        await connection.execute(text("DELETE FROM token_usage WHERE run = 'r2' AND parent_run <> ''"))
        await connection.execute(text("UPDATE token_usage SET total_tokens = 8 WHERE run = 'r2'"))
    assert await system.repair(await system.check()) > 0
    assert (await system.check()).drifts == ()


async def test_account_that_changes_during_the_check_is_no_drift(system: System) -> None:
    await system.call("r0", "plan", Amount(5, 5, 1))
    await system.flush()
    accounts = await reconcile.run_accounts(system.db, "default", 0)

    async def busy() -> bool:
        await system.call("r0", "plan", Amount(5, 5, 1))
        return await system.flush()

    reconciliation = await reconcile.reconcile(system.ledger, system.db, "default", accounts, busy)
    assert (reconciliation.drifts, set(reconciliation.moving)) == ((), {"run/r0", "step/r0/plan"})


async def test_events_in_transit_are_no_drift(system: System) -> None:
    await system.call("r0", "plan", Amount(5, 5, 1))
    await system.flush()
    await system.call("r0", "plan", Amount(5, 5, 1))
    accounts = await reconcile.run_accounts(system.db, "default", 0)

    async def elsewhere() -> bool:
        return True  # another gateway has read the entries and not committed them yet

    reconciliation = await reconcile.reconcile(system.ledger, system.db, "default", accounts, elsewhere)
    assert (reconciliation.drifts, set(reconciliation.moving)) == ((), {"run/r0", "step/r0/plan"})


async def test_run_with_33000_child_runs_is_summed(db: Database) -> None:
    await usage.insert_entries(db, [entry("a", 30, 0, run="r0"), entry("b", 70, 0, run="c0", parent_run="r0")], NOW_MS)
    names = {"project": "default", "parent_run": "r0", "first_at": NOW_MS, "last_at": NOW_MS}
    async with db.begin() as connection:
        await insert(connection, runs, [{"run": f"c{n}", **names} for n in range(33_000)], ignore_conflict)
    stored = await reconcile._stored(db, "default", {"run/r0": RunRows("r0")})
    assert stored == {"run/r0": Amount(100, 0, 2)}


async def test_drift_equals_the_dead_lettered_amount(system: System) -> None:
    await system.call("r0", "plan", Amount(5, 6, 1))
    await system.call("r0", "x" * 600, Amount(7, 8, 1))
    reconciliation = await system.check()
    assert reconciliation.parked == Amount(7, 8, 1)
    assert {drift.account: drift.difference for drift in reconciliation.drifts} == {"run/r0": Amount(7, 8, 1)}


async def test_rebuilt_ledger_has_the_balances_of_the_lost_one(system: System) -> None:
    await system.some_calls()
    await system.flush()
    lost, new = system.ledger, MemoryLedger(clock_ms=lambda: NOW_MS)
    subjects = [
        Subject("default", name, "wf", run, step, agent)
        for run in ("r0", "r1", "r2", "r9")
        for step in ("plan", "draft")
        for name in ("ci", "ops")
        for agent in ("ada", "bob")
    ]
    now_ms = await new.now_ms()
    accounts = sorted(
        {link.hold.account for subject in subjects for link in chain_for(subject, BUDGETS, RunLimits(), now_ms).links}
    )
    count = await reconcile.rebuild(partial(new.restore, "default"), system.db, "default", now_ms, BUDGETS, KEYS)
    assert count == len(accounts) == 4 + 8 + 1 + 2 + 1 + 1
    assert await new.balances("default", accounts) == await lost.balances("default", accounts)


async def test_accounts_of_limits_on_keys_are_rebuilt(system: System) -> None:
    """These limits are in no list of budgets; without this, an exhausted key would start again at zero."""
    await system.call("r0", "plan", Amount(300, 0, 1), "k1")
    await system.call("r0", "plan", Amount(20, 0, 1), "k3")
    await system.flush()
    limited = [ApiKey("k1", "ci", "default", "", "", limits={"tokens": 300}), KEYS[2]]
    new = MemoryLedger(clock_ms=lambda: NOW_MS)
    await reconcile.rebuild(partial(new.restore, "default"), system.db, "default", NOW_MS, (), limited)
    balances = await new.balances("default", ["key/ci@total", "key/ops@total"])
    assert [balance.settled.tokens for balance in balances] == [300, 0]


@pytest.mark.parametrize("charged_in_the_run", [False, True], ids=["after-a-reset", "in-an-earlier-window"])
async def test_account_with_nothing_but_a_late_refund_is_rebuilt_as_unused(
    system: System, charged_in_the_run: bool
) -> None:
    """A hold was charged yesterday, and what it had not used came back today. A negative sum stopped the whole project."""
    yesterday = NOW_MS - DAY_MS
    run = "r1" if charged_in_the_run else ""
    charged = entry("c1:lost", tokens=133, kind=EntryKind.EXPIRED, at_ms=yesterday, run=run)
    refund = entry("c1:late", tokens=-100, nano_usd=-1_000, kind=EntryKind.LATE)
    await system.ledger.record("default", [charged, refund])
    await system.flush()
    new = MemoryLedger(clock_ms=lambda: NOW_MS)
    day = Budget(Scope.AGENT, Limit(tokens=1000), "ada", window=Window.DAY)
    await reconcile.rebuild(partial(new.restore, "default"), system.db, "default", NOW_MS, [day])
    account = chain_for(Subject("default", agent="ada"), [day], RunLimits(), NOW_MS).links[0].hold.account
    balances = await new.balances("default", [account, "run/r1", "step/r1/draft"])
    assert [balance.settled.tokens for balance in balances] == [0, *([33, 33] if charged_in_the_run else [0, 0])]


async def test_gates_and_overrides_of_runs_are_rebuilt(system: System) -> None:
    await system.some_calls()
    await system.flush()
    await runs_store.set_state(system.db, "default", "r0", "cancelled", NOW_MS)
    await runs_store.set_state(system.db, "default", "r1", "paused", NOW_MS)
    own = {"budget": {"tokens": 5000, "nano_usd": None, "requests": None}}
    await runs_store.set_plan(system.db, "default", "r2", own)
    new = MemoryLedger(clock_ms=lambda: NOW_MS)
    await reconcile.rebuild(partial(new.restore, "default"), system.db, "default", NOW_MS)
    reconciliation = await new.balances("default", ["run/r0", "run/r1", "run/r2"])
    assert [balance.gate for balance in reconciliation] == [Gate.CANCELLED, Gate.PAUSED, Gate.OPEN]
    assert reconciliation[2].limit == Limit(tokens=5000)


async def test_empty_store_rebuilds_nothing(system: System) -> None:
    restore = partial(system.ledger.restore, "default")
    assert await reconcile.rebuild(restore, system.db, "default", NOW_MS, BUDGETS) == 0
    report = await usage_report.report(system.db, GroupBy.DAY, UsageFilter())
    assert report.groups == 0
