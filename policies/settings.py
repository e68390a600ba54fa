"""The 40 settings (`system_settings_config`): the meaning and range of each key, and a typed snapshot of all of them.

The table `SETTINGS` is the only source of defaults and ranges: the store is seeded from it, the control API and the admin
pages show it, and a test compares `docs/settings.md` with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from policies.intents import Intent
from policies.values import value_class

SettingValue = bool | int | float | str

PREFIX = "orchestration_"
ALLOCATION_STRATEGIES = ("equal", "proportional", "adaptive", "priority")
COMPRESSION_STRATEGIES = ("none", "structural", "template", "truncate", "extractive", "semantic")
AGGRESSIVENESS = ("low", "medium", "high")

# Larger limits are typing errors: ten million tokens is ten of the largest context windows.
_STEP_TOKENS_MAX = 10_000_000
_WORKFLOW_TOKENS_MAX = 1_000_000_000
# How people write yes and no in YAML, on a command line and in an environment variable.
_BOOLEAN_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
# Bounded on purpose: `int()` of a very long text takes quadratic time, and no setting needs more digits.
_NUMBER = re.compile(r"[+-]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,2})?")


class SettingError(ValueError):
    """A value that a setting does not accept; the message names the key, its range and the given value."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message


@value_class
class SettingSpec:
    """One key. `type` is boolean, integer, number or string; `minimum` and `maximum` are inclusive."""

    key: str
    category: str
    type: str
    default: SettingValue
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    description: str

    @property
    def range(self) -> str:
        """The allowed values in words, as the API and the error messages show them."""
        if self.type == "boolean":
            return "true or false"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return f"{self.minimum:.15g} to {self.maximum:.15g}"

    @property
    def attribute(self) -> str:
        """The key without its prefix, which is also the attribute of `Settings` unless the key is per intent."""
        return self.key.removeprefix(PREFIX)


def _boolean(category: str, name: str, default: bool, description: str) -> SettingSpec:
    return SettingSpec(PREFIX + name, category, "boolean", default, None, None, (), description)


def _integer(category: str, name: str, default: int, low: int, high: int, description: str) -> SettingSpec:
    return SettingSpec(PREFIX + name, category, "integer", default, low, high, (), description)


def _number(category: str, name: str, default: float, low: float, high: float, description: str) -> SettingSpec:
    return SettingSpec(PREFIX + name, category, "number", default, low, high, (), description)


def _choice(category: str, name: str, default: str, choices: tuple[str, ...], description: str) -> SettingSpec:
    return SettingSpec(PREFIX + name, category, "string", default, None, None, choices, description)


# Tokens that one step of this intent usually needs, prompt and answer together (figures from the original system).
_BASELINE_TOKENS = {
    Intent.EXTRACT: 800,
    Intent.SUMMARIZE: 1500,
    Intent.GENERATE: 2500,
    Intent.VALIDATE: 1000,
    Intent.SEND: 500,
    Intent.TRANSFORM: 800,
    Intent.CONDITIONAL: 300,
    Intent.AGGREGATE: 1200,
    Intent.FILTER: 600,
    Intent.ENRICH: 1000,
}

# Only strategies without model calls are defaults, because turning compression on must not start to spend money. A summary
# survives without the least relevant sentences, and messages to be sent are mostly boilerplate; the other intents may depend
# on a single record, so only white space, markup and repetition are removed.
_COMPRESSION_DEFAULT = {
    Intent.EXTRACT: "structural",
    Intent.SUMMARIZE: "extractive",
    Intent.GENERATE: "structural",
    Intent.VALIDATE: "structural",
    Intent.SEND: "template",
    Intent.TRANSFORM: "structural",
    Intent.CONDITIONAL: "extractive",
    Intent.AGGREGATE: "structural",
    Intent.FILTER: "structural",
    Intent.ENRICH: "structural",
}


def _orchestration() -> tuple[SettingSpec, ...]:
    return (
        _boolean(
            "orchestration",
            "enabled",
            False,
            "Classify, allocate, compress and route tagged calls. Budgets are enforced either way.",
        ),
        _boolean(
            "orchestration",
            "adaptive_budget_enabled",
            False,
            "Plan runs by what their steps have actually used (strategy adaptive), whatever strategy is set below.",
        ),
    )


