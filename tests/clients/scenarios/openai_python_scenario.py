from __future__ import annotations

from typing import Any

MESSAGES = [{"role": "user", "content": "What is the weather in Bremen?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": PARAMETERS}}


def stream(snippet: Any) -> str:
    chunks = snippet.client.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def tool(snippet: Any) -> list[Any]:
    answer = snippet.client.chat.completions.create(model="fake", messages=MESSAGES, tools=[TOOL])
    call = answer.choices[0].message.tool_calls[0].function
    return [call.name, call.arguments]
