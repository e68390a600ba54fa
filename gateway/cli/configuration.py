"""Finds and reads a command's configuration: command line before environment before file before defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import typer
import yaml

from gateway.config.faults import ConfigError, near
from gateway.config.loading import Override, load_config, parse_config
from gateway.config.marked_yaml import Path as KeyPath
from gateway.config.schema import SECTIONS_BY_VARIABLE, Config
from policies.settings import PREFIX, SETTINGS

DEFAULT_FILE: Final = Path("config.yaml")
EXIT_CONFIG: Final = 2
_PREFIX: Final = "FAREBOX_"


def load_configuration(path: Path | None, server: Mapping[str, Any] | None = None) -> Config:
    """Read the configuration; if it is invalid, print one line per fault and exit with code 2.

    `server` are command-line options that override fields of the section `server`.
    """
    options: dict[KeyPath, Override] = {
        ("server", key): Override(value, f"--{key.replace('_', '-')} (command line)")
        for key, value in (server or {}).items()
        if value is not None
    }
    try:
        return read_config(path, options=options)
    except ConfigError as error:
        for fault in error.faults:
            typer.echo(f"farebox: {fault}", err=True)
        raise typer.Exit(EXIT_CONFIG) from None


def read_config(
    path: Path | None,
    environ: Mapping[str, str] | None = None,
    options: Mapping[KeyPath, Override] = MappingProxyType({}),
) -> Config:
    """Raises `ConfigError`. Without a path, `config.yaml` here is read if it exists; otherwise the defaults serve."""
    environment = os.environ if environ is None else environ
    variables, ignored = _environment_values(environment)
    overrides = {**variables, **options}
    if path is not None or DEFAULT_FILE.exists():
        config = load_config(path or DEFAULT_FILE, environment, overrides)
    else:
        config = parse_config("", environ=environment, given=overrides)
    return config.with_ignored((*config.ignored, *ignored))


def _environment_values(environ: Mapping[str, str]) -> tuple[dict[KeyPath, Override], list[str]]:
    """The values that environment variables override, and a warning for each variable that looks like one of them but is not.

    A setting's variable is its key in upper case: FAREBOX_ORCHESTRATION_ENABLED. Like all other keys, it may also have its
    section in front: FAREBOX_SETTINGS_ORCHESTRATION_ENABLED.
    """
    paths_by_name = {
        f"{section}_{field}": (section, field) for section in SECTIONS_BY_VARIABLE for field in _section_keys(section)
    }
    paths_by_name |= {f"{section}{key}": ("settings", key) for key in SETTINGS for section in ("", "settings_")}
    overrides: dict[KeyPath, Override] = {}
    ignored = []
    for name, text in environ.items():
        key = name.removeprefix(_PREFIX).lower()
        source = f"{name} (environment)"
        if not name.startswith(_PREFIX):
            continue
        if key in paths_by_name:
            overrides[paths_by_name[key]] = Override(_parse_value(text), source)
        elif key.startswith((PREFIX, *(f"{section}_" for section in SECTIONS_BY_VARIABLE))):
            suggestion = near(name, [_PREFIX + known_name.upper() for known_name in paths_by_name])
            ignored.append(f"{source}: ignored: there is no key of this name{suggestion}")
        elif section := next((section for section in Config.model_fields if f"{key}_".startswith(f"{section}_")), None):
            ignored.append(f"{source}: ignored: only the file has the section {section}")
    return overrides, ignored


def _parse_value(text: str) -> Any:
    """Lists, mappings and null are read as YAML; anything else stays text, which the field's type converts."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    return value if value is None or isinstance(value, str | list | dict) else text


def _section_keys(section: str) -> set[str]:
    annotation: Any = Config.model_fields[section].annotation
    return set(annotation.model_fields)
