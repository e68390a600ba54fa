"""Looks up models in LiteLLM's price map: prices, limits and abilities. Reads it from the wheel without importing LiteLLM.

The file is parsed on first use (25 ms and 9 MB for 4,200 models, compared to seconds and 170 MB for the import) and
dropped once the configured models have been looked up, so that only their own entries stay in memory. orjson would take half
the time, but its key cache fragments that memory and keeps Python from returning 1 MB of it.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.upstream.port import Deployment

_FILE: Final = "model_prices_and_context_window_backup.json"
_EXAMPLE: Final = "sample_spec"  # an entry that explains the fields
_SESSION: Final = "code_interpreter_cost_per_session"
_DROPPED: Final = frozenset({"source", "metadata", "comment", "notes", "supported_endpoints", "supported_regions"})
# The other providers under whose names the map lists a provider's models.
_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "text-completion-openai": ("openai",),
    "azure_text": ("azure",),
    "azure_ai": ("azure",),
    "vertex_ai_beta": ("vertex_ai",),
    "bedrock_converse": ("bedrock",),
    "ollama_chat": ("ollama",),
    "cohere_chat": ("cohere",),
}
# Parts of a model's name that choose how to call it, not which model.
_ROUTES: Final = re.compile(r"^(?:responses|chat|converse|invoke|converse_like|openai)/")
_REGION: Final = re.compile(r"^[a-z]{2}(?:-gov)?-[a-z]+-\d/")
_FINE_TUNED: Final = re.compile(r"^(ft:[^:]+):.*$")
_PRICE_FIELD: Final = re.compile(r"cost|^tiered_pricing$")


class PriceMapDamaged(Exception):
    """LiteLLM's price map exists but cannot be read: the installation is damaged."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """`raw` is the map's entry overridden by the configuration, in LiteLLM's field names. `key` is the name in the map, if any."""

    raw: Mapping[str, Any]
    key: str | None

    @property
    def max_input_tokens(self) -> int | None:
        return _positive(self.raw.get("max_input_tokens"))

    @property
    def max_output_tokens(self) -> int | None:
        """For one answer. `max_tokens` is the map's older name for it."""
        return _positive(self.raw.get("max_output_tokens")) or _positive(self.raw.get("max_tokens"))

    @property
    def mode(self) -> str | None:
        """chat, completion, embedding, responses, image_generation, audio_speech, …"""
        mode = self.raw.get("mode")
        return mode if isinstance(mode, str) else None

    def supports(self, ability: str) -> bool | None:
        """`function_calling`, `vision`, `response_schema`, …; None if it is not known."""
        value = self.raw.get(f"supports_{ability}")
        return value if isinstance(value, bool) else None


class PriceMap:
    """`path` None: there is no map, so only what the configuration says is known."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: Mapping[str, Any] | None = None

    def entry(self, deployment: Deployment) -> ModelEntry:
        """What is known about a deployment's model; empty if nothing is. Raises `PriceMapDamaged`.

        Looked up under `base_model` if the entry names one, then `provider/model`, then `model`, then without the parts
        of the name that only choose a route or a region. A name without a provider counts only if the map assigns it to
        this provider: a model that is merely named like another one does not have that one's price.
        """
        key = next((name for name in _names(deployment) if self._is_listed_under(name, deployment.provider)), None)
        base = self.raw(key) if key is not None else None
        prices = {name: value for name, value in deployment.params.items() if is_price(name)}
        configured = {name: value for name, value in {**prices, **deployment.info}.items() if value is not None}
        return ModelEntry({**(self._container(deployment) if base else {}), **(base or {}), **configured}, key)

    def _container(self, deployment: Deployment) -> Mapping[str, Any]:
        """A provider's price for running a model's code, which the map lists once for all of its models."""
        names = (f"{provider}/container" for provider in (deployment.provider, *_ALIASES.get(deployment.provider, ())))
        costs = ((self._index().get(name) or {}).get(_SESSION) for name in names)
        cost = next((cost for cost in costs if cost is not None), None)
        return {} if cost is None else {_SESSION: cost}

    def raw(self, key: str) -> dict[str, Any] | None:
        """The map's entry with exactly this name."""
        entry = self._index().get(key)
        return None if entry is None else {name: value for name, value in entry.items() if name not in _DROPPED}

    def forget(self) -> None:
        """Free the parsed map. The next lookup reads it again."""
        self._entries = None

    def _is_listed_under(self, name: str, provider: str) -> bool:
        entry = self._index().get(name)
        if entry is None:
            return False
        if "/" in name and name.split("/", 1)[0] in (provider, *_ALIASES.get(provider, ())):
            return True
        map_provider = str(entry.get("litellm_provider", ""))
        # vertex_ai-anthropic_models, bedrock_converse, cohere_chat: a family of the provider's
        return any(
            map_provider == known_name or map_provider.startswith((f"{known_name}-", f"{known_name}_"))
            for known_name in (provider, *_ALIASES.get(provider, ()))
        )

    def _index(self) -> Mapping[str, Any]:
        if self._entries is None:
            self._entries = _read(self._path) if self._path is not None else {}
        return self._entries


def is_price(name: str) -> bool:
    """Whether a field of this name is a price."""
    return _PRICE_FIELD.search(name) is not None


def installed_price_map() -> Path | None:
    """The map in the installed LiteLLM, found without importing it; None if LiteLLM is not installed."""
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _FILE
    return path if path.is_file() else None


def _names(deployment: Deployment) -> Iterator[str]:
    """The names under which the map may list the model, most specific first."""
    base_model = deployment.info.get("base_model") or deployment.params.get("base_model")
    models = [str(base_model)] if base_model else []
    models.append(deployment.model)
    for model in models:
        for provider in (deployment.provider, *_ALIASES.get(deployment.provider, ())):
            yield f"{provider}/{model}"
        yield model
    stripped = _REGION.sub("", _ROUTES.sub("", deployment.model))
    stripped = _FINE_TUNED.sub(r"\1", stripped)
    if stripped != deployment.model:
        yield f"{deployment.provider}/{stripped}"
        yield stripped


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_bytes())
        return {name: entry for name, entry in entries.items() if name != _EXAMPLE and isinstance(entry, dict)}
    except (OSError, ValueError, AttributeError) as error:
        raise PriceMapDamaged(f"{path.name} cannot be read ({error}): install LiteLLM again.") from error


def _positive(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
        return None
    return int(value)
