"""Inputs made to hurt: each pass over them has to stay linear."""

import json
from typing import Any

import pytest

from policies.compression import Aggressiveness, CompressionPolicy, Strategy, compress_chat

# Inputs on which a careless pass is quadratic. 60,000 characters would then run into the timeout of a test.

SIZE = 60_000
BOMBS = {
    "blanks": " " * SIZE,
    "empty lines": "\n" * SIZE,
    "lines behind a tag": "<div>" + "\n" * SIZE,
    "opening tags": "<div>" + "<" * SIZE,
    "open comments": "<div>" + "<!--" * (SIZE // 4),
    "open scripts": "<div>" + "<script>" * (SIZE // 8),
    "one attribute": f"<div {'x' * SIZE}>",
    "opening quotes": "“" * SIZE,
    "fences": "```\n~~~\n" * (SIZE // 8),
    "one word": "a" * SIZE,
    "dashes": "a" + "-" * SIZE,
    "escapes": "\x1b[" * (SIZE // 2),
    "carriage returns": "a\r" * (SIZE // 2),
    "nested arrays": "[" * SIZE + "]" * SIZE,
    "wide array": json.dumps(list(range(SIZE // 7))),
    "escaped quotes in code": "def f():\n    return 1\nimport x\n" + '"' + '\\"' * (SIZE // 2),
    "brackets": "(\n" * (SIZE // 2),
    "a long heading": "# " + "h" * (SIZE // 2) + "\n" + "word word.\n" * (SIZE // 22),
    "false receipts": "[… 3 of 9 passages left out · 3fa9 …]\n" * (SIZE // 40),
    "false references": "[… 12 lines as in message 3 (read) · 9f3e …]\n" * (SIZE // 46),
    "fenced empty lines": "```\n" + "\n" * SIZE + "```\n",
    "numbers": "".join(f"{number}\n" for number in range(SIZE // 7)),
    "ids": " ".join(f"id_{number}" for number in range(SIZE // 10)),
    "boilerplate in itself": "in " * (SIZE // 6) + "order to " * (SIZE // 18),
}


def result(number: int, content: str) -> list[dict[str, Any]]:
    call = {"id": f"call_{number}", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"call_{number}", "content": content},
    ]


@pytest.mark.parametrize("strategy", [Strategy.TEMPLATE, Strategy.TRUNCATE, Strategy.EXTRACTIVE])
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_bounded(name: str, strategy: Strategy) -> None:
    bomb = BOMBS[name]
    memory = {"role": "user", "name": "memory", "content": bomb}
    question = {"role": "user", "content": "Where is id_77?"}
    messages = [*result(1, bomb), memory, *result(2, bomb), question]
    policy = CompressionPolicy(strategy, 0.3, 0.0, Aggressiveness.HIGH)
    outcome = compress_chat(messages, policy, len)
    assert outcome.tokens_after <= outcome.tokens_before
    assert outcome.messages is None or outcome.messages[-1] == question
