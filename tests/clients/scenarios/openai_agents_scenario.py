from __future__ import annotations

import asyncio
import json
from typing import Any

from agents import Agent, Runner, function_tool

asked: list[Any] = []


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    asked.append(["weather", json.dumps({"city": city})])
    return "rain"


def stream(snippet: Any) -> str:
    async def collect() -> str:
        result = Runner.run_streamed(snippet.agent, "Say something.")
        parts = [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]
        return "".join(parts)

    # The loop of `run_sync`: the client's connections belong to it.
    return asyncio.get_event_loop().run_until_complete(collect())


def tool(snippet: Any) -> list[Any]:
    agent = Agent(name="Forecaster", model="fake", instructions="Be brief.", tools=[weather])
    Runner.run_sync(agent, "What is the weather in Bremen?")
    return list(asked[0])
