"""Reads a configuration: the file, the values from the environment and command line that override it, and all faults at once.

Faults in the file are reported with line and column, those in variables or options by name.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from gateway.config.checks import faults_between
from gateway.config.faults import ConfigError, Fault, counted_rightly, field_in_words, near
from gateway.config.litellm_sections import Adopted, adopt
from gateway.config.marked_yaml import Mark, Path, read_marked
from gateway.config.schema import Config

_VARIABLE: Final = "os.environ/"
_AFTER_THE_FILE: Final = Mark(1_000_000_000, 1)


@dataclass(frozen=True, slots=True)
class Override:
    """A value that overrides the file's, and the name of its source."""

    value: Any
    source: str


@dataclass(slots=True)
class _Locations:
    """The places of everything. `origins`: where the file has data that was moved before validation."""

    name: str
    marks: dict[Path, Mark]
    given: Mapping[Path, Override]
    origins: Mapping[Path, Path] = field(default_factory=dict)

    def described(self, faults: list[Fault]) -> list[str]:
        """One sentence per fault, in the file's order, without duplicates."""
        written = [(self._path_in_file(path), text) for path, text in faults]
        written.sort(key=lambda one: self._mark(one[0]))
        return list(dict.fromkeys(f"{self._where(path)}: {field_in_words(path)}: {text}" for path, text in written))

    def _path_in_file(self, path: Path) -> Path:
        for length in range(len(path), 0, -1):
            if path[:length] in self.given:
                return path
            origin = self.origins.get(path[:length])
            if origin is not None:
                return self._path_in_file((*origin, *path[length:]))
        return path

    def _source(self, path: Path) -> str | None:
        return next(
            (self.given[path[:end]].source for end in range(len(path), 0, -1) if path[:end] in self.given), None
        )

    def _mark(self, path: Path) -> tuple[int, int]:
        marks_above = (self.marks.get(path[:end]) for end in range(len(path), -1, -1))
        mark = (
            _AFTER_THE_FILE
            if self._source(path)
            else next((mark for mark in marks_above if mark is not None), Mark(1, 1))
        )
        return mark.line, mark.column

    def _where(self, path: Path) -> str:
        source = self._source(path)
        if source is not None:
            return source
        line, column = self._mark(path)
        return f"{self.name}:{line}:{column}"


def parse_config(
    text: str,
    name: str = "config.yaml",
    environ: Mapping[str, str] | None = None,
    given: Mapping[Path, Override] | None = None,
) -> Config:
    """Raises `ConfigError` with every fault found. `os.environ/NAME` values are resolved from `environ` (default: the
    process's). `given` are values by (section, key) that override the file's."""
    data, marks = _read(text, name)
    adopted = adopt(data)
    locations = _Locations(name, marks, given or {}, adopted.origins)
    resolved, missing = _resolved(adopted, os.environ if environ is None else environ)
    for path, override in locations.given.items():
        _put(resolved, path, override.value)
        missing.pop(path, None)
    config, faults = _validated(resolved)
    # A value that is missing in the environment cannot have other faults.
    faults = [*adopted.faults, *missing.items(), *(fault for fault in faults if fault[0] not in missing)]
    if config is None or faults:
        raise ConfigError(locations.described(faults))
    return config.with_ignored(tuple(locations.described(adopted.ignored)))


def load_config(
    path: pathlib.Path, environ: Mapping[str, str] | None = None, given: Mapping[Path, Override] | None = None
) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}."]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    return parse_config(text, str(path), environ, given)


def _read(text: str, name: str) -> tuple[dict[str, Any], dict[Path, Mark]]:
    try:
        data, marks = read_marked(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError([f"{location}: {error.problem}"]) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError([f"{name}: {str(error).splitlines()[0]}"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"{name}:1:1: the file must hold keys such as model_list, not a {type(data).__name__}"])
    return data, marks


def _validated(data: dict[str, Any]) -> tuple[Config | None, list[Fault]]:
    between = list(faults_between(data))
    try:
        return Config.model_validate(data), between
    except ValidationError as error:
        return None, [*(_fault(validation_error) for validation_error in counted_rightly(error.errors())), *between]


def _resolved(adopted: Adopted, environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[Path, str]]:
    """The data with the environment's values, and the missing variables by path."""
    missing: dict[Path, str] = {}
    variables = _with_variables(environ, adopted.data.get("environment_variables"))
    return _resolve_environment(adopted.data, variables, (), missing), missing


def _with_variables(environ: Mapping[str, str], variables: Any) -> Mapping[str, str]:
    """The file's own variables override those of the process, as in LiteLLM."""
    if not isinstance(variables, dict):
        return environ
    plain_values = {name: str(value) for name, value in variables.items() if not str(value).startswith(_VARIABLE)}
    return {**environ, **plain_values}


def _resolve_environment(value: Any, environ: Mapping[str, str], path: Path, missing: dict[Path, str]) -> Any:
    if isinstance(value, dict):
        return {key: _resolve_environment(item, environ, (*path, key), missing) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve_environment(item, environ, (*path, index), missing) for index, item in enumerate(value)]
    if isinstance(value, str) and value.startswith(_VARIABLE):
        variable = value.removeprefix(_VARIABLE)
        if variable not in environ:
            missing[path] = f"the environment has no variable {variable}"
        return environ.get(variable)
    return value


def _put(data: dict[str, Any], path: Path, value: Any) -> None:
    """A section that is not a mapping is left as it is, and reported by validation."""
    section, key = path
    section_value = data.setdefault(str(section), {})
    if isinstance(section_value, dict):
        section_value[key] = value


def _fault(error: Any) -> Fault:
    path = tuple(part for part in error["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown key{near(str(path[-1]), _fields_beside(path))}"
    return path, message


def _fields_beside(path: Path) -> list[str]:
    model: Any = Config
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(
            (candidate for candidate in candidates if isinstance(candidate, type) and issubclass(candidate, BaseModel)),
            None,
        )
        if model is None:
            return []
    return list(model.model_fields)
