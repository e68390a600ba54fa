"""The configuration file: all faults are reported at once, with file, line, column and field, and a suggestion for a near miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.budgets import usd_to_nano
from gateway.config.faults import ConfigError
from gateway.config.loading import load_config, parse_config
from policies.budgets import HoldKind, Mode, OnOutage, Scope, Window
from policies.pressure import Ladder, Rung


def faults(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "farebox.yaml", environ or {})
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


MODEL = "model_list:\n  - model_name: a\n    litellm_params: {model: openai/a}\n"

ONE_FAULT: list[tuple[str, str, str]] = [
    ("budget:\n  - {scope: run, tokens: 1}\n", "farebox.yaml:1:1: budget:", "did you mean 'budgets'?"),
    ("server:\n  prt: 4000\n", "farebox.yaml:2:3: server.prt:", "did you mean 'port'?"),
    ("server:\n  zzz: 1\n", "farebox.yaml:2:3: server.zzz:", "unknown key"),
    ("budgets:\n  - scope: run\n    tokns: 5\n    usd: 1\n", "farebox.yaml:3:5: budgets[0].tokns:", "'tokens'?"),
    ("server: {port: high}\n", "farebox.yaml:1:10: server.port:", "integer"),
    ("server: {port: 70000}\n", "farebox.yaml:1:10: server.port:", "65535"),
    ("budgets:\n  - scope: run\n", "farebox.yaml:2:5: budgets[0]:", "at least one of tokens, usd, requests"),
    ("budgets:\n  - {scope: run, tokens: -1}\n", "farebox.yaml:2:18: budgets[0].tokens:", "greater than or equal to 0"),
    ("budgets:\n  - {scope: run, tokens: true}\n", "farebox.yaml:2:18: budgets[0].tokens:", "integer"),
    ("budgets:\n  - {scope: run, tokens: '5'}\n", "farebox.yaml:2:18: budgets[0].tokens:", "integer"),
    ("budgets:\n  - {scope: run, usd: -0.1}\n", "farebox.yaml:2:18: budgets[0].usd:", "0 or more"),
    ("budgets:\n  - {scope: run, usd: .nan}\n", "farebox.yaml:2:18: budgets[0].usd:", "0 or more"),
    ("budgets:\n  - {scope: run, usd: 10000000}\n", "farebox.yaml:2:18: budgets[0].usd:", "at most 9,007,199"),
    ("budgets:\n  - {scope: team, tokens: 1}\n", "farebox.yaml:2:6: budgets[0].scope:", "'step', 'run'"),
    (
        "budgets:\n  - {scope: run, tokens: 1, window: day}\n",
        "farebox.yaml:2:29: budgets[0].window:",
        "lasts for the run",
    ),
    ("budgets:\n  - {scope: key, tokens: 1, window: run}\n", "farebox.yaml:2:29: budgets[0].window:", "total, minute"),
    (
        "budgets:\n  - {scope: key, tokens: 1, timezone: Mars/X}\n",
        "farebox.yaml:2:29: budgets[0].timezone:",
        "no time zone",
    ),
    (
        "budgets:\n  - {scope: key, tokens: 1, timezone: Europe}\n",  # a directory of the time zone database
        "farebox.yaml:2:29: budgets[0].timezone:",
        "no time zone",
    ),
    ("storage: {ledger: 'mysql://x'}\n", "farebox.yaml:1:11: storage.ledger:", "must begin with one of sqlite:///"),
    ("storage: {store: 'redis://x'}\n", "farebox.yaml:1:11: storage.store:", "postgresql://"),
    (
        "settings: {orchestration_enabld: true}\n",
        "farebox.yaml:1:12: settings.orchestration_enabld:",
        "did you mean 'orchestration_enabled'?",
    ),
    ("settings: {orchestration_enabled: 7}\n", "farebox.yaml:1:12: settings.orchestration_enabled:", "true or false"),
    ("tiers: {fast: [b]}\n" + MODEL, "farebox.yaml:1:16: tiers.fast[0]:", "does not have 'b'"),
    ("classifier: {model: b}\n" + MODEL, "farebox.yaml:1:14: classifier.model:", "does not have 'b'"),
    (
        "storage: {store: 'postgresql://p'}\nserver: {workers: 2}\n",
        "farebox.yaml:2:10: server.workers:",
        "an SQLite ledger belongs to one process: set storage.ledger to redis://… or workers to 1",
    ),
    (
        "storage: {ledger: 'redis://r'}\nserver: {workers: 2}\n",
        "farebox.yaml:2:10: server.workers:",
        "an SQLite store belongs to one process: set storage.store to postgresql://… or workers to 1",
    ),
    ("model_list:\n  - model_name: a\n", "farebox.yaml:2:5: model_list[0].litellm_params:", "required"),
    (
        "model_list:\n  - model_name: a\n    litellm_params: {api_base: x}\n",
        "farebox.yaml:3:5: model_list[0].litellm_params.model:",
        "is missing: the provider's model",
    ),
    (
        MODEL + "compression: {semantic_model: aa}\n",
        "farebox.yaml:4:15: compression.semantic_model:",
        "does not have 'aa' (did you mean 'a'?)",
    ),
    (
        MODEL + "router_settings: {fallbacks: [{a: [b]}]}\n",
        "farebox.yaml:4:36: router_settings.fallbacks[0].a[0]:",
        "does not have 'b'",
    ),
    (
        MODEL + "router_settings: {context_window_fallbacks: [{b: [a]}]}\n",
        "farebox.yaml:4:47: router_settings.context_window_fallbacks[0].b:",
        "does not have 'b'",
    ),
    (
        MODEL + "litellm_settings: {default_fallbacks: [b]}\n",
        "farebox.yaml:4:40: litellm_settings.default_fallbacks[0]:",
        "does not have 'b'",
    ),
    (
        MODEL + "litellm_settings: {request_timeout: -1}\n",
        "farebox.yaml:4:20: litellm_settings.request_timeout:",
        "greater than 0",
    ),
    (MODEL + "classifier: {cache_ttl_seconds: .inf}\n", "farebox.yaml:4:14: classifier.cache_ttl_seconds:", "31622400"),
    (MODEL + "storage: {retention_months: 30000}\n", "farebox.yaml:4:11: storage.retention_months:", "1200"),
    (MODEL + "storage: {audit_days: 1000000000000000}\n", "farebox.yaml:4:11: storage.audit_days:", "36500"),
    (
        MODEL + "    model_info: {input_cost_per_token: abc}\n",
        "farebox.yaml:4:18: model_list[0].model_info.input_cost_per_token:",
        "must be a number of USD, not 'abc'",
    ),
    (
        # A fault of an entry is not repeated for its alias.
        MODEL + "    model_info: {max_tokens: -5}\nrouter_settings: {model_group_alias: {x: a}}\n",
        "farebox.yaml:4:18: model_list[0].model_info.max_tokens:",
        "must be a number of tokens, not -5",
    ),
    (MODEL + "    model_info: {max_output_tokens: '9'}\n", "farebox.yaml:4:18: model_list[0]", "number of tokens"),
    (MODEL + "    model_info: {max_input_tokens: .inf}\n", "farebox.yaml:4:18: model_list[0]", "number of tokens"),
    (MODEL + "    model_info: {quality: 99}\n", "farebox.yaml:4:18: model_list[0].model_info.quality:", "0 to 10"),
    (MODEL + "    model_info: {cache_ttl_seconds: abc}\n", "farebox.yaml:4:18: model_list[0]", "number of seconds"),
    (MODEL + "    model_info: {supports_vision: 'yes'}\n", "farebox.yaml:4:18: model_list[0]", "true or false"),
    (
        MODEL
        + "    model_info: {tiered_pricing: [{range: [0, 1], input_cost_per_token: x, output_cost_per_token: 1}]}\n",
        "farebox.yaml:4:18: model_list[0].model_info.tiered_pricing:",
        "has a row in which input_cost_per_token must be a number of USD, not 'x'",
    ),
    (
        "model_list: [{model_name: a, litellm_params: {model: a, output_cost_per_token: 2}}]\n",
        "farebox.yaml:1:57: model_list[0].litellm_params.output_cost_per_token:",
        "from 0 to 1 USD",
    ),
    (
        "credential_list: [{credential_name: b}, {credential_name: c, credential_values: {model: ''}}]\n"
        "model_list: [{model_name: a, litellm_params: {litellm_credential_name: c}}]\n",
        "farebox.yaml:1:82: credential_list[1].credential_values.model:",
        "is missing",
    ),
    (
        "settings: {orchestration_ais_balanced_tier_max_score: 2}\n",
        "farebox.yaml:1:12: settings.orchestration_ais_balanced_tier_max_score:",
        "is above",
    ),
    ("budgets:\n  - {scope: run, match: x y, tokens: 1}\n", "farebox.yaml:2:18: budgets[0].match:", "matches no name"),
    ("budgets:\n  - {scope: run, match: '[', tokens: 1}\n", "farebox.yaml:2:18: budgets[0].match:", "matches no name"),
    ("budgets:\n  - {scope: run, usd: 1.0e-10}\n", "farebox.yaml:2:18: budgets[0].usd:", "less than 0.000000001"),
    (
        "alerts: {webhook: 'http://10.0.0.1/x'}\n",
        "farebox.yaml:1:10: alerts.webhook:",
        "private network; if it is a host of your own, set alerts.private_networks: true",
    ),
    ("a: 1\na: 2\n", "farebox.yaml:2:1", "the key 'a' stands here twice"),
    ("server:\n  port: 1\n  host: x\n  port: 2\n", "farebox.yaml:4:3", "the key 'port' stands here twice"),
    ("a: &x [1]\nb: *x\n", "farebox.yaml:2:4", "anchors and aliases are not supported"),
    ("server: [1,\n", "farebox.yaml:2:1", ""),
    ("server:\n\tport: 1\n", "farebox.yaml:2:1", "cannot start any token"),
    ("server: {port: !!python/object:os.system 1}\n", "farebox.yaml:1:16", "could not determine a constructor"),
    ("- a\n- b\n", "farebox.yaml:1:1", "not a list"),
    ("just text\n", "farebox.yaml:1:1", "not a str"),
    ("? [a, b]\n: 1\n", "farebox.yaml:1:3", "plain word"),
    ("? {a: b}\n: 1\n", "farebox.yaml:1:3", "plain word"),
    ("server: {port: \x07}\n", "farebox.yaml", "special characters"),
    ("server:\n  host: 2026-99-99\n", "farebox.yaml", "month must be in"),
    ("7: x\n", "farebox.yaml:1:1: [7]:", "Keys should be strings"),
]


@pytest.mark.parametrize(("text", "where", "remedy"), ONE_FAULT)
def test_fault_names_its_place_and_the_remedy(text: str, where: str, remedy: str) -> None:
    reported = faults(text)
    assert len(reported) == 1, reported
    assert reported[0].startswith(where), reported
    assert remedy in reported[0], reported


def test_yaml_anchor_bomb_is_refused() -> None:
    bomb = "a: &a [x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    assert "anchors" in faults(bomb)[0]


def test_extremely_nested_file_is_a_fault() -> None:
    assert faults("[" * 100_000)[0].startswith("farebox.yaml")


def test_faults_of_several_sections_are_reported_together() -> None:
    reported = faults("server: {prt: 1}\nbudgets:\n  - {scope: team, tokens: 1}\n  - {scope: run, tokens: -5}\n")
    assert {fault.split(": ")[1] for fault in reported} == {"budgets[0].scope", "budgets[1].tokens", "server.prt"}


SCATTERED = """\
settings:
  orchestration_enabled: 7
  orchestration_max_tokens_per_step: 0
