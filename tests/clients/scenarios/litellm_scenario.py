from __future__ import annotations

from typing import Any

import litellm

MESSAGES = [{"role": "user", "content": "What is the weather in Bremen?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": PARAMETERS}}


def stream(snippet: Any) -> str:
    chunks = litellm.completion(messages=MESSAGES, stream=True, **snippet.settings)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def tool(snippet: Any) -> list[Any]:
    # With tools, LiteLLM 1.106 imports its MCP gateway, which needs `litellm[mcp]`; this is how its own proxy steps around it.
    answer = litellm.completion(messages=MESSAGES, tools=[TOOL], _skip_mcp_handler=True, **snippet.settings)
    call = answer.choices[0].message.tool_calls[0].function
    return [call.name, call.arguments]
