"""How each family of models counts: its encoding, a bounding factor, constants, and its price for an image.

The figures for OpenAI's families match what its API reported. Those for others are upper bounds over recorded requests, as
multiples of the count in o200k, because their tokenizers are not public.
"""

import re
from dataclasses import replace
from enum import Enum
from functools import lru_cache

from policies.tokens.images import ByArea, ByPatch, ByTile, ImageRule
from policies.values import value_class


class Family(Enum):
    """Whose rules for messages, tools and tool calls apply."""

    GPT_4 = "gpt-4"  # GPT-3.5, GPT-4, GPT-4o, GPT-4.1, GPT-4.5
    O_SERIES = "o-series"
    GPT_5 = "gpt-5"
    OTHER = "other"  # not OpenAI's: bounded by a factor on all text and a constant


@value_class
class Counting:
    """How a model's tokens are counted.

    A count in `encoding` is multiplied by `factor_percent` (100 for OpenAI's models). `constant` is added to each request,
    and `tools_constant` to each request with tools. `exact`: text is counted with the model's own tokenizer. `cjk_percent`,
    if larger, replaces the factor for text that is mostly Chinese, Japanese or Korean.
    """

    encoding: str
    factor_percent: int
    constant: int
    tools_constant: int
    exact: bool
    family: Family
    images: ImageRule
    cjk_percent: int = 0

    def highest_count(self, output_tokens: int) -> int:
        """How many tokens an output of `output_tokens` may be counted as, because the factor makes an upper bound of a count."""
        return ceil_percent(output_tokens, self.factor_percent)

    def booked_output(self, counted_tokens: int, held_tokens: int) -> int:
        """What to book for an output whose provider has not reported its usage, and for which `held_tokens` are held.

        An answer that kept within its cap may be counted above it. It is booked as the whole hold then, and not as more than
        anybody has reported.
        """
        if counted_tokens > self.highest_count(held_tokens):
            return counted_tokens
        return min(counted_tokens, held_tokens)


