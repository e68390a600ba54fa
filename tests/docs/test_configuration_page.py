"""docs/configuration.md and docs/config.schema.json are made from the models, and the schema agrees with the loader."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from gateway.config.faults import ConfigError
from gateway.config.loading import parse_config
from gateway.config.reference import document, remarks, schema, schema_text
from gateway.config.schema import Config
from policies.settings import SETTINGS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = ROOT / "docs" / "config.schema.json"
EXAMPLE = ROOT / "config.example.yaml"


def schema_accepts(text: str) -> bool:
    return bool(jsonschema_rs.validator_for(schema()).is_valid(yaml.safe_load(text)))


def loader_accepts(text: str) -> bool:
    try:
        parse_config(text, environ={})
    except ConfigError:
        return False
    return True


def test_page_and_schema_are_up_to_date() -> None:
    if os.environ.get("FAREBOX_WRITE_DOCS"):
        PAGE.write_text(document())
        SCHEMA.write_text(schema_text())
    assert PAGE.read_text() == document(), "FAREBOX_WRITE_DOCS=1 with this test writes page and schema anew"
    assert json.loads(SCHEMA.read_text()) == schema()


def test_example_configuration_names_the_schema() -> None:
    first = EXAMPLE.read_text().splitlines()[0]
    assert (ROOT / first.partition("$schema=")[2]).resolve() == SCHEMA


MODEL = "model_list: [{model_name: a, litellm_params: {model: openai/a}}]\n"


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE.read_text(),
        MODEL,
        'budgets: [{scope: run, match: "*", tokens: 1, usd: 0.50, on_pressure: [wait, refuse]}]',
        "budgets: [{scope: key, usd: '0.000000001', window: day, mode: observe}]",
        "settings: {orchestration_enabled: true, orchestration_compression_target_ratio: 0.3}",
        "storage: {retention_months: null}\nserver: {workers: 1}\nalerts: {budget_percent: [50]}",
    ],
)
def test_schema_accepts_what_the_loader_accepts(text: str) -> None:
    assert loader_accepts(text)
    assert schema_accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        "model_lists: []",
        "model_list: [{model_name: a}]",
        "budgets: [{scope: team, tokens: 1}]",
        "budgets: [{scope: run, tokens: -1}]",
        "budgets: [{scope: run, usd: -0.5}]",
        "budgets: [{scope: run, tokens: 1, on_presure: [refuse]}]",
        "settings: {orchestration_enable: true}",
        "settings: {orchestration_budget_allocation_strategy: fair}",
        "settings: {orchestration_compression_target_ratio: 7}",
        "server: {port: 70000}",
        "server: {workers: 0}",
        "reservations: {on_lost: forget}",
    ],
)
def test_loader_refuses_what_the_schema_refuses(text: str) -> None:
    assert not schema_accepts(text)
    assert not loader_accepts(text)


def test_every_key_and_setting_has_a_description() -> None:
    described = schema()
    bare = [
        f"{definition}.{key}"
        for definition, definition_schema in described["$defs"].items()
        for key, field in definition_schema.get("properties", {}).items()
        if "description" not in field
    ]
    assert bare == [], "say in config.example.yaml, beside the key, what it is for"
    assert set(described["properties"]["settings"]["properties"]) == set(SETTINGS)
    assert set(described["properties"]) == set(Config.model_fields)


def test_descriptions_come_from_the_example_configuration() -> None:
    described: dict[tuple[str, str], str] = remarks()
    assert described["server", "drain_seconds"] == "how long a stop waits for calls in flight"
    assert described["budgets", "wait_seconds"].startswith("how long the rung `wait`")


def test_page_shows_every_key() -> None:
    text = PAGE.read_text()
    definitions: dict[str, Any] = schema()["$defs"]
    for definition in definitions.values():
        for key in definition.get("properties", {}):
            assert f"`{key}`" in text
