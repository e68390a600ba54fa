"""Checks whether ledger and store agree, and restores the counters of a ledger that lost them.

The sum of the usage rows of a run or step always equals what its account has settled, because both come from the same outbox
entry. `reconcile` verifies that for a set of accounts, `repair` records differences as entries of their own (kind repair),
and `rebuild` sets the counters of a ledger with a new epoch from the store's sums.

Accounts of budgets on workflows, agents, keys and projects only count from when the budget was made, so they are not compared
with all rows. They are rebuilt from all rows of their window, which errs towards having spent.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
from sqlalchemy import func, select

from gateway.budgets.budget_book import key_budgets
from gateway.ledger.batches import balances_by_account, batched
from gateway.ledger.port import EntryKind, Ledger, OutboxEntry, Restore
from gateway.store import runs as runs_store
from gateway.store import usage_report
from gateway.store.database import Database, StoreConnection
from gateway.store.keys import ApiKey
from gateway.store.runs import Sums, budget_of_plan
from gateway.store.tables import run_steps, runs, token_usage, usage_dead_letter
from gateway.store.usage_report import GroupBy, UsageFilter
from policies.amounts import UNLIMITED, ZERO, Amount, Limit
from policies.budgets import RUN_KEEP_MS, Budget, Link, RunLimits, Scope, Subject, chain_for, run_account, step_account
from policies.reservation import Gate

# How many accounts are read from the ledger in one call, and restored concurrently.
_CHUNK: Final = 200
_WINDOW_START: Final = re.compile(r"@(?:minute|hour|day|month):(\d+)$")

Flush = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class RunRows:
    """The rows that add up to a run's or a step's account. Those of child runs count for a run, but not for a step."""

    run: str
    step: str | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """An account that does not agree with its rows."""

    account: str
    booked: Amount  # what the ledger has settled
    stored: Amount  # the sum of the rows

    @property
    def difference(self) -> Amount:
        return self.booked - self.stored


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """`moving` accounts had calls settled during the check: check them again. `parked` is in `usage_dead_letter`."""

    project: str
    checked: int
    drifts: tuple[Drift, ...] = ()
    moving: tuple[str, ...] = ()
    parked: Amount = ZERO

    @property
    def drift_nano_usd(self) -> int:
        return sum(abs(drift.difference.nano_usd) for drift in self.drifts)

    @property
    def drift_tokens(self) -> int:
        return sum(abs(drift.difference.tokens) for drift in self.drifts)


async def run_accounts(db: Database, project: str, since_ms: int) -> dict[str, RunRows]:
    """The accounts of all runs and steps seen since then. The ledger forgets those older than 30 days."""
    recent = select(runs.c.run).where(runs.c.project == project, runs.c.last_at >= since_ms)
    steps = select(run_steps.c.run, run_steps.c.step).where(run_steps.c.project == project, run_steps.c.run.in_(recent))
    accounts: dict[str, RunRows] = {}
    async with db.read() as connection:
        for (run,) in await connection.execute(recent):
            accounts[run_account(run)] = RunRows(run)
        for run, step in await connection.execute(steps):
            accounts[step_account(run, step)] = RunRows(run, step)
    return accounts


async def reconcile(
    ledger: Ledger, db: Database, project: str, accounts: Mapping[str, RunRows], flush: Flush
) -> Reconciliation:
    """Compare what is booked with the sums of the rows. `flush` empties the outbox first (`Flusher.drain`).

    Raises StoreUnavailable and LedgerUnavailable.
    """
    settled_before = await _settled(ledger, project, accounts)
    is_flushed = await flush() and await ledger.outbox_size() == 0
    stored = await _stored(db, project, accounts)
    async with db.read() as connection:
        parked = await _parked(connection, project)
    settled_after = await _settled(ledger, project, accounts)
    drifts: list[str] = []
    moving: list[str] = []
    for account in accounts:
        if settled_before[account] != settled_after[account]:
            moving.append(account)
        elif stored[account] != settled_before[account]:
            # While events are on their way (another flusher has them), a difference proves nothing.
            (drifts if is_flushed else moving).append(account)
    confirmed_drifts = tuple(Drift(account, settled_before[account], stored[account]) for account in drifts)
    return Reconciliation(project, len(accounts), confirmed_drifts, tuple(moving), parked)


async def repair(
    ledger: Ledger, db: Database, reconciliation: Reconciliation, accounts: Mapping[str, RunRows]
) -> list[OutboxEntry]:
    """Make the rows agree with the ledger, with entries of kind repair through the outbox. Idempotent.

    Steps come before runs and children before parents, and each entry counts towards the accounts around it.
    """
    now_ms = await ledger.now_ms()
    planned: list[tuple[RunRows, Amount]] = []
    entries: list[OutboxEntry] = []
    async with db.read() as connection:
        runs_inside = await _inside(connection, reconciliation.project, {rows.run for rows in accounts.values()})
        families = {rows.run: {rows.run} | runs_inside.get(rows.run, set()) for rows in accounts.values()}
        for drift in sorted(reconciliation.drifts, key=lambda drift: _inner_first(accounts[drift.account], families)):
            rows = accounts[drift.account]
            already = sum((amount for other, amount in planned if _counts(other, rows, families)), ZERO)
            missing = drift.difference - already
            if missing == ZERO:
                continue
            planned.append((rows, missing))
            names = await _names_of(connection, reconciliation.project, rows)
            entries.append(_repair_entry(reconciliation.project, drift, missing, names, now_ms))
    if entries:
        await ledger.record(reconciliation.project, entries)
    return entries


async def rebuild(
    restore: Restore,
    db: Database,
    project: str,
    now_ms: int,
    budgets: Sequence[Budget] = (),
    keys: Iterable[ApiKey] = (),
) -> int:
    """Set the counters of a ledger that lost them from the store's sums: runs and steps of the last 30 days, and the accounts
    of `budgets` and of the limits of `keys` in their windows at `now_ms`. Returns how many accounts were set.

    Call it before enforced traffic continues, and after what is left of the outbox was flushed.
    """
    restored = await _run_sums(db, project, now_ms - RUN_KEEP_MS)
    restored |= await _budget_sums(db, project, budgets, {key.id: key for key in keys}, now_ms)
    # A sum is negative if a late settlement gave back more than was used since the window began, or since a reset of the run.
    ordered = [
        (name, settled.unitwise_max(ZERO), keep_ms, gate, override)
        for name, (settled, keep_ms, gate, override) in restored.items()
    ]
    for chunk in batched(ordered, _CHUNK):
        await asyncio.gather(*(restore(*account) for account in chunk))
    return len(ordered)


async def _settled(ledger: Ledger, project: str, accounts: Mapping[str, RunRows]) -> dict[str, Amount]:
    balances = await balances_by_account(ledger, project, accounts)
    return {name: balance.settled for name, balance in balances.items()}


async def _stored(db: Database, project: str, accounts: Mapping[str, RunRows]) -> dict[str, Amount]:
    """The sum of the rows of each account. Other users of the store get their turn between the chunks."""
    run_names = {rows.run for rows in accounts.values()}
    async with db.read() as connection:
        runs_inside = await _inside(connection, project, run_names)
    run_names |= {member for run in run_names for member in runs_inside.get(run, ())}
    of_step: dict[tuple[str, str], Amount] = {}
    of_run: dict[str, Amount] = defaultdict(Amount)
    # What a run spent before its parent was named was not booked on the parent.
    of_child: dict[str, Amount] = defaultdict(Amount)
    for chunk in batched(sorted(run_names), _CHUNK):
        async with db.read() as connection:
            for run, step, is_child, amount in await usage_report.amounts_of_runs(connection, project, chunk):
                of_step[run, step] = of_step.get((run, step), ZERO) + amount
                of_run[run] += amount
                if is_child:
                    of_child[run] += amount

    def amount_of(rows: RunRows) -> Amount:
        if rows.step is not None:
            return of_step.get((rows.run, rows.step), ZERO)
        return sum((of_child[member] for member in runs_inside.get(rows.run, ())), of_run[rows.run])

    return {account: amount_of(rows) for account, rows in accounts.items()}


async def _inside(connection: StoreConnection, project: str, names: Iterable[str]) -> dict[str, set[str]]:
    """Run → all runs inside it, at any depth, for those of `names` that have any."""
    parents: dict[str, str] = {}
    for chunk in batched(sorted(names), _CHUNK):
        parents |= await runs_store.runs_inside(connection, project, chunk)
    runs_inside: dict[str, set[str]] = defaultdict(set)
    for run in parents:
        for ancestor in _lineage(run, parents)[1:]:
            runs_inside[ancestor].add(run)
    return runs_inside


async def _parked(connection: StoreConnection, project: str) -> Amount:
    table = usage_dead_letter.c
    query = select(func.sum(table.total_tokens), func.sum(table.cost_nano_usd), func.sum(table.requests))
    row = (await connection.execute(query.where(table.project == project))).one()
    return Amount(*(int(value or 0) for value in row))


def _amount(sums: Sums) -> Amount:
    return Amount(sums.total_tokens, sums.cost_nano_usd, sums.requests)


def _inner_first(rows: RunRows, families: Mapping[str, set[str]]) -> tuple[bool, int, str]:
    return rows.step is None, len(families[rows.run]), rows.run


def _counts(inner: RunRows, outer: RunRows, families: Mapping[str, set[str]]) -> bool:
    """Whether a row written for `inner` counts for `outer`."""
    return inner.run in families[outer.run] if outer.step is None else inner == outer


async def _names_of(connection: StoreConnection, project: str, rows: RunRows) -> dict[str, str]:
    """The names on which all rows of the run agree, so that the repair is also in the sums by workflow, agent and key."""
    names = ("workflow", "agent", "key_id", "user", "model")
    columns = [column for name in names for column in (func.min(token_usage.c[name]), func.max(token_usage.c[name]))]
    mine = [token_usage.c.project == project, token_usage.c.run == rows.run]
    row = (await connection.execute(select(*columns).where(*mine))).one()
    agreed = {
        name: row[2 * index]
        for index, name in enumerate(names)
        if row[2 * index] and row[2 * index] == row[2 * index + 1]
    }
    # Needed even if all rows of the run were lost, because otherwise the repair would not count for the runs around it.
    parent = select(runs.c.parent_run).where(runs.c.project == project, runs.c.run == rows.run)
    agreed["parent_run"] = (await connection.execute(parent)).scalar() or ""
    return agreed | {"run": rows.run} | ({} if rows.step is None else {"step": rows.step})


def _repair_entry(project: str, drift: Drift, missing: Amount, names: Mapping[str, str], now_ms: int) -> OutboxEntry:
    # The same finding has the same id, so that concurrent repairs are idempotent.
    finding = f"{project}\n{drift.account}\n{drift.booked}\n{drift.stored}"
    return OutboxEntry(
        position="",
        id="repair:" + hashlib.sha256(finding.encode()).hexdigest()[:32],
        kind=EntryKind.REPAIR,
        project=project,
        amount=missing,
        at_ms=now_ms,
        draft=orjson.dumps(dict(names)),
        detail=orjson.dumps({"detail": {"account": drift.account, "booked": drift.booked, "stored": drift.stored}}),
    )


Restored = dict[str, tuple[Amount, int, Gate | None, Limit | None]]  # account → what `Restore` sets
_GATES: Final = {"paused": Gate.PAUSED, "completed": Gate.COMPLETED, "cancelled": Gate.CANCELLED}


async def _run_sums(db: Database, project: str, since_ms: int) -> Restored:
    """Of runs, with their descendants included, and of steps."""
    sums = ("total_tokens", "cost_nano_usd", "requests")
    recent = runs.c.project == project, runs.c.last_at >= since_ms
    columns = [runs.c[name] for name in sums]
    decided = runs.c.run, runs.c.parent_run, runs.c.state, runs.c.plan
    steps = select(run_steps.c.run, run_steps.c.step, *(run_steps.c[name] for name in sums)).where(
        run_steps.c.project == project, run_steps.c.run.in_(select(runs.c.run).where(*recent))
    )
    async with db.read() as connection:
        rows = (await connection.execute(select(*decided, *columns).where(*recent))).all()
        step_rows = (await connection.execute(steps)).all()
    own_sums = {run: Amount(*amounts) for run, _, _, _, *amounts in rows}
    parents = {run: parent for run, parent, *_ in rows}
    people = {run: (_GATES.get(state), _own_budget(plan)) for run, _, state, plan, *_ in rows}
    total_sums: dict[str, Amount] = defaultdict(Amount)
    for run, amount in own_sums.items():
        for member in _lineage(run, parents):
            total_sums[member] += amount
    restored: Restored = {
        run_account(run): (amount, RUN_KEEP_MS, *people.get(run, (None, None))) for run, amount in total_sums.items()
    }
    for run, step, *amounts in step_rows:
        restored[step_account(run, step)] = Amount(*amounts), RUN_KEEP_MS, None, None
    return restored


def _own_budget(plan: str) -> Limit | None:
    budget = budget_of_plan(orjson.loads(plan)) if plan else UNLIMITED
    return None if budget.is_unlimited else budget


def _lineage(run: str, parents: Mapping[str, str]) -> list[str]:
    """The run and its ancestors; ends in a cycle, too."""
    line: list[str] = []
    while run and run not in line:
        line.append(run)
        run = parents.get(run, "")
    return line


async def _budget_sums(
    db: Database, project: str, budgets: Sequence[Budget], keys: Mapping[str, ApiKey], now_ms: int
) -> Restored:
    filter_by_account: dict[str, tuple[UsageFilter, int]] = {}
    sharing: dict[str, set[str]] = defaultdict(set)  # accounts of keys, which keys of the same name share
    for workflow, agent, key_id in await usage_report.names_seen(db, project):
        key = keys.get(key_id)
        key_name = None if key is None else key.name
        subject = Subject(project, key_name, workflow or None, None, None, agent or None)
        of_key = key_budgets(key.project, key.limits) if key is not None else ()
        for link in chain_for(subject, (*budgets, *of_key), RunLimits(), now_ms).links:
            filter_by_account[link.hold.account] = _filter_of(link, project), link.hold.keep_ms
            if link.scope is Scope.KEY:
                sharing[link.hold.account].add(key_id)
    restored: Restored = {}
    for account, (rows, keep_ms) in filter_by_account.items():
        filters = [replace(rows, key=key_id) for key_id in sharing[account]] if account in sharing else [rows]
        totals = [
            (await usage_report.report(db, GroupBy.WORKFLOW, usage_filter, limit=1)).total for usage_filter in filters
        ]
        restored[account] = sum((_amount(total) for total in totals), ZERO), keep_ms, None, None
    return restored


def _filter_of(link: Link, project: str) -> UsageFilter:
    starts = _WINDOW_START.search(link.hold.account.removesuffix("~observe"))
    rows: dict[str, Any] = {"project": project, "from_ms": int(starts[1]) if starts else None}
    if link.scope in (Scope.WORKFLOW, Scope.AGENT):
        rows[link.scope.value] = link.scope_id
    return UsageFilter(**rows)
