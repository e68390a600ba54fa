"""Chats with long tool results to compress, and shorthand for compressing them."""

import json
import re
from typing import Any

from policies.compression import Aggressiveness, CompressionPolicy, Strategy, compress_chat

Message = dict[str, Any]
LOG = "\n".join(
    f"2026-11-22 10:{minute // 60:02d}:{minute % 60:02d} INFO worker-{minute % 7} copied batch b-{minute * 37} of {minute * 11} files"
    for minute in range(300)
)
OTHER = LOG.replace("copied batch b-", "moved crate c-").replace("worker-", "robot-")  # shares no id with LOG
REPORT = "\n\n".join(
    f"Chapter {number} tells how site site-{number} sold {number * 13} units to customer K{number}."
    for number in range(120)
)


def count(text: str) -> int:
    return len(re.findall(r"\w{1,4}|[^\w\s]|\s\s+", text))


def call(number: int, name: str = "read_log", **arguments: Any) -> Message:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}],
    }


def result(number: int, content: Any) -> Message:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": content}


def chat(*middle: Message, question: str = "What of the files?") -> list[Message]:
    return [
        {"role": "system", "content": "You   work with tools.   "},
        {"role": "user", "content": "Start."},
        *middle,
        {"role": "user", "content": question},
    ]


def policy(strategy: Strategy = Strategy.EXTRACTIVE, **overrides: Any) -> CompressionPolicy:
    values: dict[str, Any] = {"target_ratio": 0.3, "min_quality": 0.0, "aggressiveness": Aggressiveness.HIGH}
    return CompressionPolicy(strategy, **(values | overrides))


def compressed(messages: list[Message], chosen: CompressionPolicy | None = None, **options: Any) -> list[Message]:
    return compress_chat(messages, chosen or policy(), count, **options).messages or messages
