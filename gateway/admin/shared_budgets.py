"""The budgets that runs share: those of their workflow, agent, key and project. Read together for all runs of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.admin.page_request import PageRequest
from gateway.admin.verdict import AccountRow, Meter, account_row
from gateway.budgets.balances import balances_of
from gateway.budgets.budget_book import key_budgets
from gateway.runs.view import RunLine
from gateway.store.runs import latest_keys
from policies.budgets import Link, RunLimits, Scope, Subject, chain_for


@dataclass(frozen=True, slots=True)
class SharedBudgets:
    """The names whose budgets a run uses. `key` is the name of its latest call's key; empty if that had none."""

    key: str
    rows: tuple[AccountRow, ...]

    def limits_of(self, *scopes: str) -> list[tuple[AccountRow, Meter]]:
        """The limits of these scopes, the fullest first."""
        limits = [(row, meter) for row in self.rows if row.scope in scopes for meter in row.limited]
        return sorted(limits, key=lambda one: -one[1].share)


async def load_shared_budgets(page_request: PageRequest, lines: Sequence[RunLine]) -> dict[str, SharedBudgets]:
    """By run. A run may be called with several keys; the latest says which budget its next call is likely to meet."""
    keys = await latest_keys(page_request.store, page_request.project, [line.run for line in lines])
    names = {key.id: key.name for key in page_request.services.parts.control.snapshot.keys.values()}
    subjects = {
        line.run: Subject(
            page_request.project, names.get(keys.get(line.run, "")), line.workflow or None, agent=line.agent or None
        )
        for line in lines
    }
    distinct = list(dict.fromkeys(subjects.values()))
    rows = dict(zip(distinct, await load_account_rows(page_request, distinct), strict=True))
    return {run: SharedBudgets(subject.key or "", tuple(rows[subject])) for run, subject in subjects.items()}


async def load_project_budgets(page_request: PageRequest) -> SharedBudgets:
    (rows,) = await load_account_rows(page_request, [Subject(page_request.project)])
    return SharedBudgets("", tuple(rows))


async def load_account_rows(page_request: PageRequest, subjects: Sequence[Subject]) -> list[list[AccountRow]]:
    """For each subject its accounts beyond step and run, the innermost first; none while the ledger is unreachable."""
    chains = [_shared_links(page_request, subject) for subject in subjects]
    links = {link.hold.account: link for chain in chains for link in chain}
    accounts = await balances_of(
        page_request.services.parts.ledger, page_request.project, [[link] for link in links.values()]
    )
    rows = {name: account_row(links[name], found[0]) for name, found in zip(links, accounts, strict=True) if found}
    return [[rows[link.hold.account] for link in chain if link.hold.account in rows] for chain in chains]


def is_observed(page_request: PageRequest, workflow: str | None) -> bool:
    declared = page_request.services.parts.control.snapshot.workflow(page_request.project, workflow or "")
    return declared is not None and declared.mode == "observe"


def _shared_links(page_request: PageRequest, subject: Subject) -> list[Link]:
    """The accounts and limits that admission would use, the key's own limits among them."""
    keys = [key for key in page_request.services.parts.control.snapshot.keys.values() if key.name == subject.key]
    budgets_of_key = [
        one for key in keys if key.project == subject.project for one in key_budgets(key.project, key.limits)
    ]
    limits = RunLimits(observe=is_observed(page_request, subject.workflow))
    chain = chain_for(
        subject,
        (*page_request.services.parts.budgets(), *budgets_of_key),
        limits,
        page_request.services.parts.clock.now_ms(),
    )
    return [link for link in chain.links if link.scope not in (Scope.STEP, Scope.RUN)]
