"""A step of one turn: the data in it is minified, the text around it stays byte for byte."""

import json
import re
from typing import Any

import pytest

from policies.compression import Aggressiveness, CompressionPolicy, Strategy, compress_chat
from policies.compression.data_blocks import data_spans, with_data_minified, without_data

RECORDS = [{"id": number, "name": f"item {number}", "price": number * 3.5, "tags": ["a", "b"]} for number in range(60)]
PRETTY = json.dumps(RECORDS, indent=4)
SHORT = json.dumps(RECORDS, separators=(",", ":"))
PROSE = "\n\n\n\n\n".join(f"Paragraph {number} is about the budget.   " for number in range(30))
TIDY = "\n\n\n".join(f"Paragraph {number} is about the budget." for number in range(30))
ASK = "Extract   the prices.   \n\n\n\n"
END = "\n\n\n\nAnswer  in CSV.   "
STRATEGIES = [strategy for strategy in Strategy if strategy is not Strategy.NONE]


def count(text: str) -> int:
    return len(re.findall(r"\w{1,4}|[^\w\s]|\s", text))


def after(content: Any, strategy: Strategy = Strategy.STRUCTURAL, **options: Any) -> Any:
    values: dict[str, Any] = {"target_ratio": 0.1, "min_quality": 0.0, "aggressiveness": Aggressiveness.HIGH}
    messages = [{"role": "system", "content": "You   extract.   "}, {"role": "user", "content": content}]
    outcome = compress_chat(messages, CompressionPolicy(strategy, **values), count, **options)
    assert outcome.messages is None or outcome.messages[0] == messages[0]
    return (outcome.messages or messages)[1]["content"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("target", [None, 20])
@pytest.mark.parametrize(
    ("before", "tidied"),
    [
        (PRETTY, SHORT),
        (f"```json\n{PRETTY}\n```", f"```json\n{SHORT}\n```"),
        (f"```\n{PRETTY}\n```", f"```\n{SHORT}\n```"),
        (f"<data>\n{PRETTY}\n</data>", f"<data>\n{SHORT}\n</data>"),
        (f'<document id="1">\n{PROSE}\n</document>', f'<document id="1">\n{TIDY}\n</document>'),
        (f'"""\n{PROSE}\n"""', f'"""\n{TIDY}\n"""'),
        (f"{PRETTY}\nand\n{PRETTY}", f"{SHORT}\nand\n{SHORT}"),
    ],
)
def test_data_in_the_newest_turn_is_minified_and_the_rest_unchanged(
    strategy: Strategy, target: int | None, before: str, tidied: str
) -> None:
    assert after(ASK + before + END, strategy, target_tokens=target) == ASK + tidied + END
    assert after(ASK + tidied + END, strategy, target_tokens=target) == ASK + tidied + END


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "content",
    [
        ASK + PROSE,
        f"<rules>\n{PROSE}\n</rules>",
        f"<data>\n{PROSE}",
        f"```python\nx = {PRETTY}\n```",
        f"```\n{PROSE}\n```",
        f"```python\n<data>\n{PROSE}\n</data>\n```",
        f"Here: {PRETTY} as said.",
        f"{PRETTY} as said.",
        'Like this: {\n  "id": 1\n}' + END,
        PRETTY[:-1],
        "[NaN,\n\n " + "1,  " * 200 + "1]",
    ],
)
def test_possible_instructions_and_code_stay_byte_for_byte(strategy: Strategy, content: str) -> None:
    assert after(content, strategy) == content


def test_content_parts_are_minified_separately_and_cached_parts_stay() -> None:
    parts = [{"type": "text", "text": ASK}, {"type": "text", "text": PRETTY}]
    assert after(parts) == [parts[0], {"type": "text", "text": SHORT}]
    cached = [parts[0], parts[1] | {"cache_control": {"type": "ephemeral"}}]
    assert after(cached) == cached


def test_without_data_returns_the_text_around_the_data() -> None:
    assert without_data(f"Which price has item 7?\n{PRETTY}{END}") == f"Which price has item 7?\n{END}"
    assert without_data(PRETTY) == PRETTY


@pytest.mark.parametrize(
    "text", ["[\n" * 200_000, '"""\n' * 200_000, "<data>\n" * 200_000, "```\n" * 100_000, "{}\n" * 200_000]
)
def test_adversarial_text_is_scanned_in_bounded_time(text: str) -> None:
    assert isinstance(data_spans(text), list)
    assert with_data_minified(with_data_minified(text)) == with_data_minified(text)
