"""The providers that speak OpenAI's or Anthropic's protocol natively, with their addresses and quirks.

LiteLLM knows all this too, but importing it takes seconds; this table has just what the direct lane needs. Providers that are
not listed are still reached directly if their entry says `upstream: direct` and gives an `api_base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.upstream.port import Deployment, ProtocolName

_CHAT: Final = frozenset[ProtocolName]({"chat"})
_TEXT: Final = frozenset[ProtocolName]({"chat", "completions"})
_COMMON: Final = frozenset[ProtocolName]({"chat", "completions", "embeddings"})
_SERVER: Final = frozenset[ProtocolName]({*_COMMON, "rerank", "transcriptions"})
_OPENAI: Final = frozenset[ProtocolName]({*_COMMON, "responses", "moderations", "images", "speech", "transcriptions"})
_ALL: Final = frozenset[ProtocolName]({*_OPENAI, "messages"})
_EMBEDS: Final = frozenset[ProtocolName]({*_CHAT, "embeddings"})


@dataclass(frozen=True, slots=True)
class Provider:
    """What the direct lane knows about a provider. `api_base` None: every entry has to give its own."""

    protocols: frozenset[ProtocolName]
    api_base: str | None = None
    key_variables: tuple[str, ...] = ()
    base_variables: tuple[str, ...] = ()
    # These servers obey only `max_tokens`, the older of OpenAI's two names for the output cap. They ignore or refuse the
    # newer one, so that the cap would not hold.
    only_max_tokens: bool = False


PROVIDERS: Final[Mapping[str, Provider]] = {
    "openai": Provider(
        _OPENAI, "https://api.openai.com/v1", ("OPENAI_API_KEY",), ("OPENAI_BASE_URL", "OPENAI_API_BASE")
    ),
    "text-completion-openai": Provider(
        frozenset({"completions"}), "https://api.openai.com/v1", ("OPENAI_API_KEY",), ("OPENAI_BASE_URL",)
    ),
    "anthropic": Provider(
        frozenset({"messages"}), "https://api.anthropic.com", ("ANTHROPIC_API_KEY",), ("ANTHROPIC_BASE_URL",)
    ),
    # servers that people run themselves
    "custom_openai": Provider(_COMMON),
    "openai_like": Provider(_COMMON, only_max_tokens=True),
    "hosted_vllm": Provider(_SERVER, None, ("HOSTED_VLLM_API_KEY",), ("HOSTED_VLLM_API_BASE",)),
    "vllm": Provider(_SERVER, None, ("HOSTED_VLLM_API_KEY",), ("HOSTED_VLLM_API_BASE",)),
    "litellm_proxy": Provider(_ALL, None, ("LITELLM_PROXY_API_KEY",), ("LITELLM_PROXY_API_BASE",)),
    "llamafile": Provider(_COMMON, "http://127.0.0.1:8080/v1", (), ("LLAMAFILE_API_BASE",), only_max_tokens=True),
    "lm_studio": Provider(_COMMON, None, ("LM_STUDIO_API_KEY",), ("LM_STUDIO_API_BASE",), only_max_tokens=True),
    "xinference": Provider(_COMMON, None, (), (), only_max_tokens=True),
    # hosted
    "cerebras": Provider(_CHAT, "https://api.cerebras.ai/v1", ("CEREBRAS_API_KEY",)),
    "deepinfra": Provider(_COMMON, "https://api.deepinfra.com/v1/openai", ("DEEPINFRA_API_KEY",), only_max_tokens=True),
    "deepseek": Provider(_CHAT, "https://api.deepseek.com/beta", ("DEEPSEEK_API_KEY",), only_max_tokens=True),
    "fireworks_ai": Provider(
        _TEXT,
        "https://api.fireworks.ai/inference/v1",
        ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY"),
        only_max_tokens=True,
    ),
    "groq": Provider(_CHAT, "https://api.groq.com/openai/v1", ("GROQ_API_KEY",)),
    "mistral": Provider(_EMBEDS, "https://api.mistral.ai/v1", ("MISTRAL_API_KEY",), only_max_tokens=True),
    "moonshot": Provider(_CHAT, "https://api.moonshot.ai/v1", ("MOONSHOT_API_KEY",), only_max_tokens=True),
    "nvidia_nim": Provider(
        _COMMON, "https://integrate.api.nvidia.com/v1", ("NVIDIA_NIM_API_KEY",), only_max_tokens=True
    ),
    "openrouter": Provider(
        _TEXT, "https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY", "OR_API_KEY"), only_max_tokens=True
    ),
    "perplexity": Provider(_CHAT, "https://api.perplexity.ai", ("PERPLEXITYAI_API_KEY",), only_max_tokens=True),
    "sambanova": Provider(_CHAT, "https://api.sambanova.ai/v1", ("SAMBANOVA_API_KEY",), only_max_tokens=True),
    "together_ai": Provider(
        _TEXT, "https://api.together.ai/v1", ("TOGETHER_API_KEY", "TOGETHER_AI_API_KEY"), only_max_tokens=True
    ),
    "xai": Provider(_CHAT, "https://api.x.ai/v1", ("XAI_API_KEY",)),
}
_UNKNOWN: Final = Provider(_COMMON)

PATHS: Final[Mapping[ProtocolName, str]] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "responses": "/responses",
    "messages": "/messages",
    "embeddings": "/embeddings",
    "moderations": "/moderations",
    "rerank": "/rerank",
    "images": "/images/generations",
    "speech": "/audio/speech",
    "transcriptions": "/audio/transcriptions",
}


def provider_of(deployment: Deployment) -> Provider:
    """The deployment's provider. An unknown one is assumed to be a server that speaks OpenAI's protocol."""
    return PROVIDERS.get(deployment.provider, _UNKNOWN)


def speaks_protocol(deployment: Deployment, protocol: ProtocolName, environment: Mapping[str, str]) -> bool:
    """Whether the provider speaks this protocol natively, at a known address, and without LiteLLM's own clients."""
    if deployment.provider not in PROVIDERS or _NEEDS_LITELLM & deployment.params.keys():
        return False
    if deployment.info.get("mode") == "responses" and protocol == "chat":
        return False  # the model has no chat endpoint, so LiteLLM translates
    return protocol in provider_of(deployment).protocols and api_base(deployment, environment) is not None


