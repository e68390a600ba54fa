"""Finding and reading the configuration for a command: option, then environment, then file, then default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import typer
import yaml

from gateway.config import Config
from gateway.config_faults import ConfigError, near
from gateway.config_file import Given, load_config, parse_config
from gateway.marked_yaml import Path as Place
from policies.settings import PREFIX, SETTINGS

DEFAULT_FILE: Final = Path("config.yaml")
EXIT_CONFIG: Final = 2
# The parts of the file that a variable may replace: FAREBOX_SERVER_PORT, FAREBOX_STORAGE_LEDGER, …
_SECTIONS: Final = ("server", "storage", "reservations", "alerts", "tracing")
_PREFIX: Final = "FAREBOX_"


def configured(path: Path | None, server: Mapping[str, Any] | None = None) -> Config:
    """Ends the process with exit code 2 and one line per fault when the configuration is wrong. `server` are the command's
    options of these names."""
    options: dict[Place, Given] = {
        ("server", key): Given(value, f"--{key.replace('_', '-')} (command line)")
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
    options: Mapping[Place, Given] = MappingProxyType({}),
) -> Config:
    """Raises `ConfigError`. Without a path, `config.yaml` here is read if it exists; otherwise the defaults serve."""
    found = os.environ if environ is None else environ
    variables, ignored = _from_environment(found)
    given = {**variables, **options}
    if path is not None or DEFAULT_FILE.exists():
        config = load_config(path or DEFAULT_FILE, found, given)
    else:
        config = parse_config("", environ=found, given=given)
    return config.with_ignored((*config.ignored, *ignored))


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[Place, Given], list[str]]:
    """What variables put over the file, and a sentence for each that seems to be meant for it and is not.

    Settings go by their own key: FAREBOX_ORCHESTRATION_ENABLED.
    """
    known = {f"{section}_{field}": (section, field) for section in _SECTIONS for field in _fields(section)}
    known |= {key: ("settings", key) for key in SETTINGS}
    given: dict[Place, Given] = {}
    ignored = []
    for name, text in environ.items():
        key = name.removeprefix(_PREFIX).lower()
        source = f"{name} (environment)"
        if not name.startswith(_PREFIX):
            continue
        if key in known:
            given[known[key]] = Given(_read(text), source)
        elif key.startswith((PREFIX, *(f"{section}_" for section in _SECTIONS))):
            guess = near(name, [_PREFIX + one.upper() for one in known])
            ignored.append(f"{source}: ignored: there is no key of this name{guess}")
        elif section := next((one for one in Config.model_fields if f"{key}_".startswith(f"{one}_")), None):
            ignored.append(f"{source}: ignored: only the file has the section {section}")
    return given, ignored


def _read(text: str) -> Any:
    """Lists, mappings and null as YAML; all else stays text, of which the field makes a number or a switch if it is one."""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    return found if found is None or isinstance(found, str | list | dict) else text


def _fields(section: str) -> set[str]:
    annotation: Any = Config.model_fields[section].annotation
    return set(annotation.model_fields)