tiers: {fast: [a, b], balanced: [c]}
model_list:
  - model_name: a
    litellm_params: {model: os.environ/MODEL, api_key: os.environ/KEY, output_cost_per_token: x}
    model_info: {quality: 11, input_cost_per_token: -1}
budgets:
  - {scope: run, window: day, wait_seconds: 61}
server: {port: os.environ/PORT}
alerts: {webhook: http://127.0.0.1/, budget_percent: [0]}
"""


def test_every_fault_is_reported_in_order_of_its_line() -> None:
    assert [fault.partition(": ")[0] + " " + fault.split(": ")[1] for fault in faults(SCATTERED)] == [
        "farebox.yaml:2:3 settings.orchestration_enabled",
        "farebox.yaml:3:3 settings.orchestration_max_tokens_per_step",
        "farebox.yaml:4:19 tiers.fast[1]",
        "farebox.yaml:4:34 tiers.balanced[0]",
        "farebox.yaml:7:22 model_list[0].litellm_params.model",
        "farebox.yaml:7:47 model_list[0].litellm_params.api_key",
        "farebox.yaml:7:72 model_list[0].litellm_params.output_cost_per_token",
        "farebox.yaml:8:18 model_list[0].model_info.quality",
        "farebox.yaml:8:31 model_list[0].model_info.input_cost_per_token",
        "farebox.yaml:10:5 budgets[0]",
        "farebox.yaml:10:18 budgets[0].window",
        "farebox.yaml:10:31 budgets[0].wait_seconds",
        "farebox.yaml:11:10 server.port",
        "farebox.yaml:12:10 alerts.webhook",
        "farebox.yaml:12:55 alerts.budget_percent[0]",
    ]


def test_fault_of_a_metadata_address_does_not_suggest_private_networks() -> None:
    reported = faults("alerts: {webhook: 'http://169.254.169.254/'}\n")
    assert "private_networks" not in reported[0]


@pytest.mark.parametrize(
    "text",
    [
        MODEL + "router_settings: {fallbacks: [{'*': [a]}]}\n",
        "model_list: [{model_name: 'x/*', litellm_params: {model: 'x/*'}}]\ntiers: {fast: [x/y]}\n",
        MODEL + "    model_info: {max_tokens: null, quality: 0, cache_ttl_seconds: 0, supports_vision: false}\n",
        "budgets:\n  - {scope: step, match: 'a*/[!b-d]?', tokens: 1}\n",
        "budgets:\n  - {scope: run, usd: 0}\n",
    ],
)
def test_unusual_but_valid_configuration_is_accepted(text: str) -> None:
    parse_config(text, environ={})


def test_os_environ_reference_is_resolved_and_a_missing_variable_is_a_fault() -> None:
    text = "model_list:\n  - model_name: a\n    litellm_params: {model: openai/a, api_key: os.environ/KEY}\n"
    config = parse_config(text, environ={"KEY": "secret"})
    assert config.model_list[0].litellm_params["api_key"] == "secret"
    reported = faults(text)
    assert reported == [
        "farebox.yaml:3:39: model_list[0].litellm_params.api_key: the environment has no variable KEY",
    ]


def test_fault_does_not_repeat_a_password_in_a_url() -> None:
    assert "hunter2" not in faults("storage: {ledger: 'mysql://user:hunter2@host/db'}\n")[0]


def test_empty_file_gives_the_defaults() -> None:
    config = parse_config("")
    assert (config.server.host, config.server.port) == ("127.0.0.1", 4000)
    assert config.storage.ledger.startswith("sqlite:///")
    assert config.budgets == ()


def test_budget_entry_becomes_a_budget_value() -> None:
    config = parse_config(
        "budgets:\n"
        "  - {scope: run, match: 'nightly-*', tokens: 20000, usd: 0.50, on_pressure: [{clamp: 0.2}, refuse], hold: slices,"
        " on_outage: allow, mode: observe}\n"
        "  - {scope: key, requests: 7}\n"
    )
    run, key = (budget.budget() for budget in config.budgets)
    assert (run.scope, run.match, run.window) == (Scope.RUN, "nightly-*", Window.RUN)
    assert (run.limit.tokens, run.limit.nano_usd, run.limit.requests) == (20000, 500_000_000, None)
    assert run.on_pressure == Ladder((Rung.CLAMP, Rung.REFUSE), ((Rung.CLAMP, 0.2),))
    assert (run.hold, run.on_outage, run.mode) == (HoldKind.SLICES, OnOutage.ALLOW, Mode.OBSERVE)
    assert (key.window, key.limit.requests, key.match) == (Window.TOTAL, 7, "*")


@pytest.mark.parametrize(
    ("usd", "nano_usd"),
    [(0, 0), (0.1, 100_000_000), ("0.000000001", 1), (1, 10**9), ("9007199.254740991", 2**53 - 1)],
)
def test_usd_is_converted_to_whole_nano_usd(usd: object, nano_usd: int) -> None:
    assert usd_to_nano(usd) == nano_usd


@pytest.mark.parametrize("usd", [True, None, [], "1 USD", "1e999999999999", -1, "inf", 9007199.3, 1e-10])
def test_invalid_usd_amount_is_refused(usd: object) -> None:
    with pytest.raises(ValueError):
        usd_to_nano(usd)


def test_unreadable_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "missing.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(binary)
