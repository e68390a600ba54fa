"""The balances of budgets on workflows, agents, keys and projects in their current windows.

The names that a budget has met come from the sums by day; its accounts come from the same function that admits calls, so the
figures here are those that decide there. If several budgets share an account, each is shown against its own limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.ledger.batches import balances_by_account
from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.store.database import Database
from gateway.store.usage_report import names_seen
from gateway.timestamps import iso
from policies.amounts import UNITS, usd
from policies.budgets import Budget, Link, RunLimits, Scope, Subject, chain_for
from policies.reservation import Balance

# The fullest are shown first; nobody looks at more for one budget.
ACCOUNTS_MAX: Final = 100
_GLOB: Final = frozenset("*?[")
_OUTER: Final = (Scope.WORKFLOW, Scope.AGENT, Scope.KEY, Scope.PROJECT)
# What calls of the project named, by scope. An account depends only on the name of its own scope, so a subject needs no other one.
_UsedNames = Mapping[Scope, Sequence[Subject]]


@dataclass(frozen=True, slots=True)
class BudgetAccount:
    """Limits are those of the given link, for a budget its own. Null if there is none."""

    scope_id: str
    account: str
    tokens_limit: int | None
    tokens_settled: int
    tokens_reserved: int
    tokens_remaining: int | None
    usd_limit: float | None
    usd_settled: float
    usd_reserved: float
    usd_remaining: float | None
    requests_limit: int | None
    requests_settled: int
    requests_reserved: int
    requests_remaining: int | None
    used: float | None  # the largest share of any limit that is settled or reserved
    resets_at: str | None


async def accounts_of(
    db: Database,
    project: str,
    budgets: Sequence[Budget],
    key_names: Mapping[str, str],
    now_ms: int,
) -> list[list[Link]]:
    """For each given budget its current accounts; none for budgets on runs and steps. Raises StoreUnavailable."""
    used_names = (
        await _used_names_of(db, project, key_names) if any(budget.scope in _OUTER for budget in budgets) else {}
    )
    return [_links(budget, project, used_names, now_ms) for budget in budgets]


async def balances_of(ledger: Ledger, project: str, links: Sequence[Sequence[Link]]) -> list[tuple[BudgetAccount, ...]]:
    """The accounts with their balances; empty while the ledger cannot be reached."""
    names = dict.fromkeys(link.hold.account for chain_links in links for link in chain_links)
    try:
        balance_by_account = await balances_by_account(ledger, project, names)
    except LedgerUnavailable:
        return [() for _ in links]
    return [
        _fullest(_account(link, balance_by_account[link.hold.account]) for link in chain_links) for chain_links in links
    ]


def _links(budget: Budget, project: str, used_names: _UsedNames, now_ms: int) -> list[Link]:
    if budget.scope not in _OUTER:
        return []
    links: dict[str, Link] = {}
    for subject in _subjects_of(budget, project, used_names):
        for link in chain_for(subject, [budget], RunLimits(), now_ms).links:
            links.setdefault(link.hold.account, link)
    return list(links.values())


def _subjects_of(budget: Budget, project: str, used_names: _UsedNames) -> list[Subject]:
    """The subjects that the budget applies to: those that were seen, and the one that it names."""
    subjects = [subject for subject in used_names[budget.scope] if budget.applies_to(subject)]
    if budget.scope is not Scope.PROJECT and not _GLOB & set(budget.match) and budget.project in (None, project):
        subjects.append(_named(budget.scope, budget.match, project))
    return subjects


def _named(scope: Scope, name: str, project: str) -> Subject:
    if scope is Scope.WORKFLOW:
        return Subject(project, workflow=name)
    return Subject(project, agent=name) if scope is Scope.AGENT else Subject(project, key=name)


async def _used_names_of(db: Database, project: str, key_names: Mapping[str, str]) -> _UsedNames:
    rows = await names_seen(db, project)
    names = {
        Scope.WORKFLOW: {workflow for workflow, _, _ in rows if workflow},
        Scope.AGENT: {agent for _, agent, _ in rows if agent},
        Scope.KEY: {key_names[key] for _, _, key in rows if key in key_names},
    }
    subjects = {
        scope: [_named(scope, name, project) for name in sorted(scope_names)] for scope, scope_names in names.items()
    }
    return {**subjects, Scope.PROJECT: [Subject(project)]}


def _fullest(accounts: Iterable[BudgetAccount]) -> tuple[BudgetAccount, ...]:
    return tuple(sorted(accounts, key=lambda account: (-(account.used or 0.0), account.scope_id))[:ACCOUNTS_MAX])


def _account(link: Link, balance: Balance) -> BudgetAccount:
    limit = link.hold.limit.replaced_by(balance.limit)
    settled, reserved = balance.settled, balance.reserved
    in_use = settled + reserved
    limits = {unit: limit_value for unit in UNITS if (limit_value := limit.of(unit)) is not None}
    remaining = {unit: limit_value - in_use.of(unit) for unit, limit_value in limits.items()}
    shares = [in_use.of(unit) / limit_value if limit_value else 1.0 for unit, limit_value in limits.items()]
    remaining_nano_usd = remaining.get("nano_usd")
    return BudgetAccount(
        scope_id=link.scope_id,
        account=link.hold.account,
        tokens_limit=limit.tokens,
        tokens_settled=settled.tokens,
        tokens_reserved=reserved.tokens,
        tokens_remaining=remaining.get("tokens"),
        usd_limit=None if limit.nano_usd is None else usd(limit.nano_usd),
        usd_settled=usd(settled.nano_usd),
        usd_reserved=usd(reserved.nano_usd),
        usd_remaining=None if remaining_nano_usd is None else usd(remaining_nano_usd),
        requests_limit=limit.requests,
        requests_settled=settled.requests,
        requests_reserved=reserved.requests,
        requests_remaining=remaining.get("requests"),
        used=round(max(shares), 4) if shares else None,
        resets_at=iso(link.resets_at_ms),
    )
