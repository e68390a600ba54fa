"""The budgets that runs share: those of their workflow, agent, key and project. Read at once for all that a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.admin.verdict import Meter, Row, of_link
from gateway.admin.visit import Visit
from gateway.budget_book import key_budgets
from gateway.budget_view import balances_of
from gateway.run_view import RunLine
from gateway.store.runs import latest_keys
from policies.budgets import Link, RunLimits, Scope, Subject, chain_for


@dataclass(frozen=True, slots=True)
class Shared:
    """Of one run. `key` is the name of the key of its latest call, empty where that had none."""

    key: str
    rows: tuple[Row, ...]

    def of(self, *scopes: str) -> list[tuple[Row, Meter]]:
        """The limits of these scopes, the fullest first."""
        found = [(row, meter) for row in self.rows if row.scope in scopes for meter in row.limited]
        return sorted(found, key=lambda one: -one[1].share)


async def shared_of(visit: Visit, lines: Sequence[RunLine]) -> dict[str, Shared]:
    """By run. A run may be called with several keys; the latest says which budget its next call is likely to meet."""
    keys = await latest_keys(visit.store, visit.project, [line.run for line in lines])
    names = {key.id: key.name for key in visit.desk.parts.control.snapshot.keys.values()}
    subjects = {
        line.run: Subject(
            visit.project, names.get(keys.get(line.run, "")), line.workflow or None, agent=line.agent or None
        )
        for line in lines
    }
    distinct = list(dict.fromkeys(subjects.values()))
    rows = dict(zip(distinct, await shared_rows(visit, distinct), strict=True))
    return {run: Shared(subject.key or "", tuple(rows[subject])) for run, subject in subjects.items()}


async def of_project(visit: Visit) -> Shared:
    (rows,) = await shared_rows(visit, [Subject(visit.project)])
    return Shared("", tuple(rows))


async def shared_rows(visit: Visit, subjects: Sequence[Subject]) -> list[list[Row]]:
    """For each subject its accounts beyond step and run, the innermost first; none while the ledger is away."""
    chains = [_links(visit, subject) for subject in subjects]
    links = {link.hold.account: link for chain in chains for link in chain}
    accounts = await balances_of(visit.desk.parts.ledger, visit.project, [[link] for link in links.values()])
    rows = {name: of_link(links[name], found[0]) for name, found in zip(links, accounts, strict=True) if found}
    return [[rows[link.hold.account] for link in chain if link.hold.account in rows] for chain in chains]


def observes(visit: Visit, workflow: str | None) -> bool:
    found = visit.desk.parts.control.snapshot.workflow(visit.project, workflow or "")
    return found is not None and found.mode == "observe"


def _links(visit: Visit, subject: Subject) -> list[Link]:
    """The accounts and limits that admission would use, the key's own limits among them."""
    keys = [key for key in visit.desk.parts.control.snapshot.keys.values() if key.name == subject.key]
    of_key = [
        one for key in keys if key.project == subject.project for one in key_budgets(key.name, key.project, key.limits)
    ]
    limits = RunLimits(observe=observes(visit, subject.workflow))
    chain = chain_for(subject, (*visit.desk.budgets(), *of_key), limits, visit.desk.parts.clock.now_ms())
    return [link for link in chain.links if link.scope not in (Scope.STEP, Scope.RUN)]
