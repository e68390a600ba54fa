"""The steps of a workflow as seen in its latest runs, with the intent and model of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import and_, func, select

from gateway.store.database import Database
from gateway.store.step_history import newest_runs
from gateway.store.tables import run_steps, runs


@dataclass(frozen=True, slots=True)
class KnownStep:
    """`intent` and `model` are empty if no call had them. `order` is the position of its first call in its latest run."""

    intent: str
    model: str
    order: int


async def of_workflow(db: Database, project: str, workflow: str, now_ms: int) -> Mapping[str, KnownStep]:
    """Step → its data in its latest run, among the 500 newest of the last 30 days. Raises StoreUnavailable."""
    newest = newest_runs([runs.c.project == project, runs.c.workflow == workflow], now_ms)
    latest = func.row_number().over(partition_by=run_steps.c.step, order_by=newest.c.last_at.desc())
    joined = newest.join(run_steps, and_(run_steps.c.project == newest.c.project, run_steps.c.run == newest.c.run))
    order = func.coalesce(run_steps.c.first_at - newest.c.first_at, 0)
    ranked = (
        select(run_steps.c.step, run_steps.c.intent, run_steps.c.model, order.label("order_ms"), latest.label("rank"))
        .select_from(joined)
        .where(run_steps.c.total_tokens > 0)
        .subquery("ranked")
    )
    columns = (ranked.c.step, ranked.c.intent, ranked.c.model, ranked.c.order_ms)
    query = select(*columns).where(ranked.c.rank == 1).order_by(ranked.c.order_ms, ranked.c.step)
    async with db.read() as connection:
        rows = await connection.execute(query)
        return {row.step: KnownStep(row.intent, row.model, position) for position, row in enumerate(rows)}
