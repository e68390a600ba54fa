"""Joins the orchestration's parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

import orjson
import structlog

from gateway.config import Config
from gateway.control import Control
from gateway.ledger.port import Ledger
from gateway.orchestration.compressing import Compressing
from gateway.orchestration.histories import Histories
from gateway.orchestration.intents import IntentRules, Intents
from gateway.orchestration.plans import Plans
from gateway.orchestration.routing import Routing
from gateway.orchestration.scoring import Scoring
from gateway.orchestration.service import Orchestration
from gateway.orchestration.trail import Trail
from gateway.pipeline.call import Call
from gateway.pricebook import PriceBook
from gateway.store.database import Database
from gateway.telemetry import Telemetry
from gateway.tokenizer import Tokenizer
from gateway.upstream.deployments import Pool
from policies.budgets import Budget
from policies.classify import Classification
from policies.handlers import ENTRY_POINT_GROUP, registry_of
from policies.routing import Tier

_log = structlog.get_logger(__name__)
ANSWER_TOKENS_MAX: Final = 200

Ask = Callable[[str, dict[str, Any]], Awaitable[bytes | None]]


def make_orchestration(
    config: Config,
    *,
    store: Database,
    ledger: Ledger,
    control: Control,
    pool: Pool,
    prices: PriceBook,
    tokenizer: Tokenizer,
    telemetry: Telemetry,
    budgets: Callable[[], Sequence[Budget]],
    ask: Ask,
    clock_ms: Callable[[], int],
) -> Orchestration:
    """`ask` sends a chat body to a model of ours, outside every budget, and gives the answer's body."""
    model = config.classifier.model

    async def ask_intent(messages: Sequence[Mapping[str, Any]]) -> str | None:
        assert model is not None  # noqa: S101 - only used where a model is configured
        answer = await ask(
            model, {"model": model, "messages": list(messages), "max_tokens": ANSWER_TOKENS_MAX, "temperature": 0}
        )
        return _text_of(answer)

    rules = IntentRules(
        wait_ms=config.classifier.wait_ms if config.classifier.wait else 0,
        cache_ttl_ms=int(config.classifier.cache_ttl_seconds * 1000),
    )
    registry = registry_of(entry_points(group=ENTRY_POINT_GROUP))
    for fault in registry.faults:
        _log.warning("handler_not_used", reason=fault)
    trail = Trail(store, clock_ms)
    orchestration = Orchestration(
        intents=Intents(store, ask_intent if model else None, rules, clock_ms, _noting(trail)),
        plans=Plans(store, ledger),
        histories=Histories(store, clock_ms),
        compressing=Compressing(tokenizer, lambda: control.snapshot),
        routing=Routing(
            pool=pool,
            prices=prices,
            handlers=registry,
            tiers=[(tier, getattr(config.tiers, tier)) for tier in Tier],
            snapshot=lambda: control.snapshot,
        ),
        scoring=Scoring(store, lambda: control.snapshot, clock_ms),
        trail=trail,
        telemetry=telemetry,
        budgets=budgets,
        snapshot=lambda: control.snapshot,
    )
    control.subscribe(orchestration.settings_changed)
    return orchestration


def _noting(trail: Trail) -> Callable[[Call, Classification], None]:
    """What was concluded of a step goes to the audit trail, once for each conclusion."""

    def classified(call: Call, found: Classification) -> None:
        trail.note(
            "intent.classified",
            call,
            call.tags.step,
            intent=found.intent,
            confidence=found.confidence,
            source=found.source,
            reasoning=found.reasoning,
        )

    return classified


def _text_of(body: bytes | None) -> str | None:
    try:
        content = orjson.loads(body or b"")["choices"][0]["message"]["content"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None
    return content if isinstance(content, str) else None
