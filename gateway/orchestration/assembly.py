"""Wires the parts of the orchestration together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

import structlog

from gateway.config.schema import Config
from gateway.control import Control, Snapshot
from gateway.ledger.port import Ledger
from gateway.observability.telemetry import Telemetry
from gateway.orchestration.audit_trail import AuditTrail
from gateway.orchestration.histories import WorkflowHistories
from gateway.orchestration.intensity_scoring import IntensityScoring
from gateway.orchestration.intents import IntentRules, Intents
from gateway.orchestration.model_calls import ModelCalls
from gateway.orchestration.plans import Plans
from gateway.orchestration.prompt_compression import PromptCompression
from gateway.orchestration.routing import Routing
from gateway.orchestration.semantic_compression import SemanticCompression, SemanticRules, text_of
from gateway.orchestration.service import Orchestration
from gateway.pipeline.call import Call
from gateway.pricebook import PriceBook
from gateway.store.database import Database
from gateway.tokenizer import Tokenizer
from gateway.upstream.deployments import DeploymentPool
from policies.budgets import Budget
from policies.classify import Classification
from policies.handlers import ENTRY_POINT_GROUP, Registry, registry_of
from policies.intents import Intent
from policies.routing import Tier
from policies.tokens import counting_for

_log = structlog.get_logger(__name__)
ANSWER_TOKENS_MAX: Final = 200
_MESSAGE_TOKENS: Final = 8  # a generous allowance for the framing of each message


def make_orchestration(
    config: Config,
    *,
    store: Database,
    ledger: Ledger,
    control: Control,
    pool: DeploymentPool,
    prices: PriceBook,
    tokenizer: Tokenizer,
    telemetry: Telemetry,
    budgets: Callable[[], Sequence[Budget]],
    model_calls: ModelCalls,
    clock_ms: Callable[[], int],
) -> Orchestration:
    model = config.classifier.model

    async def ask_intent(messages: Sequence[Mapping[str, Any]]) -> str | None:
        assert model is not None  # noqa: S101 - only used where a model is configured
        body = {"model": model, "messages": list(messages), "max_tokens": ANSWER_TOKENS_MAX, "temperature": 0}
        return text_of(await model_calls.ask(model, body, "classify"))

    rules = IntentRules(
        wait_ms=config.classifier.wait_ms if config.classifier.wait else 0,
        cache_ttl_ms=int(config.classifier.cache_ttl_seconds * 1000),
    )
    registry = registry_of(entry_points(group=ENTRY_POINT_GROUP))
    for fault in registry.faults:
        _log.warning("handler_not_used", reason=fault)
    trail = AuditTrail(store, clock_ms)
    orchestration = Orchestration(
        intents=Intents(store, ask_intent if model else None, rules, clock_ms, _audit_classification(trail)),
        plans=Plans(store, ledger),
        histories=WorkflowHistories(store, clock_ms),
        compression=PromptCompression(
            tokenizer,
            lambda: control.snapshot,
            strategies=_strategies(registry),
            semantic=_semantic(config, model_calls, ledger, pool, tokenizer, clock_ms),
            memory_tokens_max=config.compression.memory_tokens_max,
        ),
        routing=Routing(
            pool=pool,
            prices=prices,
            handlers=registry,
            tiers=[(tier, getattr(config.tiers, tier)) for tier in Tier],
            snapshot=lambda: control.snapshot,
        ),
        scoring=IntensityScoring(store, lambda: control.snapshot, clock_ms),
        trail=trail,
        telemetry=telemetry,
        budgets=budgets,
        snapshot=lambda: control.snapshot,
        holdout_share=config.savings.holdout_share,
    )
    control.subscribe(orchestration.settings_changed)
    return orchestration


def _strategies(registry: Registry) -> Callable[[Intent, Snapshot], Sequence[str]]:
    def strategies(intent: Intent, snapshot: Snapshot) -> Sequence[str]:
        row = snapshot.setting_rows.get(f"orchestration_compression_strategy_{intent}")
        is_set = row is not None and row.origin != "default"
        return registry.of(intent).strategies(snapshot.settings.compression_strategy[intent], is_set=is_set)

    return strategies


def _semantic(
    config: Config,
    model_calls: ModelCalls,
    ledger: Ledger,
    pool: DeploymentPool,
    tokenizer: Tokenizer,
    clock_ms: Callable[[], int],
) -> SemanticCompression:
    compression_config = config.compression
    model = compression_config.semantic_model or next(iter(config.tiers.fast), None)
    deployment = pool.of(model)[0] if model is not None else None

    def count(messages: Sequence[Mapping[str, str]]) -> int:
        """An upper bound of what the model will count: its family's factor, plus a margin for the framing."""
        assert deployment is not None  # noqa: S101 - without a model nobody is asked
        counting = counting_for(deployment.model, deployment.provider)
        tokens = sum(
            tokenizer.count_text(counting.encoding, message["content"]) + _MESSAGE_TOKENS for message in messages
        )
        return -(-tokens * (counting.factor_percent + 1) // 100)

    rules = SemanticRules(
        model, int(compression_config.semantic_wait_seconds * 1000), compression_config.semantic_texts_max
    )
    return SemanticCompression(model_calls, ledger, rules, count=count, clock_ms=clock_ms)


def _audit_classification(trail: AuditTrail) -> Callable[[Call, Classification], None]:
    """Records each new classification of a step in the audit trail."""

    def classified(call: Call, classification: Classification) -> None:
        trail.note(
            "intent.classified",
            call,
            call.tags.step,
            intent=classification.intent,
            confidence=classification.confidence,
            source=classification.source,
            reasoning=classification.reasoning,
        )

    return classified
