"""Lets LiteLLM read whole answers without usage. Some of its parsers take for granted that the provider reports it, and fail on an
answer that is complete otherwise.

They get zeros instead, which the pipeline takes for no usage, so that it counts the answer itself.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Final

_LLMS: Final = "litellm.llms."
# Module, class and method of a parser, and the field that it needs, with a value that it reads without an error.
_PARSERS: Final[tuple[tuple[str, str, str, str, Any], ...]] = (
    (
        "vertex_ai.gemini.vertex_and_google_ai_studio_gemini",
        "VertexGeminiConfig",
        "transform_response",
        "usageMetadata",
        {},
    ),
    (
        "bedrock.chat.converse_transformation",
        "AmazonConverseConfig",
        "_transform_response",
        "usage",
        {"inputTokens": 0, "outputTokens": 0},
    ),
    (
        "anthropic.chat.transformation",
        "AnthropicConfig",
        "transform_response",
        "usage",
        {"input_tokens": 0, "output_tokens": 0},
    ),
    ("cohere.chat.v2_transformation", "CohereV2ChatConfig", "transform_response", "usage", {}),
    ("databricks.chat.transformation", "DatabricksConfig", "transform_response", "usage", {}),
    ("openai_like.chat.transformation", "OpenAILikeChatConfig", "transform_response", "usage", {}),
    ("fireworks_ai.chat.transformation", "FireworksAIConfig", "transform_response", "usage", {}),
    ("groq.chat.transformation", "GroqChatConfig", "transform_response", "service_tier", None),
)


def allow_missing() -> None:
    """Call once per process, after LiteLLM is imported."""
    for module, name, method, field, default in _PARSERS:
        config = getattr(importlib.import_module(_LLMS + module), name)
        parse = getattr(config, method)
        if not getattr(parse, "is_lenient", False):
            setattr(config, method, _lenient(parse, field, default))


def _lenient(parse: Callable[..., Any], field: str, default: Any) -> Callable[..., Any]:
    def parse_leniently(self: Any, *arguments: Any, **keywords: Any) -> Any:
        answer = keywords.get("raw_response", keywords.get("response"))
        if answer is not None:
            answer.json = functools.partial(_json_with, answer.json, field, default)
        return parse(self, *arguments, **keywords)

    parse_leniently.is_lenient = True  # type: ignore[attr-defined]
    return parse_leniently


def _json_with(read: Callable[..., Any], field: str, default: Any, **options: Any) -> Any:
    value = read(**options)
    if isinstance(value, dict) and value.get(field) is None:
        value[field] = default
    return value
