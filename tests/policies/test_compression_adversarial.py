"""Adversarial inputs: compression has to read each of them in linear time."""

import json
from collections import Counter
from typing import Any

import pytest

from policies.compression import Aggressiveness, CompressionPolicy, Strategy, compress_chat, cutting, facts, scoring

# Inputs on which a careless pass takes quadratic time: with 60,000 characters it would run into the timeout of the test.

SIZE = 60_000
ADVERSARIAL_TEXTS = {
    "blanks": " " * SIZE,
    "empty lines": "\n" * SIZE,
    "lines after a tag": "<div>" + "\n" * SIZE,
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
    "boilerplate inside boilerplate": "in " * (SIZE // 6) + "order to " * (SIZE // 18),
}


def result(number: int, content: str) -> list[dict[str, Any]]:
    call = {"id": f"call_{number}", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"call_{number}", "content": content},
    ]


@pytest.mark.parametrize("strategy", [Strategy.TEMPLATE, Strategy.TRUNCATE, Strategy.EXTRACTIVE])
@pytest.mark.parametrize("name", ADVERSARIAL_TEXTS)
def test_adversarial_input_is_compressed_in_bounded_time_and_never_grows(name: str, strategy: Strategy) -> None:
    text = ADVERSARIAL_TEXTS[name]
    memory = {"role": "user", "name": "memory", "content": text}
    question = {"role": "user", "content": "Where is id_77?"}
    messages = [*result(1, text), memory, *result(2, text), question]
    policy = CompressionPolicy(strategy, 0.3, 0.0, Aggressiveness.HIGH)
    outcome = compress_chat(messages, policy, len)
    assert outcome.tokens_after <= outcome.tokens_before
    assert outcome.messages is None or outcome.messages[-1] == question


def test_text_cut_at_several_sizes_is_split_and_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text is tried at up to six sizes, in up to three rounds."""
    plain_terms, pieces = facts.plain_terms, cutting._pieces
    chars_read, splits = [0], Counter[str]()

    def counted_terms(text: str) -> list[str]:
        chars_read[0] += len(text)
        return plain_terms(text)

    def counted_pieces(text: str, need: Any) -> Any:
        splits[text] += 1
        return pieces(text, need)

    monkeypatch.setattr(facts, "plain_terms", counted_terms)
    monkeypatch.setattr(scoring, "plain_terms", counted_terms)
    monkeypatch.setattr(cutting, "_pieces", counted_pieces)
    logs = [
        "".join(
            f"10:{minute:02d} job-{number}{minute} took {minute * 37} ms at node {minute}\n" for minute in range(60)
        )
        for number in range(8)
    ]
    messages = [part for number, log in enumerate(logs) for part in result(number, log)]
    messages.append({"role": "user", "content": "How long did job-317 take?"})
    outcome = compress_chat(messages, CompressionPolicy(Strategy.EXTRACTIVE, 0.5, 0.8), len, target_tokens=10)
    assert outcome.tokens_after < outcome.tokens_before
    assert set(splits.values()) == {1}
    assert len(splits) == len(logs)
    assert chars_read[0] < 9 * outcome.tokens_before, "each text is read a fixed number of times, not once for each cut"