def ceil_percent(number: int, percent: int) -> int:
    return -(-number * percent // 100)


def _openai(family: Family, images: ImageRule, encoding: str = "o200k_base") -> Counting:
    return Counting(encoding, 100, 0, 0, exact=True, family=family, images=images)


def _other(
    factor_percent: int, constant: int, tools_constant: int, images: ImageRule, cjk_percent: int = 0
) -> Counting:
    return Counting(
        "o200k_base",
        factor_percent,
        constant,
        tools_constant,
        exact=False,
        family=Family.OTHER,
        images=images,
        cjk_percent=cjk_percent,
    )


_TILES_4O = ByTile(85, 170)
# For models whose rule is unknown: close to the most expensive known ones.
_FLAT_3000 = ByArea(300, 3_000)
_GEMINI_IMAGE = ByArea(500, 1_120)  # 258 a tile up to Gemini 2.5; 1,120 at the default resolution of Gemini 3

UNKNOWN = _other(135, 100, 800, _FLAT_3000)
_CLAUDE = _other(135, 40, 800, ByArea(750, 1_640), cjk_percent=160)
_CLAUDE_4_7 = _other(175, 40, 800, ByArea(750, 4_784))
_OPEN_WEIGHTS = _other(105, 48, 300, _FLAT_3000)  # Llama and Qwen prepend a system prompt of their own

# The first matching prefix wins, so longer prefixes come before shorter ones.
_BY_PREFIX: tuple[tuple[str, Counting], ...] = (
    ("gpt-oss", _other(105, 100, 200, _FLAT_3000)),  # o200k, with a system prompt of its own
    ("gpt-5-mini", _openai(Family.GPT_5, ByPatch(120))),  # documented as 1.62, observed as 1.2
    ("gpt-5-nano", _openai(Family.GPT_5, ByPatch(246))),
    ("gpt-5.4-mini", _openai(Family.GPT_5, ByPatch(162))),
    ("gpt-5.4-nano", _openai(Family.GPT_5, ByPatch(246))),
    ("gpt-5", _openai(Family.GPT_5, ByTile(70, 140))),
    ("gpt-4o-mini", _openai(Family.GPT_4, ByTile(2_833, 5_667))),
    ("gpt-4o", _openai(Family.GPT_4, _TILES_4O)),
    ("gpt-4.1-nano", _openai(Family.GPT_4, ByPatch(246))),
    ("gpt-4.1-mini", _openai(Family.GPT_4, ByPatch(162))),
    ("gpt-4.1", _openai(Family.GPT_4, _TILES_4O)),
    ("gpt-4.5", _openai(Family.GPT_4, ByTile(75, 150))),
    ("gpt-4", _openai(Family.GPT_4, _TILES_4O, "cl100k_base")),
    ("gpt-3.5", _openai(Family.GPT_4, _TILES_4O, "cl100k_base")),
    ("gpt-35", _openai(Family.GPT_4, _TILES_4O, "cl100k_base")),  # Azure's spelling
    ("gpt-", _openai(Family.GPT_5, ByTile(70, 140))),  # newer than this table
    ("chatgpt-", _openai(Family.GPT_4, _TILES_4O)),
    ("codex", _openai(Family.GPT_5, ByTile(70, 140))),
    ("o1-mini", _openai(Family.O_SERIES, ByTile(75, 150))),
    ("o4-mini", _openai(Family.O_SERIES, ByPatch(172))),
    ("o1", _openai(Family.O_SERIES, ByTile(75, 150))),
    ("o3", _openai(Family.O_SERIES, ByTile(75, 150))),
    ("o4", _openai(Family.O_SERIES, ByTile(75, 150))),
    ("computer-use", _openai(Family.GPT_4, ByTile(65, 129))),
    ("text-embedding-", _openai(Family.GPT_4, _TILES_4O, "cl100k_base")),
    ("text-moderation", _openai(Family.GPT_4, _TILES_4O, "cl100k_base")),
    ("omni-moderation", _openai(Family.GPT_4, _TILES_4O)),
    ("davinci-002", _openai(Family.GPT_4, _TILES_4O, "cl100k_base")),
    ("babbage-002", _openai(Family.GPT_4, _TILES_4O, "cl100k_base")),
)

# Other names have their family anywhere: `us.meta.llama4-…-v1:0`, `deepseek-r1-distill-llama-70b`.
_BY_WORD: tuple[tuple[str, Counting], ...] = (
    ("nova", _other(135, 100, 3_400, _FLAT_3000)),
    ("gemini", _other(105, 16, 400, _GEMINI_IMAGE)),
    ("gemma", _other(105, 16, 400, _GEMINI_IMAGE)),
    ("deepseek", replace(_OPEN_WEIGHTS, tools_constant=400)),
    ("llama-4", replace(_OPEN_WEIGHTS, tools_constant=700)),
    ("llama4", replace(_OPEN_WEIGHTS, tools_constant=700)),
    ("llama", _OPEN_WEIGHTS),
    ("mistral", _OPEN_WEIGHTS),
    ("ministral", _OPEN_WEIGHTS),
    ("magistral", _OPEN_WEIGHTS),
    ("mixtral", _OPEN_WEIGHTS),
    ("pixtral", _OPEN_WEIGHTS),
    ("devstral", _OPEN_WEIGHTS),
    ("codestral", _OPEN_WEIGHTS),
    ("glm", _OPEN_WEIGHTS),
    ("qwen", _OPEN_WEIGHTS),
    ("qwq", _OPEN_WEIGHTS),
)
_BY_PROVIDER = {"openai": _openai(Family.GPT_5, ByTile(70, 140)), "anthropic": _CLAUDE_4_7}

_SMALL_NUMBER = re.compile(r"(?<![\dv])\d{1,2}(?!\d)")  # the digits of a version, not of a date nor Bedrock's `v1`


@lru_cache(maxsize=1024)
def counting_for(model: str, provider: str | None = None) -> Counting:
    """The counting of a model, by its name as a client or LiteLLM writes it: `gpt-4o-mini-2024-07-18`, `openai/gpt-4o`, `ft:gpt-4o:acme`.

    A provider before the name is ignored; `provider` decides only if the name says nothing. Unknown models get the widest
    bound (×1.35 + 100), in o200k, because cl100k over-counts Chinese by 42 %.
    """
    name = model.lower().rsplit("/", 1)[-1].removeprefix("ft:").removeprefix("openai.")
    for prefix, counting in _BY_PREFIX:
        if name.startswith(prefix):
            return counting
    if "claude" in name:
        return _CLAUDE_4_7 if _claude_version(name) >= (4, 7) else _CLAUDE
    for word, counting in _BY_WORD:
        if word in name:
            return counting
    return _BY_PROVIDER.get((provider or "").lower(), UNKNOWN)


def _claude_version(name: str) -> tuple[int, ...]:
    numbers = _SMALL_NUMBER.findall(name.replace(".", "-"))[:2]
    if not numbers:
        # `claude-v2` and `claude-instant` are old; a name without a version is newer than this table.
        return (2,) if "-v" in name or "instant" in name else (99,)
    return tuple(int(number) for number in numbers)
