"""The 40 settings: the table, parsing of values, conflicts, the typed snapshot, the documentation."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from policies.intents import Intent
from policies.settings import SETTINGS, SettingError, Settings, SettingValue, conflicts, defaults, validated

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_40_settings_are_in_six_categories() -> None:
    assert len(SETTINGS) == 40
    assert Counter(spec.category for spec in SETTINGS.values()) == {
        "orchestration": 2,
        "budgets": 15,
        "compression": 14,
        "routing": 6,
        "classification": 1,
        "quality": 2,
    }


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("orchestration_enabled", False),
        ("orchestration_adaptive_budget_enabled", False),
        ("orchestration_token_budget_extract", 800),
        ("orchestration_token_budget_generate", 2500),
        ("orchestration_token_budget_conditional", 300),
        ("orchestration_max_tokens_per_step", 4000),
        ("orchestration_max_tokens_per_workflow", 20000),
        ("orchestration_budget_overage_allowed", True),
        ("orchestration_budget_overage_threshold", 1.2),
        ("orchestration_budget_allocation_strategy", "proportional"),
        ("orchestration_compression_enabled", False),
        ("orchestration_compression_target_ratio", 0.5),
        ("orchestration_compression_min_quality", 0.8),
        ("orchestration_compression_aggressiveness", "medium"),
        ("orchestration_ais_routing_enabled", False),
        ("orchestration_ais_fast_tier_max_score", 3.0),
        ("orchestration_ais_balanced_tier_max_score", 6.5),
        ("orchestration_ais_powerful_tier_min_score", 6.5),
        ("orchestration_ais_quality_weight", 0.6),
        ("orchestration_ais_cost_weight", 0.4),
        ("orchestration_intent_classification_confidence_threshold", 0.7),
        ("orchestration_quality_score_minimum", 0.8),
        ("orchestration_max_retry_attempts", 2),
    ],
)
def test_default_has_the_documented_value_and_type(key: str, default: SettingValue) -> None:
    assert SETTINGS[key].default == default
    assert type(SETTINGS[key].default) is type(default)


@pytest.mark.parametrize("intent", list(Intent))
def test_every_intent_has_a_baseline_and_a_compression_strategy(intent: Intent) -> None:
    assert SETTINGS[f"orchestration_token_budget_{intent}"].type == "integer"
    assert "semantic" in SETTINGS[f"orchestration_compression_strategy_{intent}"].choices


def test_every_default_is_valid_and_every_setting_is_described() -> None:
    for key, spec in SETTINGS.items():
        assert validated(key, spec.default) == spec.default
        assert spec.key == key
        assert spec.range
        assert spec.description.endswith(".")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("enabled", "true", True),
        ("enabled", " OFF ", False),
        ("enabled", "1", True),
        ("max_retry_attempts", "3", 3),
        ("max_retry_attempts", 3.0, 3),
        ("max_retry_attempts", 0, 0),
        ("max_tokens_per_step", "1e4", 10_000),
        ("budget_overage_threshold", "1.2", 1.2),
        ("budget_overage_threshold", 1, 1.0),
        ("ais_cost_weight", ".5", 0.5),
        ("budget_allocation_strategy", " Priority ", "priority"),
    ],
)
def test_value_is_parsed_from_json_text_and_command_line_forms(key: str, value: object, expected: SettingValue) -> None:
    parsed = validated("orchestration_" + key, value)
    assert parsed == expected
    assert type(parsed) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("enabled", "maybe", "true or false; given 'maybe'"),
        ("enabled", 1, "true or false; given 1"),
        ("enabled", None, "given null"),
        ("max_retry_attempts", True, "a whole number from 0 to 10; given true"),
        ("max_retry_attempts", 11, "from 0 to 10; given 11"),
        ("max_retry_attempts", 1.5, "given 1.5"),
        ("max_retry_attempts", "9" * 5000, "given '999"),
        ("max_retry_attempts", 10**400, "an integer of"),
        ("max_tokens_per_step", 0, "from 1 to 10000000; given 0"),
        ("max_tokens_per_step", -5, "given -5"),
        ("budget_overage_threshold", 0.99, "a number from 1 to 10; given 0.99"),
        ("budget_overage_threshold", float("nan"), "given nan"),
        ("budget_overage_threshold", "inf", "given 'inf'"),
        ("budget_overage_threshold", "nan", "given 'nan'"),
        ("compression_target_ratio", 0.05, "from 0.1 to 1"),
        ("compression_aggressiveness", "extreme", "one of low, medium, high; given 'extreme'"),
        ("budget_allocation_strategy", ["equal"], "one of equal, proportional, adaptive, priority; given a list"),
        ("no_such_key", 1, "is not a setting"),
    ],
)
def test_invalid_value_error_names_key_range_and_given_value(key: str, value: object, words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)) as caught:
        validated("orchestration_" + key, value)
    assert caught.value.key == "orchestration_" + key
    assert str(caught.value).startswith("orchestration_" + key)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({}, 0),
        ({"ais_fast_tier_max_score": 6.5}, 0),
        ({"ais_fast_tier_max_score": 7.0}, 2),
        ({"ais_fast_tier_max_score": 7.0, "ais_balanced_tier_max_score": 8.0}, 1),
        ({"ais_powerful_tier_min_score": 8.0}, 0),
        ({"ais_powerful_tier_min_score": 2.0}, 1),
        ({"ais_quality_weight": 0.0}, 0),
        ({"ais_quality_weight": 0.0, "ais_cost_weight": 0.0}, 1),
    ],
)
def test_contradicting_settings_are_found_and_named(values: dict[str, SettingValue], count: int) -> None:
    contradictions = conflicts({"orchestration_" + key: value for key, value in values.items()})
    assert len(contradictions) == count
    assert all(sentence.endswith(".") for sentence in contradictions)
    named = {word.strip(".:") for sentence in contradictions for word in sentence.split() if "_" in word}
    assert named <= SETTINGS.keys()
    assert bool(named) == bool(count)


def test_snapshot_without_values_has_the_defaults() -> None:
    settings = Settings.from_values()
    assert settings.token_budget["summarize"] == settings.token_budget[Intent.SUMMARIZE] == 1500  # type: ignore[index]
    assert settings.compression_strategy[Intent.SUMMARIZE] == "extractive"
    assert (settings.enabled, settings.max_retry_attempts, settings.budget_overage_threshold) == (False, 2, 1.2)


def test_snapshot_applies_every_key() -> None:
    changed: dict[str, object] = {}
    for key, spec in SETTINGS.items():
        if spec.type == "boolean":
            changed[key] = not spec.default
        elif spec.choices:
            changed[key] = next(choice for choice in spec.choices if choice != spec.default)
        else:
            changed[key] = spec.minimum
    settings, plain = Settings.from_values(changed), Settings.from_values(defaults())
    for name in Settings.__dataclass_fields__:
        assert getattr(settings, name) != getattr(plain, name), name
    assert all(settings.token_budget[intent] == 1 for intent in Intent)


def test_snapshot_refuses_unknown_keys_and_invalid_values() -> None:
    with pytest.raises(SettingError, match="orchestration_nonsense: is not a setting"):
        Settings.from_values({"orchestration_nonsense": 1})
    with pytest.raises(SettingError, match="ais_cost_weight"):
        Settings.from_values({"orchestration_ais_cost_weight": 2})


def test_adaptive_switch_overrides_the_chosen_strategy() -> None:
    chosen = {"orchestration_budget_allocation_strategy": "equal"}
    assert Settings.from_values(chosen).allocation_strategy == "equal"
    assert Settings.from_values({**chosen, "orchestration_adaptive_budget_enabled": True}).allocation_strategy == (
        "adaptive"
    )


def test_documentation_lists_every_setting_as_in_the_code() -> None:
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `orchestration_")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert list(rows) == list(SETTINGS)
    for key, spec in SETTINGS.items():
        shown = str(spec.default).lower() if isinstance(spec.default, bool) else f"{spec.default}"
        assert rows[key] == [shown, spec.range, spec.description], key
