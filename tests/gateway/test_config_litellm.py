"""LiteLLM's configuration: it loads unchanged, models and forwarding are applied, and keys without effect are reported."""

from __future__ import annotations

import re
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from gateway.config.faults import ConfigError
from gateway.config.loading import parse_config
from gateway.upstream.model_list import deployments_of
from gateway.upstream.price_map import PriceMap, installed_price_map
from gateway.upstream.wildcards import Wildcards

# As LiteLLM's documentation shows it ("All settings", "Reliability", "Load balancing"), put together.
DOCUMENTED = """
environment_variables:
  UPSTREAM_KEY: sk-from-the-file
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: azure/gpt-4o-eu
      api_base: https://my-endpoint-europe.openai.azure.com/
      api_key: os.environ/UPSTREAM_KEY
      rpm: 6
    model_info:
      id: eu
      base_model: azure/gpt-4o
  - model_name: gpt-4o
    litellm_params: {model: azure/gpt-4o-ca, api_base: https://ca.openai.azure.com/, litellm_credential_name: shared, rpm: 60}
  - model_name: claude
    litellm_params: {model: anthropic/claude-sonnet-4-5, api_key: os.environ/ANTHROPIC_API_KEY, timeout: 300, stream_timeout: 60,
      max_budget: 5}
  - model_name: openai/*
    litellm_params: {model: openai/*, api_key: os.environ/UPSTREAM_KEY}
credential_list:
  - credential_name: shared
    credential_values: {api_key: sk-shared, api_version: "2024-06-01"}
    credential_info: {description: of the team}
litellm_settings:
  drop_params: true
  success_callback: [langfuse]
  max_budget: 100
  budget_duration: 30d
  num_retries: 3
  request_timeout: 10
  fallbacks: [{gpt-4o: [claude]}]
  context_window_fallbacks: [{gpt-4o: [claude]}]
  default_fallbacks: [claude]
  cache: true
  cache_params: {type: redis, password: os.environ/NOT_THERE}
router_settings:
  routing_strategy: usage-based-routing-v2
  model_group_alias: {gpt-4: gpt-4o, hidden: {model: claude, hidden: true}}
  redis_host: localhost
  num_retries: 2
  timeout: 30
  allowed_fails: 3
  cooldown_time: 30
  enable_pre_call_checks: true
  retry_policy: {TimeoutErrorRetries: 3}
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
  alerting: [slack]
guardrails:
  - guardrail_name: pii
    litellm_params: {guardrail: presidio, mode: pre_call}
"""
ENVIRONMENT = {"ANTHROPIC_API_KEY": "sk-ant"}


def test_litellm_models_credentials_and_router_settings_are_applied() -> None:
    config = parse_config(DOCUMENTED, environ=ENVIRONMENT)
    router = config.router_settings
    assert (router.num_retries, router.timeout, router.allowed_fails, router.cooldown_time) == (2, 30, 3, 30)
    assert router.fallbacks == ({"gpt-4o": ["claude"]}, {"*": ["claude"]})
    assert router.context_window_fallbacks == ({"gpt-4o": ["claude"]},)
    assert router.routing_strategy == "least-busy"
    assert config.litellm_settings.drop_params
    named = [model.model_name for model in config.model_list]
    assert named == ["gpt-4o", "gpt-4o", "claude", "openai/*", "gpt-4", "gpt-4", "hidden"]
    keys = [model.litellm_params["api_key"] for model in config.model_list]
    assert keys == [
        "sk-from-the-file",
        "sk-shared",
        "sk-ant",
        "sk-from-the-file",
        "sk-from-the-file",
        "sk-shared",
        "sk-ant",
    ]
    assert config.model_list[1].litellm_params["api_version"] == "2024-06-01"
    deployments = deployments_of(config.model_list, PriceMap(installed_price_map()))
    assert [item.weight for item in deployments] == [6, 60, 1, 1, 6, 60, 1]


@pytest.mark.parametrize(
    ("asked", "server", "asks"),
    [("true", "{}", True), ("false", "{}", False), ("true", "{metrics_auth: false}", False)],
)
def test_require_auth_for_metrics_endpoint_sets_metrics_auth_unless_given(asked: str, server: str, asks: bool) -> None:
    text = f"litellm_settings: {{require_auth_for_metrics_endpoint: {asked}}}\nserver: {server}\n"
    config = parse_config(text)
    assert (config.server.metrics_auth, config.ignored) == (asks, ())


