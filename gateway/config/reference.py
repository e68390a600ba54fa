"""The reference of the configuration, generated from its models: a JSON Schema for editors, and docs/configuration.md.

Types, ranges and defaults come from the models, descriptions from the comments in config.example.yaml.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import gateway
from gateway.config.schema import SECTIONS_BY_VARIABLE, Config
from policies.settings import SETTINGS

SCHEMA_ID: Final = "config.schema.json"
_KEY: Final = re.compile(r"^(?P<indent>[ #-]*)(?P<key>[a-z_]+):(?P<rest>.*)$")
_COMMENT: Final = re.compile(r"(?:^|\s)#\s+(?P<text>.+)$")
_USD: Final = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}, {"type": "null"}], "default": None}
_EXTRA: Final = {
    ("ModelConfig", "model_name"): "the public name, which clients send as `model`",
    (
        "ModelConfig",
        "litellm_params",
    ): "LiteLLM's own: `model`, `api_key`, `api_base` and so on; `mock_response` answers offline",
    ("ModelConfig", "model_info"): "prices and limits where the price map does not know them, or yours differ",
}


def example_file() -> Path:
    """In a wheel the example is inside the package, in a source tree beside it."""
    package = Path(gateway.__file__).parent
    installed = package / "config.example.yaml"
    return installed if installed.is_file() else package.parent / "config.example.yaml"


def remarks() -> dict[tuple[str, str], str]:
    """The example file's comment on each key, by section and key."""
    remark_by_field: dict[tuple[str, str], str] = {}
    section = ""
    for line in example_file().read_text(encoding="utf-8").splitlines():
        match = _KEY.match(line)
        if match is None:
            continue
        if match["indent"] == "":
            section = match["key"]
        remark = _COMMENT.search(match["rest"])
        if remark is not None:
            remark_by_field.setdefault((section, match["key"]), remark["text"].strip())
    return remark_by_field


def section_remarks() -> dict[str, str]:
    """The comment directly above each section in the example."""
    matches = re.findall(
        r"^# (?:── )?([^\n]+?)(?: ─+)?\n(\w+):", example_file().read_text(encoding="utf-8"), re.MULTILINE
    )
    return {section: text for text, section in matches}


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the configuration file."""
    json_schema: dict[str, Any] = Config.model_json_schema()
    definitions = json_schema["$defs"]
    definitions["BudgetConfig"]["properties"]["usd"] = {**_USD, "title": "Usd"}
    remark_by_field = remarks()
    for section, definition in _sections(json_schema):
        for key, field in definitions[definition]["properties"].items():
            remark = _EXTRA.get((definition, key)) or remark_by_field.get((section, key))
            if remark:
                field["description"] = remark
    for field in json_schema["properties"].values():
        if isinstance(field.get("default"), dict):
            del field["default"]
    json_schema["properties"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "description": "Initial values of the settings. Once somebody sets one, the value in the store takes precedence.",
        "properties": {key: _setting(key) for key in SETTINGS},
    }
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "Farebox configuration",
    }
    return {**head, **{key: value for key, value in json_schema.items() if key != "title"}}


def schema_text() -> str:
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _sections(json_schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The sections of the file and the definition of each."""
    for section, field in json_schema["properties"].items():
        pointed = field.get("$ref") or field.get("items", {}).get("$ref")
        if pointed:
            yield section, pointed.rpartition("/")[2]


def _setting(key: str) -> dict[str, Any]:
    spec = SETTINGS[key]
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    entry: dict[str, Any] = {
        "type": kinds[type(spec.default)],
        "default": spec.default,
        "description": spec.description,
    }
    if spec.choices:
        entry["enum"] = list(spec.choices)
    for bound, value in (("minimum", spec.minimum), ("maximum", spec.maximum)):
        if value is not None:
            entry[bound] = value
    return entry


