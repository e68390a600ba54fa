"""The parts of a gateway, each made once from its configuration. `gateway.app` joins them to a pipeline and starts them."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.bookkeeping.flusher import Flusher
from gateway.bookkeeping.rebuilding import Rebuilding
from gateway.bookkeeping.recorder import BatchRecorder
from gateway.budgets.budget_book import BudgetBook
from gateway.config.conversion import pool_settings_of
from gateway.config.schema import Config
from gateway.control import Control
from gateway.ids import Ids, process_name
from gateway.ledger.clock import wall_clock_ms
from gateway.ledger.ledger_clock import LedgerClock
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.outage import OutageLedger
from gateway.ledger.port import Ledger
from gateway.ledger.spool import Spool
from gateway.ledger.sqlite import SqliteLedger
from gateway.loopback import is_loopback
from gateway.observability.alerts import Alerts
from gateway.observability.logs import redactor, secrets_of
from gateway.observability.telemetry import Telemetry
from gateway.orchestration import Orchestration
from gateway.orchestration.assembly import make_orchestration
from gateway.orchestration.model_calls import ModelCalls
from gateway.pipeline.concurrency import ConcurrencyLimits
from gateway.pipeline.intake import OpenTo
from gateway.pricebook import PriceBook
from gateway.runs.registry import RunRegistry
from gateway.store.database import Database
from gateway.tokenizer import Tokenizer
from gateway.tracing.switch import NoTracing, make_tracing
from gateway.upstream.deployments import DeploymentPool
from gateway.upstream.direct import DirectLane
from gateway.upstream.dispatch import Forwarder
from gateway.upstream.litellm_lane import LiteLLMLane
from gateway.upstream.mock import MockLane
from gateway.upstream.model_list import deployments_of
from gateway.upstream.port import Deployment
from gateway.upstream.price_map import PriceMap, installed_price_map
from gateway.upstream.wildcards import STAR, Wildcards


@dataclass(slots=True)
class Parts:
    """The parts that the control API, the UI and the CLI work with."""

    config: Config
    store: Database
    ledger: Ledger
    rebuilding: Rebuilding
    control: Control
    flusher: Flusher
    pool: DeploymentPool
    prices: PriceBook
    telemetry: Telemetry
    tracing: NoTracing
    tokenizer: Tokenizer
    orchestration: Orchestration
    runs: RunRegistry
    budgets: BudgetBook
    concurrency: ConcurrencyLimits
    recorder: BatchRecorder
    alerts: Alerts
    forwarder: Forwarder
    deployments: tuple[Deployment, ...]
    clock: LedgerClock
    ids: Ids
    open_to: OpenTo  # who may call without a key, while there is none


def make_parts(config: Config, environment: MutableMapping[str, str], allow_anonymous: bool) -> Parts:
    ids, price_map = Ids(wall_clock_ms), PriceMap(installed_price_map())
    deployments = deployments_of([entry for entry in config.model_list if STAR not in entry.model_name], price_map)
    tracing = make_tracing(config.tracing, process_name())
    store, telemetry, tokenizer = Database(config.storage.store), tracing.telemetry(), Tokenizer()
    control = Control(store, config.settings)
    budgets = BudgetBook(config.budgets, lambda: control.snapshot)
    rebuilding = Rebuilding(store, budgets=budgets, snapshot=lambda: control.snapshot, clock_ms=wall_clock_ms)
    ledger = make_ledger(config, rebuilding)
    flusher = Flusher(ledger, store, consumer=process_name(), outbox_cap=config.storage.outbox_cap)
    pool = _pool(config, deployments, price_map)
    prices, clock, recorder = PriceBook(price_map), LedgerClock(ledger), BatchRecorder(ledger)
    forwarder = _forwarder(tokenizer, ids, environment, config.litellm_settings.model_dump(exclude_defaults=True))
    model_calls = ModelCalls(
        upstream=tracing.upstream(forwarder),
        pool=pool,
        prices=prices,
        recorder=recorder,
        ledger=ledger,
        owner=process_name(),
        new_id=ids.new,
        now_ms=clock.now_ms,
    )
    orchestration = make_orchestration(
        config,
        store=store,
        ledger=ledger,
        control=control,
        pool=pool,
        prices=prices,
        tokenizer=tokenizer,
        telemetry=telemetry,
        budgets=budgets,
        model_calls=model_calls,
        clock_ms=wall_clock_ms,
    )
    return Parts(
        config=config,
        store=store,
        ledger=ledger,
        rebuilding=rebuilding,
        control=control,
        flusher=flusher,
        pool=pool,
        prices=prices,
        telemetry=telemetry,
        tracing=tracing,
        tokenizer=tokenizer,
        orchestration=orchestration,
        runs=_runs(config, ledger, ids, orchestration),
        budgets=budgets,
        concurrency=_concurrency_limits(config),
        recorder=recorder,
        alerts=Alerts(config.alerts, redactor(secrets_of(config, environment))),
        forwarder=forwarder,
        deployments=deployments,
        clock=clock,
        ids=ids,
        open_to="anyone" if allow_anonymous else "this machine" if is_loopback(config.server.host) else "nobody",
    )


def _runs(config: Config, ledger: Ledger, ids: Ids, orchestration: Orchestration) -> RunRegistry:
    return RunRegistry(
        ledger,
        silence_s=config.reservations.implicit_run_silence_seconds,
        new_id=ids.new,
        limits_of=orchestration.limits_of,
        find=orchestration.plans.find,
        is_shared=isinstance(ledger, OutageLedger),
    )


def _concurrency_limits(config: Config) -> ConcurrencyLimits:
    server = config.server
    return ConcurrencyLimits(
        total_max=server.concurrency_max,
        key_max=server.key_concurrency_max,
        project_max=server.project_concurrency_max,
    )


def _pool(config: Config, deployments: Sequence[Deployment], price_map: PriceMap) -> DeploymentPool:
    return DeploymentPool(
        deployments,
        pool_settings_of(config),
        clock_s=time.monotonic,
        rng=random.SystemRandom(),
        expand=Wildcards(config.model_list, price_map).deployments,
    )


def make_ledger(config: Config, rebuild: Rebuilding | None = None) -> Ledger:
    """The engine for the URL, wrapped for outages if it is reached over a network."""
    url = config.storage.ledger
    if url.startswith("memory://"):
        return MemoryLedger()
    if url.startswith("sqlite"):
        return SqliteLedger(Path(url.removeprefix("sqlite:///")), durability=config.storage.durability)
    from gateway.ledger.redis import RedisLedger  # which most gateways do not have

    backing = RedisLedger(
        url, allow_eviction=config.storage.allow_eviction, durability=config.storage.durability, rebuild=rebuild
    )
    spool = Path(config.storage.spool)
    return OutageLedger(backing, Spool(spool, process_name().replace(":", "-")), processes_hint=config.server.workers)


def _forwarder(
    tokenizer: Tokenizer, ids: Ids, environment: MutableMapping[str, str], settings: Mapping[str, Any]
) -> Forwarder:
    mock = MockLane(
        count=lambda text: tokenizer.count_text("o200k_base", text),
        count_prompt=tokenizer.count_prompt_now,
        now_s=time.time,
        new_id=ids.new,
    )
    return Forwarder(
        direct=DirectLane(environment=environment),
        litellm=LiteLLMLane(environment=environment, settings=settings),
        mock=mock,
        environment=environment,
    )
