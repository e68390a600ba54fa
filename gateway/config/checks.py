"""Checks between parts of a configuration. They run on the raw data, so that their faults are reported with those of the parts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from gateway.config.budgets import LIMITLESS, UNITS
from gateway.config.faults import Fault, near
from gateway.config.marked_yaml import Path

_TIERS: Final = ("fast", "balanced", "powerful")
_FALLBACKS: Final = ("fallbacks", "context_window_fallbacks")
_ANY_MODEL: Final = "*"
_SHARED: Final = {"ledger": "redis://…", "store": "postgresql://…"}  # what several processes need in place of SQLite


def faults_between(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Skips parts that are not mappings or lists as expected: that is reported elsewhere."""
    names = {entry.get("model_name") for _, entry in _mappings(data, "model_list")}
    known_names = {name for name in names if isinstance(name, str)}
    for path, name in _named_models(data):
        if not _is_there(name, known_names):
            yield path, f"model_list does not have {name!r}{near(name, known_names)}"
    yield from _several_processes(data)
    for position, budget in _mappings(data, "budgets"):
        if all(budget.get(unit) is None for unit in UNITS):
            yield ("budgets", position), LIMITLESS


def _named_models(data: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    for tier in _TIERS:
        yield from _texts(("tiers", tier), _section(data, "tiers").get(tier))
    for section, key in (("classifier", "model"), ("compression", "semantic_model")):
        model = _section(data, section).get(key)
        if isinstance(model, str):
            yield (section, key), model
    router = _section(data, "router_settings")
    for key in _FALLBACKS:
        for position, table in _mappings(router, key):
            for name, fallback_names in table.items():
                path = ("router_settings", key, position, name)
                if isinstance(name, str) and name != _ANY_MODEL:
                    yield path, name
                yield from _texts(path, fallback_names)


def _several_processes(data: Mapping[str, Any]) -> Iterator[Fault]:
    workers = _section(data, "server").get("workers")
    if not str(workers).isdecimal() or int(str(workers)[:9]) <= 1:
        return
    for part, other in _SHARED.items():
        url = _section(data, "storage").get(part, "sqlite")
        if isinstance(url, str) and url.startswith(("sqlite", "memory")):
            message = f"is above 1, but an SQLite {part} belongs to one process: set storage.{part} to {other} or workers to 1"
            yield ("server", "workers"), message


def _is_there(name: str, names: Collection[str]) -> bool:
    """Whether the model exists, or an entry such as `openai/*` covers it."""
    return name in names or any("*" in known_name and fnmatchcase(name, known_name) for known_name in names)


def _section(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = data.get(key)
    return section if isinstance(section, Mapping) else {}


def _mappings(data: Mapping[str, Any], key: str) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    value = data.get(key)
    for position, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, Mapping):
            yield position, item


def _texts(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    for position, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, str):
            yield (*path, position), item
