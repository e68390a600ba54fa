from __future__ import annotations

import json
from typing import Any

ASKED: dict[str, Any] = {
    "model": "claude",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "What is the weather in Bremen?"}],
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "weather", "description": "Of a city", "input_schema": SCHEMA}


def stream(snippet: Any) -> str:
    with snippet.client.messages.stream(**ASKED) as stream:
        return "".join(stream.text_stream)


def tool(snippet: Any) -> list[Any]:
    block = snippet.client.messages.create(tools=[TOOL], **ASKED).content[0]
    return [block.name, json.dumps(block.input)]