_HEAD: Final = """# Configuration

Farebox reads one file, given with `farebox --config FILE` or `FAREBOX_CONFIG`; without either, `config.yaml` in the working folder is read
if it exists. `farebox init` writes one with every key, its default and an explanation; `farebox check` reports all faults at once, with
file, line, column and field. Unknown keys are errors, and so are references to models that `model_list` does not have. A value
`os.environ/NAME` is read from the environment, and it is a fault if the variable does not exist.

```yaml
model_list:
  - model_name: small
    litellm_params: {model: openai/gpt-4o-mini, api_key: os.environ/OPENAI_API_KEY}
budgets:
  - {scope: run, match: "triage", tokens: 20000, usd: 0.50}
```

This page is generated from the models that read the file. Editors can complete and check the file with the JSON Schema of the same models
([config.schema.json](config.schema.json)):

```sh
farebox schema > config.schema.json
```

Make `# yaml-language-server: $schema=config.schema.json` the first line of `config.yaml`, as `farebox init` does.

The order of precedence is command line, environment, file, default. Environment variables can override the sections `server`, `storage`,
`reservations`, `alerts` and `tracing` (`FAREBOX_SERVER_PORT=8080`, `FAREBOX_STORAGE_LEDGER=redis://…`) and every setting by its own name
(`FAREBOX_ORCHESTRATION_ENABLED=true`). A fault in a variable or an option is reported under its name. At start and in `farebox check`, a
variable that looks like one of these but is not gives a warning.
"""
_NOTES: Final = {
    "model_list": "LiteLLM's own list, unchanged. Entries with the same name share its load. Models come from this file only.",
    "router_settings": "Those of LiteLLM's keys that concern forwarding. Times in seconds.",
    "litellm_settings": "LiteLLM's own section. Beside these two keys, its retries, timeouts and fallbacks take effect; `farebox check` "
    "names those that do not ([from LiteLLM](migrate-litellm.md)).",
    "environment_variables": "Variables by name, set before anything reads the environment; they take precedence over those of "
    "the process.",
    "tiers": "The models of each tier, best first: `model: auto`, `auto:fast` and so on, and [routing](routing.md) choose from them.",
    "budgets": "Each has a scope, a pattern of names and at least one limit. Budgets created at run time (`farebox budgets`, "
    "`/api/budgets`) apply in addition. If several budgets match a call, it must fit into all of them.",
    "settings": "Initial values of the 40 [settings](settings.md). Once somebody sets one, the value in the store takes precedence.",
    "storage": "Where data is kept; see [the ledger](ledger.md) and [operations](operations.md).",
    "server": "Where a process listens, and its limits.",
    "reservations": "How holds are kept. Times in seconds.",
    "classifier": "The model that is asked for the intent of steps when the rules and the trained model are not sure.",
    "answers": "Answers kept for an `Idempotency-Key` or by the cache (`x-farebox-cache`, `model_info.cache_ttl_seconds`): beside an "
    "SQLite ledger, or in the ledger's Redis, shared by all gateways.",
    "alerts": "Alerts about budgets, overruns, loops and unreachable engines ([observability.md](observability.md)). Each is "
    "sent once, and is in the log, too.",
}


def document() -> str:
    """docs/configuration.md."""
    json_schema = schema()
    parts = [_HEAD]
    sections, remark_by_section = dict(_sections(json_schema)), section_remarks()
    for section in json_schema["properties"]:
        note = _NOTES.get(section) or remark_by_section.get(section, "")
        parts.append(f"\n## {section}\n\n{note}\n")
        if section in sections:
            parts.append(_table(json_schema["$defs"], sections[section], section))
    return "".join(parts)


def _table(definitions: Mapping[str, Any], definition: str, section: str) -> str:
    required = definitions[definition].get("required", ())
    lines = ["\n| key | type | default | |\n|---|---|---|---|\n"]
    for key, field in definitions[definition]["properties"].items():
        default = "**needed**" if key in required else f"`{json.dumps(field.get('default'))}`"
        remark = field.get("description", "").replace("|", "\\|")
        lines.append(f"| `{key}` | {_kind(field, definitions)} | {default} | {remark} |\n")
    if section in SECTIONS_BY_VARIABLE:
        lines.append(f"\nEach also as a variable: `FAREBOX_{section.upper()}_…`.\n")
    return "".join(lines)


def _kind(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The type in words, with its range."""
    if "$ref" in field:
        return _kind(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in field:
        kinds = [_kind(alternative, definitions) for alternative in field["anyOf"] if alternative.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds)) + (" or null" if {"type": "null"} in field["anyOf"] else "")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_kind(field['items'], definitions)}" if "items" in field else "list"
    low, high = field.get("minimum"), field.get("maximum")
    names = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "object": "mapping",
    }
    kind = names.get(field.get("type", ""), "")
    if "exclusiveMinimum" in field:
        return f"{kind}, above {field['exclusiveMinimum']}, at most {high}"
    if low is None and high is None:
        return kind
    return f"{kind}, {low} to {high}" if high is not None else f"{kind}, {low} or more"
