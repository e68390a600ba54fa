"""What steps and runs used in the past: the samples for the adaptive strategy and `farebox suggest`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, Subquery, and_, func, or_, select

from gateway.store.bulk import is_in
from gateway.store.database import Database
from gateway.store.runs import runs_inside
from gateway.store.tables import run_steps, runs

DAYS: Final = 30
# The weight of samples halves every week: an agent's prompts change within weeks, not days.
HALF_LIFE_MS: Final = 7 * 86_400_000
# More samples hardly change a p95, and a step of a busy workflow has thousands.
SAMPLES_MAX: Final = 200
# The number of runs read, newest first: earlier ones weigh little. With 2,000, Postgres prefers to read every step of every
# run, which takes twelve times as long.
RUNS_MAX: Final = 500
# A run that nobody completes counts as finished after the silence that also ends an implicit run.
SILENCE_MS: Final = 900_000


@dataclass(frozen=True, slots=True)
class StepSample:
    """The tokens of one step in one finished run, or of the whole run. `weight` is 1 for now and halves every week."""

    tokens: int
    at_ms: int
    weight: float


@dataclass(frozen=True, slots=True)
class IntentModel:
    intent: str
    model: str


async def by_step(db: Database, project: str, workflow: str, now_ms: int) -> Mapping[str, tuple[StepSample, ...]]:
    """Step → its samples of the last 30 days, newest first, at most 200 each, from the 500 newest runs. Raises StoreUnavailable."""
    of_runs = [runs.c.project == project, runs.c.workflow == workflow]
    samples_by_key = await _samples(db, [run_steps.c.step], of_runs, [], now_ms)
    return {key[0]: samples for key, samples in samples_by_key.items()}


async def by_intent(db: Database, project: str, now_ms: int) -> Mapping[IntentModel, tuple[StepSample, ...]]:
    """The same by intent and model over all workflows of a project, for steps with too few samples of their own."""
    keys = [run_steps.c.intent, run_steps.c.model]
    samples_by_key = await _samples(db, keys, [runs.c.project == project], [run_steps.c.intent != ""], now_ms)
    return {IntentModel(*key): samples for key, samples in samples_by_key.items()}


async def by_run(db: Database, project: str, workflow: str, now_ms: int) -> tuple[StepSample, ...]:
    """The newest 200 finished runs of the last 30 days. Runs inside a run count with it, since they spend from its budget."""
    newest = newest_runs([runs.c.project == project, runs.c.workflow == workflow, _finished(now_ms)], now_ms)
    query = select(newest.c.run, newest.c.last_at).order_by(newest.c.last_at.desc()).limit(SAMPLES_MAX)
    async with db.read() as connection:
        last_at = {row.run: row.last_at for row in await connection.execute(query)}
        parents = await runs_inside(connection, project, list(last_at))
        is_named_run = is_in(connection, runs.c.run, list({*last_at, *parents}))
        tokens = select(runs.c.run, runs.c.total_tokens).where(runs.c.project == project, is_named_run)
        tokens_by_run = _including_runs_inside(
            {row.run: row.total_tokens for row in await connection.execute(tokens)}, parents
        )
    return tuple(
        _sample(tokens_by_run[run], at_ms, now_ms) for run, at_ms in last_at.items() if tokens_by_run.get(run, 0) > 0
    )


def _including_runs_inside(own_tokens: Mapping[str, int], parents: Mapping[str, str]) -> Mapping[str, int]:
    """The tokens of each run together with those of all runs inside it."""
    totals: dict[str, int] = defaultdict(int)
    for run, tokens in own_tokens.items():
        payers: list[str] = []
        payer: str | None = run
        while payer is not None and payer not in payers:  # headers can create cycles
            payers.append(payer)
            totals[payer] += tokens
            payer = parents.get(payer)
    return totals


def _finished(now_ms: int) -> ColumnElement[bool]:
    """A run that was cut off does not show what the work needs."""
    return or_(runs.c.state == "completed", and_(runs.c.state == "active", runs.c.last_at < now_ms - SILENCE_MS))


def _sample(tokens: int, at_ms: int, now_ms: int) -> StepSample:
    return StepSample(tokens, at_ms, 0.5 ** (max(0, now_ms - at_ms) / HALF_LIFE_MS))


async def _samples(
    db: Database,
    keys: list[Any],
    of_runs: list[ColumnElement[bool]],
    of_steps: list[ColumnElement[bool]],
    now_ms: int,
) -> dict[tuple[str, ...], tuple[StepSample, ...]]:
    samples_by_key: dict[tuple[str, ...], list[StepSample]] = defaultdict(list)
    async with db.read() as connection:
        for *key, tokens, at_ms in await connection.execute(_query(keys, of_runs, of_steps, now_ms)):
            samples_by_key[tuple(key)].append(_sample(tokens, at_ms, now_ms))
    return {key: tuple(samples) for key, samples in samples_by_key.items()}


def newest_runs(conditions: list[ColumnElement[bool]], now_ms: int) -> Subquery:
    return (
        select(runs.c.project, runs.c.run, runs.c.first_at, runs.c.last_at)
        .where(*conditions, runs.c.last_at >= now_ms - DAYS * 86_400_000)
        .order_by(runs.c.last_at.desc())
        .limit(RUNS_MAX)
        .subquery("newest")
    )


def _query(
    keys: list[Any], of_runs: list[ColumnElement[bool]], of_steps: list[ColumnElement[bool]], now_ms: int
) -> Select[Any]:
    newest = newest_runs([*of_runs, _finished(now_ms)], now_ms)
    newest_first = func.row_number().over(partition_by=keys, order_by=newest.c.last_at.desc())
    ranked = (
        select(
            *keys, run_steps.c.total_tokens.label("tokens"), newest.c.last_at.label("at_ms"), newest_first.label("rank")
        )
        .select_from(
            newest.join(run_steps, and_(run_steps.c.project == newest.c.project, run_steps.c.run == newest.c.run))
        )
        .where(*of_steps, run_steps.c.total_tokens > 0)
        .subquery("ranked")
    )
    names = [ranked.c[key.name] for key in keys]
    return select(*names, ranked.c.tokens, ranked.c.at_ms).where(ranked.c.rank <= SAMPLES_MAX).order_by(ranked.c.rank)
