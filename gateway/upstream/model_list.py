"""Makes deployments from the entries of `model_list`: finds the provider of each model, and gives each entry an id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, Protocol

from gateway.upstream.port import Deployment
from gateway.upstream.price_map import PriceMap

_FAMILIES: Final = ("vertex_ai", "fireworks_ai")  # the map lists their models as vertex_ai-anthropic_models and so on
_RENAMED: Final = {"bedrock_converse": "bedrock"}
_RESPONSES: Final = "responses/"  # openai/responses/gpt-x: a model to be called over the Responses protocol only


class ModelListEntry(Protocol):
    """One entry of LiteLLM's `model_list` with environment variables resolved, plus our own `upstream`."""

    @property
    def model_name(self) -> str: ...
    @property
    def litellm_params(self) -> Mapping[str, Any]: ...
    @property
    def model_info(self) -> Mapping[str, Any]: ...
    @property
    def upstream(self) -> Literal["auto", "direct", "litellm"]: ...


def deployments_of(entries: Iterable[ModelListEntry], prices: PriceMap) -> tuple[Deployment, ...]:
    """One deployment per entry. Its id is the public name and the entry's position among its siblings: `gpt/0`."""
    siblings: dict[str, int] = {}
    deployments = []
    for entry in entries:
        position = siblings.get(entry.model_name, 0)
        siblings[entry.model_name] = position + 1
        provider, model = provider_and_model(entry.litellm_params, prices)
        info = entry.model_info
        if model.startswith(_RESPONSES):
            model, info = model.removeprefix(_RESPONSES), {"mode": "responses", **info}
        deployments.append(
            Deployment(
                id=f"{entry.model_name}/{position}",
                name=entry.model_name,
                provider=provider,
                model=model,
                lane=entry.upstream,
                params=entry.litellm_params,
                info=info,
                weight=_weight(entry.litellm_params),
            )
        )
    return tuple(deployments)


def _weight(params: Mapping[str, Any]) -> float:
    """The entry's share of the load of its name. Without a `weight`, its limit of calls or tokens per minute, as in LiteLLM."""
    values = (params.get(name) for name in ("weight", "rpm", "tpm"))
    return next((value for value in values if isinstance(value, int | float) and not isinstance(value, bool)), 1)


def provider_and_model(params: Mapping[str, Any], prices: PriceMap) -> tuple[str, str]:
    """LiteLLM's rule, without LiteLLM: `custom_llm_provider`, else the part before the first slash, else the provider
    under which the price map lists the bare name, else openai."""
    name = str(params["model"])
    head, slash, model = name.partition("/")
    custom_provider = params.get("custom_llm_provider")
    if custom_provider:
        return str(custom_provider), model if slash and head == custom_provider else name
    if slash:
        return head, model
    map_provider = str((prices.raw(name) or {}).get("litellm_provider") or "openai")
    family = next((item for item in _FAMILIES if map_provider.startswith(f"{item}-")), map_provider)
    return _RENAMED.get(family, family), name