def _budgets() -> tuple[SettingSpec, ...]:
    baselines = tuple(
        _integer(
            "budgets",
            f"token_budget_{intent}",
            tokens,
            1,
            _STEP_TOKENS_MAX,
            f"Tokens that a step of intent {intent} usually needs, prompt and answer together.",
        )
        for intent, tokens in _BASELINE_TOKENS.items()
    )
    step = "The most that a plan gives one step, in tokens."
    workflow = "Tokens that a run may use when no budget says otherwise."
    threshold = "Hard limit of a step ÷ its allocation, while overage is allowed."
    strategy = "How a run's tokens are shared among its steps."
    return (
        *baselines,
        _integer("budgets", "max_tokens_per_step", 4000, 1, _STEP_TOKENS_MAX, step),
        _integer("budgets", "max_tokens_per_workflow", 20_000, 1, _WORKFLOW_TOKENS_MAX, workflow),
        _boolean("budgets", "budget_overage_allowed", True, "A step may go above its allocation, up to the threshold."),
        _number("budgets", "budget_overage_threshold", 1.2, 1.0, 10.0, threshold),
        _choice("budgets", "budget_allocation_strategy", "proportional", ALLOCATION_STRATEGIES, strategy),
    )


def _compression() -> tuple[SettingSpec, ...]:
    strategies = tuple(
        _choice(
            "compression",
            f"compression_strategy_{intent}",
            strategy,
            COMPRESSION_STRATEGIES,
            f"How prompts of intent {intent} are compressed.",
        )
        for intent, strategy in _COMPRESSION_DEFAULT.items()
    )
    quality = "Below this measured quality, the original prompt is sent unchanged."
    return (
        _boolean("compression", "compression_enabled", False, "Compress prompts of tagged calls."),
        *strategies,
        _number("compression", "compression_target_ratio", 0.5, 0.1, 1.0, "Share of the prompt's tokens to keep."),
        _number("compression", "compression_min_quality", 0.8, 0.0, 1.0, quality),
        _choice("compression", "compression_aggressiveness", "medium", AGGRESSIVENESS, "How far a strategy goes."),
    )


def _routing() -> tuple[SettingSpec, ...]:
    powerful = "Effective complexity from which calls go to the powerful tier."
    return (
        _boolean(
            "routing",
            "ais_routing_enabled",
            False,
            "Choose models by complexity where a workflow allows it; `model: auto` always does.",
        ),
        _number(
            "routing",
            "ais_fast_tier_max_score",
            3.0,
            0.0,
            10.0,
            "Effective complexity below which the fast tier is used.",
        ),
        _number(
            "routing",
            "ais_balanced_tier_max_score",
            6.5,
            0.0,
            10.0,
            "Effective complexity below which the balanced tier is used.",
        ),
        _number("routing", "ais_powerful_tier_min_score", 6.5, 0.0, 10.0, powerful),
        _number("routing", "ais_quality_weight", 0.6, 0.0, 1.0, "Weight of a model's quality when choosing in a tier."),
        _number("routing", "ais_cost_weight", 0.4, 0.0, 1.0, "Weight of a model's low price when choosing in a tier."),
    )


def _classification_and_quality() -> tuple[SettingSpec, ...]:
    threshold = "Below this confidence, the next source is asked for the intent."
    retries = "How often a step whose answer failed its checks moves one tier up."
    return (
        _number("classification", "intent_classification_confidence_threshold", 0.7, 0.0, 1.0, threshold),
        _number(
            "quality", "quality_score_minimum", 0.8, 0.0, 1.0, "An answer whose checks score below this has failed."
        ),
        _integer("quality", "max_retry_attempts", 2, 0, 10, retries),
    )


SETTINGS: Mapping[str, SettingSpec] = MappingProxyType(
    {
        spec.key: spec
        for spec in (
            *_orchestration(),
            *_budgets(),
            *_compression(),
            *_routing(),
            *_classification_and_quality(),
        )
    }
)


def validated(key: str, value: object) -> SettingValue:
    """The value in the setting's type. Numbers and booleans may be given as text, as command lines and environments do.

    Raises SettingError, which names the range and the given value, for an unknown key, a wrong type, a value outside the
    range, and for NaN and infinities.
    """
    spec = SETTINGS.get(key)
    if spec is None:
        raise SettingError(key, "is not a setting; `farebox settings` lists the 40 there are")
    parsed = _PARSERS[spec.type](value)
    if parsed is None or not _is_allowed(spec, parsed):
        raise SettingError(key, f"must be {_range_words(spec)}; given {_value_words(value)}")
    return parsed


def _is_allowed(spec: SettingSpec, value: SettingValue) -> bool:
    if spec.choices:
        return value in spec.choices
    if spec.minimum is None or spec.maximum is None or isinstance(value, str):
        return True
    return spec.minimum <= value <= spec.maximum