def test_litellm_keys_without_effect_are_reported_with_their_place() -> None:
    config = parse_config(DOCUMENTED, "litellm.yaml", ENVIRONMENT)
    reports = "\n".join(config.ignored)
    assert all(re.match(r"litellm\.yaml:\d+:\d+: ", line) for line in config.ignored), reports
    for words in (
        "general_settings: ignored (master_key, alerting)",
        "guardrails: ignored",
        "model_list[2].litellm_params: ignored max_budget",
        "litellm_settings: ignored success_callback, cache, cache_params",
        "litellm_settings.max_budget: ignored: write `budgets: [{scope: project, usd: 100, window: month}]`",
        "usage-based-routing-v2 is not offered",
        "router_settings: ignored redis_host, enable_pre_call_checks, retry_policy",
    ):
        assert words in reports


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("litelm_settings: {}", "litelm_settings: unknown key (did you mean 'litellm_settings'?)"),
        ("router_settings: {num_retrys: 1}", "router_settings.num_retrys: unknown key"),
        ("router_settings: {model_group_alias: {a: b}}", "stands for 'b', which model_list does not have"),
        ("include: [models.yaml]", "include: put the files that it names into this one"),
        (
            "environment_variables: {FAREBOX_ADMIN_KEY: secret-secret}",
            "FAREBOX_ADMIN_KEY: is read before this file is",
        ),
        ("litellm_settings: 3", "litellm_settings: "),
        (
            "model_list: [{model_name: a, litellm_params: {model: a, litellm_credential_name: x}}]",
            "litellm_credential_name: 'x' is not in credential_list",
        ),
    ],
)
def test_unknown_or_contradictory_litellm_keys_are_faults(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(fault)):
        parse_config(text, environ={})


def test_nothing_is_reported_as_ignored_without_litellm_keys() -> None:
    assert parse_config("router_settings: {num_retries: 1}\nlitellm_settings:\n").ignored == ()


def examples() -> list[Path]:
    """The example configurations in LiteLLM's wheel, except one that LiteLLM's own proxy cannot load either."""
    wheel = metadata.distribution("litellm")
    names = [
        file
        for file in wheel.files or ()
        if re.search(r"proxy/(example_config_yaml/)?[^/]*config[^/]*\.yaml$", str(file))
    ]
    paths = [Path(str(wheel.locate_file(name))) for name in names]
    return [path for path in paths if path.name != "langfuse_config.yaml"]


@pytest.mark.parametrize("path", examples(), ids=lambda path: path.name)
def test_example_configs_shipped_with_litellm_load(path: Path) -> None:
    environment: Any = defaultdict(lambda: "of-the-environment")
    for name in re.findall(r"os\.environ/(\w+)", path.read_text()):
        environment[name] = "of-the-environment"
    parse_config(path.read_text(), path.name, dict(environment))


# ── wildcard entries ──


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("openai/gpt-4o", [("openai", "gpt-4o")]),
        ("openai/org/model-x", [("openai", "org/model-x")]),
        ("team-gpt-4o", [("openai", "gpt-4o"), ("azure", "gpt-4o")]),
        ("claude-sonnet-4-5", [("anthropic", "claude-sonnet-4-5")]),
        ("fixed-whatever", [("openai", "gpt-4o-mini")]),
        ("openai/../secrets", []),
        ("openai/", []),
        ("openai/a?b", []),
    ],
)
def test_wildcard_entry_maps_a_name_to_its_providers_models(asked: str, expected: list[tuple[str, str]]) -> None:
    names = {
        "*": ["anthropic/*"],
        "openai/*": ["openai/*"],
        "team-*": ["openai/*", "azure/*"],
        "fixed-*": ["openai/gpt-4o-mini"],
    }
    entries = [
        {"model_name": name, "litellm_params": {"model": model}} for name, models in names.items() for model in models
    ]
    if asked.startswith("openai/") and not expected:
        del entries[0]  # otherwise the entry "*" would match
    config = parse_config(str({"model_list": entries}))
    wildcards = Wildcards(config.model_list, PriceMap(installed_price_map()))
    deployments = wildcards.deployments(asked)
    assert [(item.provider, item.model) for item in deployments] == expected
    assert [item.id for item in deployments] == [f"{asked}/{position}" for position in range(len(expected))]
