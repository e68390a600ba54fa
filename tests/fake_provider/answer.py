"""What the fake provider says: text made from the request itself, so that the same request gets the same answer."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fake_provider.directive import Directive, texts_of

# Each of these words, with or without a space before it, is one token in o200k_base and in cl100k_base, so that a text
# of n of them costs exactly n tokens.
_WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city community name team minute idea kid body information back parent face
others level office door health person art war history party result change reason research girl moment air teacher
force education and of to in for on with at by from the a is was are be this that which one two
"""
WORDS = tuple(_WORDS.split())
Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Answer:
    """The content of one answer, before a protocol gives it its form."""

    id: str
    model: str
    words: tuple[str, ...]
    finish: str  # stop, length or tool_calls
    tool: str | None
    arguments: str
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    choices: int

    @property
    def text(self) -> str:
        return "".join(self.words)


def count_words(text: str) -> int:
    """The fake provider's own tokenizer: exact for texts made of `WORDS`."""
    return len(text.split())


def answer(directive: Directive, model: str, body: Mapping[str, Any], count: Count) -> Answer:
    """The answer that `directive` asks for, cut at the request's output cap unless it is to be ignored."""
    seed = hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).digest()
    words = _words(directive, body, random.Random(seed))
    cap = output_cap(body)
    cut = cap is not None and not directive.ignore_max and _tokens(words, count) + directive.reasoning_tokens > cap
    if cut:
        words = _first_tokens(words, max(0, (cap or 0) - directive.reasoning_tokens), count)
    choices = max(1, int(body.get("n") or 1))
    tool_tokens = count(directive.tool) + count(directive.arguments) + 2 if directive.tool else 0
    spoken = tool_tokens or _tokens(words, count)
    return Answer(
        id=seed.hex()[:24],
        model=directive.model or model,
        words=() if directive.tool else words,
        finish="tool_calls" if directive.tool else ("length" if cut else "stop"),
        tool=directive.tool,
        arguments=directive.arguments,
        input_tokens=prompt_tokens(body, count),
        output_tokens=(spoken + directive.reasoning_tokens) * choices,
        reasoning_tokens=directive.reasoning_tokens,
        cached_tokens=directive.cached_tokens,
        choices=choices,
    )


def output_cap(body: Mapping[str, Any]) -> int | None:
    """The smallest of the output caps that the protocols know."""
    caps = [body.get(key) for key in ("max_completion_tokens", "max_tokens", "max_output_tokens")]
    return min((cap for cap in caps if type(cap) is int), default=None)


def prompt_tokens(body: Mapping[str, Any], count: Count) -> int:
    """3 a message, its role, its text, and 3 for priming, as OpenAI charges; plain texts elsewhere."""
    total = sum(count(text) for text in texts_of(body))
    messages = body.get("messages")
    if isinstance(messages, list):
        total += 4 * len(messages) + 3
    tools = body.get("tools")
    return total + (count(json.dumps(tools)) if tools else 0)


def usage_of(directive: Directive, correct: dict[str, Any]) -> dict[str, Any] | None:
    """The usage object that goes out: the correct one, or the fault that was asked for."""
    if directive.usage_json is not None:
        return dict(json.loads(directive.usage_json))
    if directive.usage == "missing":
        return None
    values = {"correct": None, "zero": 0, "negative": -7, "absurd": 10**12}[directive.usage]
    if values is None:
        return correct
    return {key: values if type(value) is int else value for key, value in correct.items()}


def _words(directive: Directive, body: Mapping[str, Any], chance: random.Random) -> tuple[str, ...]:
    if directive.text is not None:
        return _split(directive.text)
    if directive.echo:
        return _split((texts_of(body) or [""])[-1])
    word_count = directive.tokens if directive.tokens is not None else chance.randint(5, 40)
    cap = output_cap(body)
    if directive.ignore_max and directive.tokens is None and cap is not None:
        word_count = cap + 20
    return tuple(("" if i == 0 else " ") + chance.choice(WORDS) for i in range(word_count))


def _split(text: str) -> tuple[str, ...]:
    pieces = text.split(" ")
    return tuple(piece if i == 0 else " " + piece for i, piece in enumerate(pieces)) if text else ()


def _tokens(words: tuple[str, ...], count: Count) -> int:
    return count("".join(words)) if words else 0


def _first_tokens(words: tuple[str, ...], tokens_max: int, count: Count) -> tuple[str, ...]:
    kept_words: list[str] = []
    used = 0
    for word in words:
        used += count(word)
        if used > tokens_max:
            break
        kept_words.append(word)
    return tuple(kept_words)
