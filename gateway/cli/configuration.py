"""Finding and reading the configuration for a command: option, then environment, then file, then default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import typer
import yaml

from gateway.config import Config, ConfigError, load_config, parse_config

DEFAULT_FILE: Final = Path("config.yaml")
EXIT_CONFIG: Final = 2
# The parts of the file that a variable may replace: FAREBOX_SERVER_PORT, FAREBOX_STORAGE_LEDGER, …
_SECTIONS: Final = ("server", "storage", "reservations", "alerts", "tracing")


def configured(path: Path | None, server: Mapping[str, Any] | None = None) -> Config:
    """Ends the process with exit code 2 and one line per fault when the configuration is wrong."""
    try:
        config = read_config(path)
        given = {key: value for key, value in (server or {}).items() if value is not None}
        return with_values(config, {"server": given}) if given else config
    except ConfigError as error:
        for fault in error.faults:
            typer.echo(f"farebox: {fault}", err=True)
        raise typer.Exit(EXIT_CONFIG) from None


def read_config(path: Path | None, environ: Mapping[str, str] | None = None) -> Config:
    """Raises `ConfigError`. Without a path, `config.yaml` here is read if it exists; otherwise the defaults serve."""
    found = os.environ if environ is None else environ
    if path is not None or DEFAULT_FILE.exists():
        config = load_config(path or DEFAULT_FILE, found)
    else:
        config = parse_config("", environ=found)
    values = _from_environment(found)
    return with_values(config, values, "the environment") if values else config


def with_values(config: Config, values: Mapping[str, Mapping[str, Any]], name: str = "the command line") -> Config:
    """The same configuration with some values replaced, checked like the file."""
    data = config.model_dump(mode="json", exclude_unset=True)
    for section, given in values.items():
        data.setdefault(section, {}).update(given)
    _restore_money(data, config)
    return parse_config(yaml.safe_dump(data, sort_keys=False), name, {}).with_ignored(config.ignored)


def _restore_money(data: dict[str, Any], config: Config) -> None:
    """Budgets hold nano-USD inside and USD in files."""
    for written, budget in zip(data.get("budgets", ()), config.budgets, strict=True):
        if budget.usd is not None:
            written["usd"] = f"{budget.usd}e-9"


def _from_environment(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Numbers and booleans are read as YAML would read them. Settings go by their own key: FAREBOX_ORCHESTRATION_ENABLED."""
    from policies.settings import SETTINGS

    values: dict[str, dict[str, Any]] = {}
    for name, text in environ.items():
        if not name.startswith("FAREBOX_"):
            continue
        key = name.removeprefix("FAREBOX_").lower()
        if key in SETTINGS:
            values.setdefault("settings", {})[key] = text
            continue
        section, _, field = key.partition("_")
        if section in _SECTIONS and field in _fields(section):
            values.setdefault(section, {})[field] = yaml.safe_load(text)
    return values


def _fields(section: str) -> set[str]:
    annotation: Any = Config.model_fields[section].annotation
    return set(annotation.model_fields)
