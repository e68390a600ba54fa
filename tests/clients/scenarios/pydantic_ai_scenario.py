from __future__ import annotations

import json
from typing import Any

from pydantic_ai import Agent

asked: list[Any] = []


def weather(city: str) -> str:
    """The weather of a city."""
    asked.append(["weather", json.dumps({"city": city})])
    return "rain"


def stream(snippet: Any) -> str:
    result = snippet.agent.run_stream_sync("Say something.")
    return "".join(result.stream_text(delta=True))


def tool(snippet: Any) -> list[Any]:
    agent = Agent(snippet.model, tools=[weather], model_settings={"extra_headers": snippet.tags})
    agent.run_sync("What is the weather in Bremen?")
    return list(asked[0])
