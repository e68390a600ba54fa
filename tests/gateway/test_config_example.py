"""The example file is the reference: it loads, contains every key, and its values are the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from gateway.config.budgets import BudgetConfig
from gateway.config.loading import load_config
from gateway.config.schema import Config

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
# Sections whose every key stands in the example with its default value.
SECTIONS = ("router_settings", "storage", "server", "reservations", "answers", "classifier", "loops", "alerts")


def example() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    return data


def test_example_loads_and_has_an_offline_mock_model() -> None:
    config = load_config(EXAMPLE, {})
    assert config.model_list[0].model_name == "mock"
    assert "mock_response" in config.model_list[0].litellm_params
    assert config.settings["orchestration_enabled"] is True


def test_example_contains_every_section() -> None:
    assert set(example()) == set(Config.model_fields)


@pytest.mark.parametrize("section", SECTIONS)
def test_section_contains_every_key_with_its_default(section: str) -> None:
    annotation: Any = Config.model_fields[section].annotation
    model: type[BaseModel] = annotation
    assert set(example()[section]) == set(model.model_fields)
    assert getattr(load_config(EXAMPLE, {}), section) == model()


def test_every_budget_field_is_mentioned() -> None:
    text = EXAMPLE.read_text()
    for name in BudgetConfig.model_fields:
        assert f"{name}:" in text
