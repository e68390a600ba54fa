"""Resets what a run has used to zero, without losing a token from any other sum. Its calls stay counted and listed.

For every step, an entry of kind repair takes its figures out of the run, and a second one books the same figures to its
workflow and agent without a run. So the rows of the run still add up to what its accounts have settled, which is zero, and
all other totals are unchanged. Budgets of workflows, agents, keys and projects are not touched, because that money is spent.
"""

from __future__ import annotations

import orjson

from gateway.ledger.port import EntryKind, Ledger, OutboxEntry
from gateway.store.runs import Run, RunStep, Sums
from policies.amounts import ZERO, Amount
from policies.budgets import RUN_KEEP_MS, run_account, step_account


async def reset_figures(ledger: Ledger, run: Run, reset_id: str, now_ms: int) -> list[OutboxEntry]:
    """The run must be gated and without holds. Entries are written first: if it fails after them, `farebox reconcile` reports it."""
    accounts = [run_account(run.run), *(step_account(run.run, step.step) for step in run.steps)]
    run_balance, *by_step = await ledger.balances(run.project, accounts)
    entries: list[OutboxEntry] = []
    unassigned = run_balance.settled
    for step, balance in zip(run.steps, by_step, strict=True):
        unassigned -= balance.settled
        entries += _moved(run, step, balance.settled, f"{reset_id}:{len(entries)}", now_ms)
    entries += _moved(run, None, unassigned, f"{reset_id}:{len(entries)}", now_ms)
    if entries:
        await ledger.record(run.project, entries)
    for account in accounts:
        await ledger.restore(run.project, account, ZERO, RUN_KEEP_MS)
    return entries


def _moved(run: Run, step: RunStep | None, amount: Amount, entry_id: str, now_ms: int) -> list[OutboxEntry]:
    """The pair of entries: out of the run, and back under the same names without it."""
    if amount == ZERO:
        return []
    names: dict[str, str | int] = {
        "workflow": run.workflow,
        "agent": run.agent,
        "step": "" if step is None else step.step,
    }
    sums = Sums() if step is None else step.sums
    counts = {name: getattr(sums, name) for name in ("input_tokens", "output_tokens", "saved_tokens", "saved_nano_usd")}
    out = names | {"run": run.run} | {name: -count for name, count in counts.items()}
    overrun = Amount(sums.overrun_tokens, sums.overrun_nano_usd)
    return [
        _entry(run, f"reset:{entry_id}:out", ZERO - amount, ZERO - overrun, out, now_ms),
        _entry(run, f"reset:{entry_id}:back", amount, overrun, names | counts, now_ms),
    ]


def _entry(
    run: Run, entry_id: str, amount: Amount, overrun: Amount, event: dict[str, str | int], now_ms: int
) -> OutboxEntry:
    detail = orjson.dumps({"detail": {"reset": run.run}})
    draft = orjson.dumps(event)
    return OutboxEntry("", entry_id, EntryKind.REPAIR, run.project, amount, now_ms, draft, detail, overrun)
