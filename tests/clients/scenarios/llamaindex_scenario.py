from __future__ import annotations

import json
from typing import Any

from llama_index.core.tools import FunctionTool


def weather(city: str) -> str:
    """The weather of a city."""
    return "rain"


def stream(snippet: Any) -> str:
    return "".join(part.delta or "" for part in snippet.llm.stream_complete("Say something."))


def tool(snippet: Any) -> list[Any]:
    answer = snippet.llm.chat_with_tools([FunctionTool.from_defaults(weather)], "What is the weather in Bremen?")
    call = snippet.llm.get_tool_calls_from_response(answer)[0]
    return [call.tool_name, json.dumps(call.tool_kwargs)]
