"""The attribute names of OpenTelemetry's semantic conventions, in one place, with a column per version.

The conventions for generative AI are still in development and have been renamed more than once, and backends follow at their
own pace. So the version is a setting, and the rest of this package uses only our own words, the keys of these tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

from gateway.upstream.port import ProtocolName

# 1.36: before `gen_ai.provider.name`. 1.41: the last release of the common repository, which most backends read.
# genai-0.1: the first of the conventions' own repository, where a workflow is an agent that is invoked.
Conventions = Literal["1.36", "1.41", "genai-0.1"]
VERSIONS: Final[tuple[Conventions, ...]] = ("1.36", "1.41", "genai-0.1")
Value = str | bool | int | float | Sequence[str]

_SAME: Final = {
    "operation": "gen_ai.operation.name",
    "request_model": "gen_ai.request.model",
    "request_max_tokens": "gen_ai.request.max_tokens",
    "response_model": "gen_ai.response.model",
    "response_id": "gen_ai.response.id",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "conversation": "gen_ai.conversation.id",
    "error": "error.type",
    "server_address": "server.address",
    "server_port": "server.port",
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    # Our own attributes, which the conventions do not cover.
    "request": "farebox.request.id",
    "project": "farebox.project",
    "workflow": "farebox.workflow",
    "step": "farebox.step",
    "agent": "farebox.agent",
    "intent": "farebox.intent",
    "actions": "farebox.actions",
    "lane": "farebox.lane",
    "purpose": "farebox.purpose",
    "reserved_tokens": "farebox.tokens.reserved",
    "settled_tokens": "farebox.tokens.settled",
    "saved_tokens": "farebox.tokens.saved",
    "cost_usd": "farebox.cost_usd",
    "overhead": "farebox.overhead_seconds",
}
# Each word's name in each of VERSIONS; None if a version has no name for it.
_DIFFERENT: Final[Mapping[str, tuple[str | None, str | None, str | None]]] = {
    "provider": ("gen_ai.system", "gen_ai.provider.name", "gen_ai.provider.name"),
    "workflow_name": (None, "gen_ai.workflow.name", "gen_ai.agent.name"),
    "stream": (None, "gen_ai.request.stream", "gen_ai.request.stream"),
    "first_chunk": (None, "gen_ai.response.time_to_first_chunk", "gen_ai.response.time_to_first_chunk"),
    "cache_read_tokens": (None, "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read.input_tokens"),
    "cache_write_tokens": (None, "gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_write.input_tokens"),
    "reasoning_tokens": (None, "gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning.output_tokens"),
}

WORKFLOW_OPERATION: Final = "invoke_workflow"
# The conventions' names of operations. Protocols that they do not cover keep our own names.
_OPERATIONS: Final[Mapping[ProtocolName, str]] = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
}
# Providers whose names in the conventions differ from LiteLLM's.
_PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
    "moonshot": "moonshot_ai",
    "text-completion-openai": "openai",
}


def operation_of(protocol: ProtocolName) -> str:
    return _OPERATIONS.get(protocol, protocol)


def provider_of(provider: str) -> str:
    return _PROVIDERS.get(provider, provider)


def names_of(version: Conventions) -> Mapping[str, str]:
    """The attribute name of each word in this version."""
    column = VERSIONS.index(version)
    different = {word: names[column] for word, names in _DIFFERENT.items()}
    return MappingProxyType(_SAME | {word: name for word, name in different.items() if name is not None})


def rename_attributes(names: Mapping[str, str], values: Mapping[str, Value | None]) -> dict[str, Value]:
    """The values under their attribute names. Unknown values, and words without a name in this version, are left out."""
    return {names[word]: value for word, value in values.items() if value is not None and word in names}
