from __future__ import annotations

import json
from typing import Any

from langchain_core.tools import tool as make_tool


@make_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return "rain"


def stream(snippet: Any) -> str:
    return "".join(str(chunk.content) for chunk in snippet.llm.stream("Say something."))


def tool(snippet: Any) -> list[Any]:
    call = snippet.llm.bind_tools([weather]).invoke("What is the weather in Bremen?").tool_calls[0]
    return [call["name"], json.dumps(call["args"])]
