from __future__ import annotations

import json
from typing import Any

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": SCHEMA}}


def stream(snippet: Any) -> str:
    snippet.llm.stream = True
    try:
        return str(snippet.llm.call("Say something."))
    finally:
        snippet.llm.stream = False


def tool(snippet: Any) -> list[Any]:
    asked: list[Any] = []

    def weather(city: str) -> str:
        asked.append(["weather", json.dumps({"city": city})])
        return "rain"

    snippet.llm.call("What is the weather in Bremen?", tools=[TOOL], available_functions={"weather": weather})
    return list(asked[0])
