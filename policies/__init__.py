"""The decisions of Farebox as pure functions: values in, values out. The names here are the public Python API
(`docs/python-api.md`). Everything else in the packages below may change between versions.
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

# Imported eagerly, unlike the others: importing the submodule of the same name later would overwrite this name.
from policies.classify import classify

if TYPE_CHECKING:
    from policies.allocation import (
        Allocation,
        Overage,
        StepAllocation,
        StepDemand,
        StepHistory,
        allocate,
        allocate_next,
        decayed_p95,
        demand_tokens,
        hard_limit,
        history_of,
        reallocate,
    )
    from policies.amounts import Amount, Limit
    from policies.answer_checks import Answer
    from policies.budgets import Budget, Chain, Mode, RunLimits, Scope, Subject, Window, chain_for
    from policies.classify import Alternative, Classification, StepText, step_text_from_chat
    from policies.complexity import StepComplexity, StepFeatures, effective_complexity, features_of, step_complexity
    from policies.compression import Compressed, CompressionPolicy, Strategy, compress_chat, quality
    from policies.declaration import flattened, learned_steps
    from policies.errors import (
        BudgetExceededError,
        CompressionError,
        IntentClassificationError,
        OrchestrationError,
        RoutingError,
    )
    from policies.handlers import HANDLERS, Assessment, Handler, Registry, registry_of
    from policies.intensity import AgentActivity, IntensityScore, WorkflowShape, intensity_score, shape_of
    from policies.intents import DEFINITIONS, Intent, parse_intent
    from policies.pricing import Price, PriceError, Usage, WorstCase, cost_nano_usd, price_from_map, worst_case
    from policies.routing import (
        Candidate,
        Needs,
        NoRoute,
        Route,
        RouteRequest,
        Tier,
        cheaper,
        needed_abilities,
        route,
        tier_for,
    )
    from policies.settings import SETTINGS, SettingError, Settings, SettingSpec, conflicts, validated
    from policies.tokens import Counting, PromptCount, count_chat, counting_for
    from policies.windows import WindowError, window_bounds

__all__ = [
    "DEFINITIONS",
    "HANDLERS",
    "SETTINGS",
    "AgentActivity",
    "Allocation",
    "Alternative",
    "Amount",
    "Answer",
    "Assessment",
    "Budget",
    "BudgetExceededError",
    "Candidate",
    "Chain",
    "Classification",
    "Compressed",
    "CompressionError",
    "CompressionPolicy",
    "Counting",
    "Handler",
    "IntensityScore",
    "Intent",
    "IntentClassificationError",
    "Limit",
    "Mode",
    "Needs",
    "NoRoute",
    "OrchestrationError",
    "Overage",
    "Price",
    "PriceError",
    "PromptCount",
    "Registry",
    "Route",
    "RouteRequest",
    "RoutingError",
    "RunLimits",
    "Scope",
    "SettingError",
    "SettingSpec",
    "Settings",
    "StepAllocation",
    "StepComplexity",
    "StepDemand",
    "StepFeatures",
    "StepHistory",
    "StepText",
    "Strategy",
    "Subject",
    "Tier",
    "Usage",
    "Window",
    "WindowError",
    "WorkflowShape",
    "WorstCase",
    "allocate",
    "allocate_next",
    "chain_for",
    "cheaper",
    "classify",
    "compress_chat",
    "conflicts",
    "cost_nano_usd",
    "count_chat",
    "counting_for",
    "decayed_p95",
    "demand_tokens",
    "effective_complexity",
    "features_of",
    "flattened",
    "hard_limit",
    "history_of",
    "intensity_score",
    "learned_steps",
    "needed_abilities",
    "parse_intent",
    "price_from_map",
    "quality",
    "reallocate",
    "registry_of",
    "route",
    "shape_of",
    "step_complexity",
    "step_text_from_chat",
    "tier_for",
    "validated",
    "window_bounds",
    "worst_case",
]

# The module that defines each name. Names are imported on first use, so that pricing a call does not load the compressor.
_NAMES_BY_MODULE: Final = MappingProxyType(
    {
        "policies.allocation": (
            "Allocation Overage StepAllocation StepDemand StepHistory allocate allocate_next decayed_p95 "
            "demand_tokens hard_limit history_of reallocate"
        ),
        "policies.amounts": "Amount Limit",
        "policies.answer_checks": "Answer",
        "policies.budgets": "Budget Chain Mode RunLimits Scope Subject Window chain_for",
        "policies.classify": "Alternative Classification StepText step_text_from_chat",
        "policies.complexity": "StepComplexity StepFeatures effective_complexity features_of step_complexity",
        "policies.compression": "Compressed CompressionPolicy Strategy compress_chat quality",
        "policies.declaration": "flattened learned_steps",
        "policies.errors": (
            "BudgetExceededError CompressionError IntentClassificationError OrchestrationError RoutingError"
        ),
        "policies.handlers": "Assessment HANDLERS Handler Registry registry_of",
        "policies.intensity": "AgentActivity IntensityScore WorkflowShape intensity_score shape_of",
        "policies.intents": "DEFINITIONS Intent parse_intent",
        "policies.pricing": "Price PriceError Usage WorstCase cost_nano_usd price_from_map worst_case",
        "policies.routing": "Candidate Needs NoRoute Route Tier RouteRequest cheaper needed_abilities route tier_for",
        "policies.settings": "SETTINGS SettingError SettingSpec Settings conflicts validated",
        "policies.tokens": "Counting PromptCount count_chat counting_for",
        "policies.windows": "WindowError window_bounds",
    }
)
_MODULE_OF: Final = MappingProxyType(
    {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}
)


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'policies' has no attribute {name!r}")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