def _range_words(spec: SettingSpec) -> str:
    nouns = {"integer": "a whole number from ", "number": "a number from "}
    return nouns.get(spec.type, "") + spec.range


def _value_words(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print very long integers
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _parse_boolean(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return _BOOLEAN_WORDS.get(value.strip().lower()) if isinstance(value, str) else None


def _parse_number(value: object) -> float | None:
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value := value.strip()) else None
    # bool is an int in Python, but `true` as a number is a mistake, not a 1.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def _parse_integer(value: object) -> int | None:
    number = _parse_number(value)
    # JSON does not tell 4000 from 4000.0, so neither do we.
    return int(number) if number is not None and number.is_integer() else None


def _parse_string(value: object) -> str | None:
    return value.strip().lower() if isinstance(value, str) else None


_PARSERS = MappingProxyType(
    {"boolean": _parse_boolean, "integer": _parse_integer, "number": _parse_number, "string": _parse_string}
)


def defaults() -> dict[str, SettingValue]:
    """Key → default of all 40, in the table's order: the seed of a new store."""
    return {key: spec.default for key, spec in SETTINGS.items()}


def conflicts(values: Mapping[str, SettingValue]) -> list[str]:
    """Contradictions between settings that are each within their own range, one sentence each; [] if there are none.

    `values` may be partial: missing keys count as their defaults. Behaviour is defined even with contradictions (see
    `routing.tier_for`), so this serves to warn people, before or after saving.
    """
    merged = {**defaults(), **values}
    ais = PREFIX + "ais_"
    ais_values = {key.removeprefix(ais): merged[key] for key in merged if key.startswith(ais)}
    fast, balanced, powerful = (
        float(ais_values[name])
        for name in ("fast_tier_max_score", "balanced_tier_max_score", "powerful_tier_min_score")
    )
    contradictions = []
    if fast > balanced:
        contradictions.append(f"{ais}fast_tier_max_score {fast:g} is above {ais}balanced_tier_max_score {balanced:g}.")
    if fast > powerful:
        contradictions.append(f"{ais}fast_tier_max_score {fast:g} is above {ais}powerful_tier_min_score {powerful:g}.")
    if float(ais_values["quality_weight"]) + float(ais_values["cost_weight"]) == 0:
        contradictions.append(
            f"{ais}quality_weight and {ais}cost_weight are both 0: nothing is left to choose a model by."
        )
    return contradictions


@value_class
class Settings:
    """A typed snapshot of all 40 values. Attributes are the keys without `orchestration_`; those per intent are mappings.

    Built once per change of a setting and passed down, so that the request path looks up no setting by its text.
    """

    enabled: bool
    adaptive_budget_enabled: bool
    token_budget: Mapping[Intent, int]
    max_tokens_per_step: int
    max_tokens_per_workflow: int
    budget_overage_allowed: bool
    budget_overage_threshold: float
    budget_allocation_strategy: str
    compression_enabled: bool
    compression_strategy: Mapping[Intent, str]
    compression_target_ratio: float
    compression_min_quality: float
    compression_aggressiveness: str
    ais_routing_enabled: bool
    ais_fast_tier_max_score: float
    ais_balanced_tier_max_score: float
    ais_powerful_tier_min_score: float
    ais_quality_weight: float
    ais_cost_weight: float
    intent_classification_confidence_threshold: float
    quality_score_minimum: float
    max_retry_attempts: int

    @classmethod
    def from_values(cls, values: Mapping[str, object] = MappingProxyType({})) -> Settings:
        """Validate `values` (full keys); missing keys take their defaults. Raises SettingError for the first fault."""
        all_values = {**defaults(), **{key: validated(key, value) for key, value in values.items()}}
        typed: dict[str, Any] = {
            field.name: _by_intent(all_values, field.name)
            if field.name in ("token_budget", "compression_strategy")
            else all_values[PREFIX + field.name]
            for field in fields(cls)
        }
        return cls(**typed)

    @property
    def allocation_strategy(self) -> str:
        """The strategy in force: the adaptive switch overrides the chosen strategy."""
        return "adaptive" if self.adaptive_budget_enabled else self.budget_allocation_strategy


def _by_intent(values: Mapping[str, SettingValue], name: str) -> Mapping[Intent, SettingValue]:
    return MappingProxyType({intent: values[f"{PREFIX}{name}_{intent}"] for intent in Intent})