# Entries with these need LiteLLM's own clients: credentials other than a key, and parameters that LiteLLM acts on.
_NEEDS_LITELLM: Final = frozenset(
    {"aws_access_key_id", "azure_ad_token", "vertex_project", "client", "use_chat_completions_api", "ssl_verify"}
)


def api_base(deployment: Deployment, environment: Mapping[str, str]) -> str | None:
    """The deployment's base URL: its own `api_base`, else the provider's variable, else the provider's public address."""
    configured = deployment.params.get("api_base") or deployment.params.get("base_url")
    if configured:
        return str(configured)
    provider = provider_of(deployment)
    return next((environment[name] for name in provider.base_variables if environment.get(name)), provider.api_base)


def credential(deployment: Deployment, environment: Mapping[str, str], client_credential: str | None) -> str | None:
    """The key to send: the entry's, else the provider's variable, else the client's own.

    A key from a variable belongs to the provider's own address (or the one in its variable). It is never sent to an
    `api_base` of an entry that has no key.
    """
    key = deployment.params.get("api_key")
    if key:
        return str(key)
    if not (deployment.params.get("api_base") or deployment.params.get("base_url")):
        for name in provider_of(deployment).key_variables:
            if environment.get(name):
                return environment[name]
    return client_credential


def url_of(base: str, protocol: ProtocolName) -> str:
    """The endpoint's URL under an `api_base`, which may end with the version, the whole path, or neither."""
    base = base.rstrip("/")
    path = PATHS[protocol]
    if base.endswith(path):
        return base
    if protocol == "messages" and not base.endswith("/v1"):
        return f"{base}/v1{path}"
    return base + path


def uses_max_completion_tokens(deployment: Deployment) -> bool:
    """Whether the output cap has to be sent as `max_completion_tokens`. OpenAI's reasoning models refuse the older name wherever
    they are served, and OpenAI itself accepts the newer one for every model."""
    if deployment.model.rpartition("/")[2].startswith(("o1", "o3", "o4", "gpt-5")):
        return True
    base = deployment.params.get("api_base") or deployment.params.get("base_url") or PROVIDERS["openai"].api_base
    return deployment.provider == "openai" and "//api.openai.com/" in f"{base}/"
