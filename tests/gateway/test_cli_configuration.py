"""Precedence of option, variable and file. A fault names its source, and a variable without effect is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from gateway.cli.configuration import load_configuration, read_config
from gateway.config.faults import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "config.yaml"
    written.write_text("server: {port: 1, workers: 2}\nalerts: {budget_percent: [50]}\n")
    return written


SEVERAL = {"FAREBOX_STORAGE_LEDGER": "redis://x", "FAREBOX_STORAGE_STORE": "postgresql://x"}


def test_environment_variable_overrides_the_file(file: Path) -> None:
    environment = {**SEVERAL, "FAREBOX_SERVER_PORT": "7", "FAREBOX_ALERTS_BUDGET_PERCENT": "[60, 70]"}
    config = read_config(file, environment)
    assert (config.server.port, config.server.workers, config.alerts.budget_percent) == (7, 2, (60, 70))


@pytest.mark.parametrize("name", ["FAREBOX_ORCHESTRATION_ENABLED", "FAREBOX_SETTINGS_ORCHESTRATION_ENABLED"])
def test_setting_variable_may_omit_its_section(file: Path, name: str) -> None:
    config = read_config(file, {**SEVERAL, name: "true"})
    assert (config.settings["orchestration_enabled"], config.ignored) == (True, ())


def test_faults_name_the_environment_variable_or_the_place_in_the_file(file: Path) -> None:
    environment = {
        **SEVERAL,
        "FAREBOX_SERVER_PORT": "abc",
        "FAREBOX_ORCHESTRATION_ENABLED": "maybe",
        "FAREBOX_ALERTS_BUDGET_PERCENT": "[0]",
    }
    file.write_text("srver: 1\n" + file.read_text())
    with pytest.raises(ConfigError) as caught:
        read_config(file, environment)
    assert [fault.split(": ")[:2] for fault in caught.value.faults] == [
        [f"{file}:1:1", "srver"],
        ["FAREBOX_ORCHESTRATION_ENABLED (environment)", "settings.orchestration_enabled"],
        ["FAREBOX_SERVER_PORT (environment)", "server.port"],
        ["FAREBOX_ALERTS_BUDGET_PERCENT (environment)", "alerts.budget_percent[0]"],
    ]


def test_fault_of_an_option_names_the_option(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAREBOX_STORAGE_LEDGER", raising=False)
    with pytest.raises(typer.Exit):
        load_configuration(file, {"workers": 3, "host": None})
    message = capsys.readouterr().err
    assert message.startswith("farebox: --workers (command line): server.workers: is above 1, but an SQLite ledger")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("FAREBOX_SERVER_PRT", "1", "there is no key of this name (did you mean 'FAREBOX_SERVER_PORT'?)"),
        ("FAREBOX_ORCHESTRATION_ENABLD", "1", "there is no key of this name (did you mean 'FAREBOX_ORCHESTRATION_EN"),
        ("FAREBOX_CLASSIFIER_MODEL", "a", "only the file has the section classifier"),
        ("FAREBOX_BUDGETS", "[]", "only the file has the section budgets"),
    ],
)
def test_unknown_farebox_variable_is_reported_as_ignored(file: Path, name: str, text: str, message: str) -> None:
    config = read_config(file, {**SEVERAL, name: text})
    assert [notice.startswith(f"{name} (environment): ignored: {message}") for notice in config.ignored] == [True]


def test_unrelated_variables_are_not_reported(file: Path) -> None:
    others = {"FAREBOX_ADMIN_KEY": "k", "FAREBOX_CONFIG": "c", "FAREBOX_PORT_4000_TCP": "tcp://x", "SERVER_PRT": "1"}
    assert read_config(file, {**SEVERAL, **others}).ignored == ()


@pytest.mark.parametrize("text", ["1.41", "'1.41'"])
def test_numeric_looking_value_of_a_text_key_stays_text(file: Path, text: str) -> None:
    config = read_config(file, {**SEVERAL, "FAREBOX_TRACING_CONVENTIONS": text, "FAREBOX_TRACING_SERVICE_NAME": "7"})
    assert (config.tracing.conventions, config.tracing.service_name) == ("1.41", "7")


def test_value_that_is_invalid_yaml_is_taken_literally(file: Path) -> None:
    assert read_config(file, {**SEVERAL, "FAREBOX_SERVER_HOST": "[::"}).server.host == "[::"
